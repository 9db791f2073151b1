"""What Prefect shows of a run: its name, tags, artifact keys and states, how the audit ended, and harmless Markdown.

How an audit ended is a named state, returned rather than raised: a verdict is not a crash and leaves no traceback. In
Markdown, what models and people wrote has no effect.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from flows.graph.lock import sha256
from flows.recur import runs
from flows.request import current_standing, decided_so_far
from flows.run_stage import StageResult, finished
from flows.terminal import harmless
from stages.core.errors import Exit, FadedError, RejectedError
from stages.core.files import stage_dir
from stages.params import Params

if TYPE_CHECKING:
    from stages.decisions import RecordedDecision


FROM_TERMINAL, SCHEDULED, BY_HAND = "from terminal", "scheduled", "started by hand"
GATE_FAILED, REJECTED = "Gate failed", "Rejected"  # names of states that automations match
_CACHED = "Cached"  # Prefect's name for results from its own cache
_UP_TO_DATE = "up to date: nothing it depends on has changed"


def current_run_name() -> str:
    """The name of the current flow run, for Prefect."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    return runs.run_name(context.flow_run.model_copy(update={"parameters": context.parameters or {}}))


def tag_run(run: FlowRun, audits: Sequence[str]) -> None:
    """Tag a deployment's run with its audits and who started it; other runs are tagged by the command."""
    tags = list(dict.fromkeys([*run.tags, "faded", *audits, SCHEDULED if run.auto_scheduled else BY_HAND]))
    if tags != run.tags:
        with get_client(sync_client=True) as client:
            client.update_flow_run(run.id, tags=tags)


def key(audit: str, what: str) -> str:
    """A key that Prefect accepts: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", f"{audit}-{what}".lower()).strip("-")


def publish(artifacts: Iterable[Artifact]) -> None:
    """Publish artifacts in the current flow run; a failure to publish is logged and does not fail the audit."""
    for audit, what, title, text in artifacts:
        try:
            heading = f"{audit}: {title}"
            create_markdown_artifact(f"# {heading}\n\n{text}", key=key(audit, what), description=heading)
        except Exception:
            logging.getLogger(__name__).warning("artifact %s of %s was not published", what, audit, exc_info=True)


def shown_before(run: FlowRun) -> set[str]:
    """Stages that a resumed run already shows as done; those that were running when its process ended are closed."""
    known: list[TaskRun] = []
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        while page := client.read_task_runs(flow_run_filter=wanted, offset=len(known)):
            known += page
        for cut_off in known:
            if cut_off.state is not None and not cut_off.state.is_final():
                ended: State[Any] = Cancelled(name="Interrupted", message="its process ended; the stage runs again")
                client.set_task_run_state(cut_off.id, ended, force=True)
    return {done.name for done in known if done.state is not None and done.state.is_completed()}


def done(result: StageResult) -> State[StageResult]:
    """The state of a stage that is up to date."""
    if result.outcome == "ran":
        return Completed(message=f"ran in {result.seconds:.1f} s", data=result)
    told = "restored from the cache of DVC" if result.outcome == "restored" else _UP_TO_DATE
    return Completed(name=_CACHED, message=told, data=result)


def refused(error: FadedError) -> State[Any]:
    """The state of a stage that failed in a way that a retry cannot fix; without a traceback, as it is no crash."""
    return Failed(name=REJECTED if isinstance(error, RejectedError) else "Failed", message=str(error), data=error)


def last_state(endings: Sequence[Ending], skipped: Sequence[str] = ()) -> State[Any]:
    """The last state of a flow run, given by its worst ending, with messages on audits it left to another run."""
    told = "; ".join([*(ending.text for ending in endings), *skipped])
    kinds = {ending.kind for ending in endings}
    for kind, name in (("broken", "Failed"), ("gate failed", GATE_FAILED), ("rejected", REJECTED)):
        if kind in kinds:
            worst = "; ".join(ending.text for ending in endings if ending.kind not in ("done", "waiting"))
            return Failed(name=name, message=f"broken: {worst}" if kind == "broken" else worst)
    if kinds <= {"waiting"} and endings:
        return Completed(name="Waiting", message=told)
    return Completed(name=None if endings else runs.SKIPPED, message=told)


# Done: its verdict may count as a pass, other than with a failed gate. A person is waited for, or rejected it. Broken:
# a stage failed.
Kind = Literal["done", "waiting", "rejected", "gate failed", "broken"]


@dataclass(frozen=True)
class Ending:
    """How one audit of a run ended."""

    audit: str
    kind: Kind
    text: str
    result: str = ""  # identifies the ending: the same as long as nothing changed; empty if there is no result
    anew: bool = True  # whether this run reached the verdict, rather than finding an unchanged one


class Artifact(NamedTuple):
    """A page in Prefect; `what` is the end of its key."""

    audit: str
    what: str
    title: str
    text: str


class Conclusion(NamedTuple):
    """What a deployed run leaves of an audit."""

    ending: Ending
    artifacts: list[Artifact]
    evidence: Path | None  # its bundle; None unless the audit is finished
    problem: str | None  # what is missing of the evidence, if anything is
    drift: str | None  # the message about a new result that shows more failures than those before, if it does


def how_it_ended(params: Params, audit: str, results: Sequence[StageResult]) -> Ending:
    """Determine how an audit ended, from its verdict and the results of this run's stages, including other audits'."""
    from flows.results import last_stage, read_verdict

    own = [result for result in results if result.stage.endswith(f"@{audit}")]
    if failed := [result for result in own if result.outcome == "failed"]:
        text = "; ".join(" ".join(result.message.split()) for result in failed)
        if any(result.exit_code != Exit.GATE_FAILED for result in failed):
            return Ending(audit, "broken", text)
        now = current_standing(params, audit)
        if now is None or now.rejection is None:  # decided anew since: in the words of the stage
            return Ending(audit, "rejected", text)
        return Ending(audit, "rejected", f"{audit}: {decided_so_far(now)}", rejection_result(now.rejection))
    if waiting := [result for result in own if result.outcome == "waiting"]:
        return Ending(audit, "waiting", waiting[0].message)
    if not finished(audit, results):  # a shared stage that it depends on broke
        return Ending(audit, "broken", f"{audit} was not finished: a stage it depends on failed")
    verdict = read_verdict(params, audit)
    changed = any(result.outcome in ("ran", "restored") for result in own)
    word = verdict.word + (f" ({verdict.decided})" if verdict.decided else "")
    report = f", report {verdict.report.resolve()}" if verdict.report is not None else ""
    text = f"{audit}: {word}{report}" if changed else f"nothing changed; last verdict: {word}{report}"
    path = stage_dir(audit, last_stage(params, audit)) / "verdict.json"
    result = sha256(path.read_bytes()) if verdict.found else ""
    return Ending(audit, "gate failed" if verdict.refuses else "done", text, result, changed)


def rejection_result(no: RecordedDecision) -> str:
    """The `Ending.result` of a rejection."""
    return f"{no.landscape} {no.reviewer} {no.time}"


DECIDED = "Decided"  # title of the artifact that asked, once somebody decided
_MARKUP = re.compile(r"[]\\`*_[<>&~|:@.#+=-]")  # begins markdown or an automatic link


def code(text: str) -> str:
    """Text of a model or a person as inline code, so that its markup and links have no effect."""
    return f"`{_one_line(text).replace('`', chr(39))}`"


def prose(text: str) -> str:
    """The same for a text that is not shown as code: its markup is escaped."""
    return _MARKUP.sub(r"\\\g<0>", _one_line(text))


def _one_line(text: str) -> str:
    """Text without line breaks, as a blank line would end the markup around it, and without control characters."""
    return harmless(" ".join(text.split()))


def decided_markdown(decisions: Sequence[RecordedDecision]) -> str:
    """Who decided what, as markdown."""
    lines = []
    for decision in decisions:
        word, why = "approved" if decision.approve else "rejected", decision.reason
        lines.append(f"- {code(decision.reviewer)} {word} it ({decision.via})" + (f": {code(why)}" if why else ""))
    return "\n".join(lines)
