"""Runs of a workspace's work pool on a Prefect server: how they are found and named, and what happens to lost ones.

A killed process cannot report its end. While it lives it sends heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY, 30 s, see
prefect.yaml). When they stop, its run is marked as crashed, which frees its slot for the next run. No automation of
Prefect does this: it judges by the order in which events arrive, so it also marks runs as crashed that are suspended.
"""

import contextlib
import socket
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter, WorkerFilter, WorkPoolFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import AwaitingRetry, Cancelled, Crashed

SKIPPED = "Skipped"  # name of the state of a run that left its audits to another
SILENCE = timedelta(seconds=120)  # four heartbeats
STOPPED = "`faded serve` was stopped; it resumes where it was"
_DIED = "its process died; it resumes where it was"
_DEATHS = 5  # of one run; a run that takes down its machine must not do so for ever
_HEARTBEAT = "prefect.flow-run.heartbeat"
_WITH_PROCESS = ("RUNNING", "CANCELLING")  # types of states in which a run's process lives
_last_signs: dict[UUID, tuple[datetime, float]] = {}  # of a run's life: when it was given, and first seen here


def of_pool(pool: str) -> dict[str, Any]:
    """The filter of what belongs to a work pool."""
    return {"work_pool_filter": WorkPoolFilter.model_validate({"name": {"any_": [pool]}})}


def in_state(*, without: str | None = None, **states: Sequence[str]) -> dict[str, Any]:
    """The filter of flow runs in some of these states, by `name` or `type`, and not in one of the name `without`."""
    state = {key: {"any_": list(values)} for key, values in states.items()}
    state |= {} if without is None else {"name": {"not_any_": [without]}}
    return {"flow_run_filter": FlowRunFilter.model_validate({"state": state})}


def run_label(run: FlowRun) -> str:
    """A flow run for people."""
    audits = ", ".join(run.parameters.get("audits", []))
    return f"the audit of {audits} (flow run {run.name})"


def run_name(run: FlowRun) -> str:
    """The name of a flow run, "mnist 2026-11-28 07:05:00": its audits, and when it was due, in local time."""
    due = run.expected_start_time or run.created or datetime.now(UTC)
    return f"{', '.join(run.parameters.get('audits', []))} {due.astimezone():%Y-%m-%d %H:%M:%S}"


def worker_name() -> str:
    """The name of the worker of `faded serve`."""
    return f"faded serve on {socket.gethostname()}"


def cancel_unscheduled(client: SyncPrefectClient, pool: str) -> list[str]:
    """Cancel runs that a schedule made before it was turned off, as Prefect keeps late ones; return a line on each."""
    on = {
        deployment.id
        for deployment in client.read_deployments(**of_pool(pool))
        if not deployment.paused and any(schedule.active for schedule in deployment.schedules)
    }
    runs = client.read_flow_runs(**of_pool(pool), **in_state(type=["SCHEDULED"]))
    left = [run for run in runs if run.auto_scheduled and not run.run_count and run.deployment_id not in on]
    for run in left:
        client.set_flow_run_state(run.id, Cancelled(message="its schedule is off"), force=True)
    return [f"cancelled, as its schedule is off: {run_label(run)}" for run in left]


def name_runs(client: SyncPrefectClient, pool: str) -> None:
    """Name the pool's coming runs after their audits, as Prefect gives them names at random."""
    for run in client.read_flow_runs(**of_pool(pool), **in_state(type=["SCHEDULED"])):
        if (name := run_name(run)) != run.name:
            client.update_flow_run(run.id, name=name)


def superseded(run: FlowRun) -> str | None:
    """Why a run that has just started should leave its audit to another run of its deployment; None if it should not.

    A decision is carried out by the run that asked for it. Of a schedule's starts that are late, only the last is made.
    """
    if run.empirical_policy.pause_keys:  # it asked
        return None
    deployment = DeploymentFilter.model_validate({"id": {"any_": [run.deployment_id]}})
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(deployment_filter=deployment, **in_state(type=["SCHEDULED", "PENDING"]))
    for other in found:
        if other.id != run.id and other.empirical_policy.pause_keys:
            return f"skipped: flow run {other.name}, which asked for the decision, carries it out"
    if (due := run.expected_start_time) is None or not run.auto_scheduled or run.run_count > 1:
        return None
    for other in found:
        later = other.expected_start_time
        if other.auto_scheduled and later is not None and due < later <= datetime.now(UTC):
            return f"skipped: it starts late, and a later start of its schedule is due, too (flow run {other.name})"
    return None


def crash_silent(pool: str, silence: timedelta = SILENCE) -> None:
    """Mark runs as crashed that should have a process and send no heartbeats: theirs, or its machine, died.

    The time is measured here, by a clock that nobody sets and that stands still while this machine sleeps: those of
    other machines differ.
    """

    def is_silent(client: SyncPrefectClient, run: FlowRun) -> bool:
        beats = EventFilter(
            event=EventNameFilter(name=[_HEARTBEAT]), resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
        )
        last = client.read_events(beats, limit=1).events
        if run.state is None or not last:  # a run that never sent one may not be set to send any
            return False
        sign = max(last[0].occurred, run.state.timestamp)
        if _last_signs.get(run.id, (None, 0.0))[0] != sign:
            _last_signs[run.id] = sign, time.monotonic()
        return time.monotonic() - _last_signs[run.id][1] > silence.total_seconds()

    died = f"no heartbeat for {silence.total_seconds():.0f} s: its process or its machine died"
    with get_client(sync_client=True) as client:
        for found in client.read_flow_runs(**of_pool(pool), **in_state(type=_WITH_PROCESS)):
            if is_silent(client, found):
                now = client.read_flow_run(found.id).state  # it may have been suspended meanwhile
                if now is not None and now.type.value in _WITH_PROCESS:
                    client.set_flow_run_state(found.id, Crashed(message=died), force=True)


def resume_interrupted(pool: str, why: str = _DIED) -> list[str]:
    """Reschedule runs that were cut off when their worker ended; DVC resumes them. Runs that keep dying are given up.

    Called while no worker of this workspace is running. If another worker polls the same pool, its runs cannot be
    distinguished from dead ones, which the automation on heartbeats then finds. Returns sentences about what was done.
    """
    lines = []
    with get_client(sync_client=True) as client:
        online = WorkerFilter.model_validate({"status": {"any_": ["ONLINE"]}})
        if any(worker.name != worker_name() for worker in client.read_workers_for_work_pool(pool, online)):
            return []
        for run in client.read_flow_runs(**of_pool(pool), **in_state(type=["PENDING", "RUNNING", "CANCELLING"])):
            # Counted by these messages, as a run is also rescheduled after each decision and each Ctrl-C.
            earlier = sum(state.message == _DIED for state in client.read_flow_run_states(run.id))
            state: State[Any]
            if run.state is not None and run.state.is_cancelling():
                state, line = Cancelled(message="its process is gone"), ""
            elif why == _DIED and earlier + 1 >= _DEATHS:
                state = Crashed(message=f"its process died {_DEATHS} times")
                line = f"{run_label(run)} died {_DEATHS} times: given up"
            else:
                state, line = AwaitingRetry(message=why), f"{run_label(run)} was interrupted and resumes"
            with contextlib.suppress(ObjectNotFound):  # somebody deleted it meanwhile
                client.set_flow_run_state(run.id, state, force=True)
                lines += [line] if line else []
    return lines
