"""Flow runs that are suspended on a decision, found, resumed or cancelled; flows/people/suspend.py suspends them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Scheduled

from flows.request import present, read_request
from flows.server import configured_api, talking_to
from flows.views.labels import DECIDED, decided_markdown, key, prose

if TYPE_CHECKING:
    from stages.decisions import ModeDecision, Standing


def deployed_run() -> FlowRun | None:
    """The current flow run if it belongs to a deployment; only these can be suspended."""
    context = FlowRunContext.get()
    run = context.flow_run if context is not None else None
    return run if run is not None and run.deployment_id is not None else None


def waiting_elsewhere(audit: str, run: FlowRun) -> FlowRun | None:
    """Another flow run that is suspended on the audit's current landscape, which makes a second one useless.

    Runs that are suspended on an earlier landscape are cancelled, as nobody can decide on it any more.
    """
    request = read_request(audit)
    if request is None:
        return None
    now = present(audit)
    with get_client(sync_client=True) as client:
        for other in _known(client, [name for name in request.runs if name != str(run.id)]):
            landscape = _asks_about(audit, other)
            if landscape == now:
                return other
            if landscape is not None:
                _cancel(client, other, _outdated(audit, landscape))
    return None


def end_wait(audit: str, now: Standing | None, runs: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Resume those of these flow runs that are suspended on the audit's landscape, and cancel those on another one.

    Returns sentences about what was done, and the runs whose server could not be reached.

    Args:
        now: the decisions, for the form of a run that resumes; None if nobody is asked any more: all are cancelled.
        runs: the URL of the API on which each run was suspended, by id.
    """
    ended: list[str] = []
    here, left = configured_api(), dict(runs)  # where runs may have moved: our own server may get another port
    # People who have decided should not wait for a server that is gone.
    patience = {"timeout": httpx.Timeout(20, connect=5)}
    for url in dict.fromkeys([*([here] if here else []), *runs.values()]):
        try:
            with talking_to(url), get_client(sync_client=True, httpx_settings=patience) as client:
                for run in _known(client, list(left)):
                    if (landscape := _asks_about(audit, run)) is not None:
                        ended.append(_end(client, audit, now, run, landscape))
                    del left[str(run.id)]
            left = {run: there for run, there in left.items() if there != url}
        # Another program may listen there now: the client then finds no JSON, or not the JSON it expects.
        except (httpx.HTTPError, PrefectException, ValueError, RuntimeError) as error:
            ended.append(
                f"the Prefect server at {url} could not be notified ({type(error).__name__}): a run suspended there"
                f" resumes with the next run of {audit}"
            )
    return ended, left


def _end(client: SyncPrefectClient, audit: str, now: Standing | None, run: FlowRun, landscape: str) -> str:
    if now is not None and landscape == now.landscape:
        title, text, told = DECIDED, decided_markdown(now.decisions), _resume(client, run, now)
    else:
        why = f"a rule now decides on {audit}" if now is None else _outdated(audit, landscape)
        title, text, told = "No decision is needed", prose(why), _cancel(client, run, why)
    # The artifact that asked is what people see until the run gets a slot.
    heading = f"{audit}: {title}"
    new = ArtifactCreate(
        key=key(audit, "decision"),
        type="markdown",
        description=heading,
        data=f"# {heading}\n\n{text}",
        flow_run_id=run.id,
    )
    client.create_artifact(new)
    return told


def _outdated(audit: str, landscape: str) -> str:
    return f"landscape {landscape} of {audit} is no longer current"


def _cancel(client: SyncPrefectClient, run: FlowRun, why: str) -> str:
    client.set_flow_run_state(run.id, Cancelled(message=why))
    return f"the suspended flow run {run.name} was cancelled: {why}"


def _resume(client: SyncPrefectClient, run: FlowRun, now: Standing) -> str:
    last = now.rejection or now.decisions[-1]
    answer = {
        "decision": "approve" if last.approve else "reject",
        "reviewer": last.reviewer,
        "reason": last.reason,
        **actions(last.modes),
        **{why_field(mode.id): mode.reason for mode in last.modes},
    }
    response = client.resume_flow_run(run.id, run_input=answer)
    reason = getattr(response.details, "reason", None) or "no reason given"
    # Its process has not stored the form, or an older version of Faded with other fields has. The flow finds the
    # decision at its top anyway.
    if "schema not found" in reason or reason.startswith("Reason: "):
        response = client.set_flow_run_state(run.id, Scheduled(name="Resuming"), force=True)
    if response.status == SetStateStatus.ACCEPT:
        return f"the suspended flow run {run.name} resumes"
    return f"the flow run {run.name} was not resumed: {reason}"


def _known(client: SyncPrefectClient, runs: Sequence[str]) -> Iterator[FlowRun]:
    for name in runs:
        with contextlib.suppress(ObjectNotFound):
            yield client.read_flow_run(UUID(name))


def _asks_about(audit: str, run: FlowRun) -> str | None:
    """The hash of the landscape on which a run is suspended; None if it is not, or if it is another audit's."""
    if run.state is None or not run.state.is_paused():
        return None
    subject = (run.state.state_details.pause_key or "").rpartition("-")[0]
    landscape = subject.rpartition("-")[2]
    return landscape if landscape and subject == key(audit, landscape) else None


def pause_key(audit: str, landscape: str, attempt: int) -> str:
    """The key under which Prefect stores the form that a run waits for."""
    return f"{key(audit, landscape)}-{attempt}"


def why_field(mode: str) -> str:
    """The form's field for the reason of a mode."""
    return f"{mode}_reason"


def actions(modes: Sequence[ModeDecision]) -> dict[str, str]:
    """The chosen action by mode."""
    return {mode.id: mode.action for mode in modes}
