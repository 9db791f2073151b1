"""Labels of a run in Prefect: its name, tags, artifact keys, and the states of audits and stages.

How an audit ended is a named state, returned rather than raised: a verdict is not a crash and leaves no traceback.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext
from prefect.states import Cancelled, Completed, Failed

from flows.recur import runs
from flows.run_stage import StageResult
from stages.core.errors import FadedError, RejectedError

if TYPE_CHECKING:
    from flows.views.endings import Artifact, Ending

FROM_TERMINAL, SCHEDULED, BY_HAND = "from terminal", "scheduled", "started by hand"
GATE_FAILED, REJECTED = "Gate failed", "Rejected"  # names of states that automations match
_CACHED = "Cached"  # Prefect's name for results from its own cache
_UP_TO_DATE = "up to date: nothing it depends on has changed"
_STAGE = {"ran": "Completed", "restored": _CACHED, "unchanged": _CACHED}


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


def up_to_date(stage: str) -> State[StageResult]:
    """The state of a stage that DVC does not have to check again."""
    return Completed(name=_CACHED, message=_UP_TO_DATE, data=StageResult(stage=stage, outcome="unchanged"))


def done(result: StageResult) -> State[StageResult]:
    """The state of a stage that has just been brought up to date."""
    told = {"restored": "restored from the cache of DVC", "unchanged": _UP_TO_DATE}
    message = told.get(result.outcome, f"ran in {result.seconds:.1f} s")
    return Completed(name=_STAGE[result.outcome], message=message, data=result)


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
    return Completed(name=None if endings else "Skipped", message=told)
