"""How a deployed flow waits for a person: suspended, with a typed form, and without a process.

`suspend_flow_run` stores the form and ends the process. Whoever resumes the run makes the flow start from its top,
where DVC finds nothing to do up to the gate; there the same call, known by its key, returns what the form was given.
A decision that came in another way is found in its file, and the form is not looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, Pause, PrefectException
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings
from prefect.states import Cancelled, Scheduled
from pydantic import Field, ValidationError, create_model

from flows.approval import choose, close_request, expire, how_to_decide, open_request, read_modes, read_request
from flows.artifacts import key
from stages.decisions import Decision, ModeDecision, Standing, listed_keys, record_decision, standing
from stages.decisions.names import clean_name, same_person
from stages.errors import UsageError
from stages.params import Params

_SCHEMA_LIMIT = 15.0  # seconds; the form is stored right after the run was suspended


Choice = Literal["undecided", "repair", "accept", "ignore"]


class DecisionForm(RunInput):
    """What Prefect's page asks for; that of a landscape has two more fields for each failure mode, see `make_form`."""

    decision: Literal["approve", "reject"] = Field(description="Reject ends the audit here: no repair is made.")
    reviewer: str = Field(min_length=1, pattern=r"\S", description="Your name, as the record shall have it.")
    reason: str = Field("", description="Why, in a sentence.")

    def words(self, modes: Sequence[Mapping[str, Any]]) -> list[ModeDecision]:
        """What was said of the modes.

        Args:
            modes: as in landscape.json.

        Raises:
            UsageError: when the repair is approved, and a choice or its reason is missing.
        """
        said: dict[str, Any] = {mode["id"]: getattr(self, mode["id"], "undecided") for mode in modes}
        why = {name: getattr(self, _why(name), "") for name in said}
        if self.decision == "reject":
            return [ModeDecision(id=n, action=a, reason=why[n]) for n, a in said.items() if a != "undecided"]
        by = {action: {n: why[n] for n, a in said.items() if a == action} for action in ("repair", "accept", "ignore")}
        return choose(modes, by["repair"], by["accept"], list(by["ignore"]))


def _why(mode: str) -> str:
    return f"{mode}_reason"


def deployed_run() -> FlowRun | None:
    """The present flow run if it belongs to a deployment: only such a one can be suspended."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run if run is not None and run.deployment_id is not None else None


def ask(params: Params, audit: str) -> None:
    """Suspend the present flow run until the audit's landscape is decided; return once it is.

    An answer that cannot be taken is told in the log and on the next form, which is asked under a key of its own.
    """
    logger = get_run_logger()
    run = deployed_run()
    assert run is not None
    problem = None
    for attempt in itertools.count(1):
        expire(params, audit)
        now = standing(params, audit)
        if now.complete:
            for decision in now.decisions:
                word = "approved" if decision.approve else "rejected"
                logger.info("%s %s landscape %s (%s)", decision.reviewer, word, decision.landscape, decision.via)
            close_request(audit)
            return
        request = open_request(params, audit, (str(run.id), get_current_settings().api.url or ""))
        form = make_form(audit, now, read_modes(audit), problem)
        this = _key(audit, now.landscape, attempt)
        # Before, because the process may be killed at any moment: rather told twice than never.
        if this not in (run.empirical_policy.pause_keys or ()):
            _tell(audit)
        try:
            answer = suspend_flow_run(wait_for_input=form, timeout=request.seconds_left, key=this)
        except Pause:
            if (now := standing(params, audit)).complete:  # decided before there was a suspended run to wake
                end_wait(audit, now, request.runs)
            raise
        except ValidationError as error:
            problem = f"the form was not filled in as asked: {' '.join(str(error).split())}"
        else:
            problem = _take(params, audit, answer, now)
        if problem is not None:
            logger.warning("%s, so %s is asked about again", problem, audit)


def make_form(
    audit: str, now: Standing, modes: Sequence[Mapping[str, Any]], problem: str | None = None
) -> type[DecisionForm]:
    """The form for one landscape.

    Args:
        audit: whose.
        now: what has been decided on it.
        modes: as in landscape.json.
        problem: why the last answer was not taken.
    """
    fields: dict[str, Any] = {}
    for mode in modes:
        name, sure = mode["id"], "needs a choice" if mode.get("confirmed") else "not confirmed, ignored if undecided"
        fields[name] = (Choice, Field("undecided", title=name, description=f"{mode['text']} ({sure})"))
        fields[_why(name)] = (str, Field("", title=f"{name}: why", description="For a mode to repair or accept."))
    form = create_model("DecisionForm", __base__=DecisionForm, **fields)
    return form.with_initial_data(description=describe(audit, now, modes, problem))


def describe(audit: str, now: Standing, modes: Sequence[Mapping[str, Any]], problem: str | None = None) -> str:
    """What the form says above its fields, as markdown; arguments as of `make_form`."""
    lines = [f"**{how_to_decide(audit)}**, on {socket.gethostname()} in `{Path.cwd()}`"]
    if (url := _review_url(audit)) is not None:
        lines.append(f"The failure modes with examples: [review page]({url})")
    lines.append("\n".join(_mode_line(mode) for mode in modes) or "No failure mode was found.")
    if now.needed > 1:
        so_far = ", ".join(decision.reviewer for decision in now.decisions) or "nobody yet"
        lines.append(f"{now.needed} reviewers are asked, approved so far: {so_far}")
    lines += [f"**Does not count:** {why}" for why in now.problems]
    if problem is not None:
        lines.append(f"**The last answer was not taken:** {problem}")
    return "\n\n".join([*lines, f"Landscape {now.landscape}"])


def _mode_line(mode: Mapping[str, Any]) -> str:
    fails = "not measured"
    if mode.get("rate") is not None:
        fails = f"fails in {mode['rate']:.0%} ({mode['low']:.0%} to {mode['high']:.0%})"
    sure = "confirmed" if mode.get("confirmed") else "not confirmed, may be chance"
    return f"- {mode['id']}: `{mode['text'].replace('`', chr(39))}`, {fails}, {sure}"


def _review_url(audit: str) -> str | None:
    from flows.review.links import review_url

    return review_url(audit)


def _tell(audit: str) -> None:
    from flows.notify import notify

    url = _review_url(audit)
    notify("needs decision", audit, how_to_decide(audit) + (f" or {url}" if url else ""))


def _take(params: Params, audit: str, answer: DecisionForm, now: Standing) -> str | None:
    """Record what the form was given; return why it was not taken, if so."""
    approve = answer.decision == "approve"
    try:
        words, reviewer = answer.words(read_modes(audit)), clean_name(answer.reviewer)
        # What was recorded before the run was resumed, or killed, comes back from the form each time the flow starts.
        for said in now.decisions:
            same = said.approve == approve and _actions(said.modes) == _actions(words)
            if same and same_person(said.reviewer, reviewer):
                return None
        if listed_keys(params, audit):  # whoever sees the form could sign as anybody
            raise UsageError(
                f"decisions on {audit} are signed, which this form cannot do: ask where the audit is for a link of your"
                f" own, `faded review {audit} --link --reviewer NAME`"
            )
        decision = Decision(
            landscape=now.landscape, reviewer=reviewer, reason=answer.reason, approve=approve, modes=words
        )
        record_decision(params, audit, decision, "prefect")
    except (UsageError, ValidationError) as error:
        return " ".join(str(error).split())
    return None


def _actions(modes: Sequence[ModeDecision]) -> dict[str, str]:
    return {mode.id: mode.action for mode in modes}


def waiting_elsewhere(params: Params, audit: str, run: FlowRun) -> FlowRun | None:
    """Another flow run that is suspended on the audit's present landscape, so that there is no use in a second one.

    Runs that are suspended on an earlier landscape wait for what nobody can decide any more, and are cancelled.
    """
    request = read_request(audit)
    if request is None:
        return None
    present = standing(params, audit).landscape
    with get_client(sync_client=True) as client:
        for other in _known(client, [name for name in request.runs if name != str(run.id)]):
            landscape = _asks_about(audit, other)
            if landscape == present:
                return other
            if landscape is not None:
                _cancel(client, other, _outdated(audit, landscape))
    return None


def end_wait(audit: str, now: Standing | None, runs: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Resume those of these flow runs that are suspended on the audit's landscape, and cancel those on another one.

    Args:
        audit: whose.
        now: what was decided; it goes into the form, which wants to be filled in. None where nobody is asked any more:
            then all are cancelled.
        runs: ids with the URL of the API on which each was suspended.

    Returns:
        What was done, in sentences, and the runs whose server could not be asked.
    """
    said: list[str] = []
    present, left = _present_api(), dict(runs)
    for url in dict.fromkeys([*([present] if present else []), *runs.values()]):
        try:
            with _api(url) as client:
                for run in _known(client, list(left)):
                    if (landscape := _asks_about(audit, run)) is not None:
                        said.append(_end(client, audit, now, run, landscape))
                    del left[str(run.id)]
            left = {run: there for run, there in left.items() if there != url}
        # Whatever listens there now need not be Prefect: then its client finds no JSON, or not the one it expects.
        except (httpx.HTTPError, PrefectException, ValueError, RuntimeError) as error:
            said.append(
                f"the Prefect server at {url} was not told ({type(error).__name__}): a run that is suspended there goes"
                f" on with the next run of {audit}"
            )
    return said, left


def _end(client: SyncPrefectClient, audit: str, now: Standing | None, run: FlowRun, landscape: str) -> str:
    if now is None:
        return _cancel(client, run, f"{audit} asks nobody any more, a rule decides")
    if landscape != now.landscape:
        return _cancel(client, run, _outdated(audit, landscape))
    return _resume(client, run, _answer(now))


def _outdated(audit: str, landscape: str) -> str:
    return f"landscape {landscape} of {audit} is no longer the present one"


def _cancel(client: SyncPrefectClient, run: FlowRun, why: str) -> str:
    client.set_flow_run_state(run.id, Cancelled(message=why))
    return f"the suspended flow run {run.name} was cancelled: {why}"


def _answer(now: Standing) -> dict[str, Any]:
    last = now.rejection or now.decisions[-1]
    return {
        "decision": "approve" if last.approve else "reject",
        "reviewer": last.reviewer,
        "reason": last.reason,
        **_actions(last.modes),
        **{_why(mode.id): mode.reason for mode in last.modes},
    }


def _resume(client: SyncPrefectClient, run: FlowRun, answer: dict[str, Any]) -> str:
    until = time.monotonic() + _SCHEMA_LIMIT
    while True:
        response = client.resume_flow_run(run.id, run_input=answer)
        reason = getattr(response.details, "reason", None) or "no reason given"
        if response.status == SetStateStatus.ACCEPT:
            return f"the suspended flow run {run.name} goes on"
        # A form of an older version of Faded has other fields.
        if "schema not found" in reason or reason.startswith("Reason: "):
            if "schema not found" in reason and time.monotonic() < until:
                time.sleep(0.2)
                continue
            # Its process was killed before it stored the form. At the top of the flow the decision is found anyway.
            client.set_flow_run_state(run.id, Scheduled(), force=True)
            return f"the suspended flow run {run.name} goes on"
        return f"the flow run {run.name} was not resumed: {reason}"


def _known(client: SyncPrefectClient, runs: Sequence[str]) -> Iterator[FlowRun]:
    """Those of these runs that the server knows."""
    for name in runs:
        with contextlib.suppress(ObjectNotFound):
            yield client.read_flow_run(UUID(name))


def _asks_about(audit: str, run: FlowRun) -> str | None:
    """The hash of the landscape on which a run is suspended, if it is, and the landscape one of the audit's."""
    if run.state is None or not run.state.is_paused():
        return None
    asked = (run.state.state_details.pause_key or "").rpartition("-")[0]
    landscape = asked.rpartition("-")[2]
    return landscape if landscape and asked == key(audit, landscape) else None


def _key(audit: str, landscape: str, attempt: int) -> str:
    return f"{key(audit, landscape)}-{attempt}"


def _present_api() -> str | None:
    """Where the workspace's runs may have moved since: its own server may get another port when it starts again."""
    from flows.server import configured_api

    return configured_api()


@contextlib.contextmanager
def _api(url: str) -> Iterator[SyncPrefectClient]:
    from flows.server import talking_to

    # Whoever decided does not want to wait for a server that is gone.
    patience = {"timeout": httpx.Timeout(20, connect=5)}
    with talking_to(url), get_client(sync_client=True, httpx_settings=patience) as client:
        yield client
