"""The overview of schedules: the next start, the last run, and what waits for a person."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.recur.automations import LATE
from flows.recur.schedule import Entry
from flows.request import deadline, needs_decision
from stages.core.errors import FadedError
from stages.core.files import stage_dir
from stages.params import Params

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun


@dataclass(frozen=True)
class Row:
    """One audit with a deployment.

    Args:
        entry: its deployment.
        next_start: in local time; None if its schedule is off.
        last: when it ran last and how that ended, in words.
        verdict: its last verdict, in words.
        waits: what it waits for, or what is wrong with its decisions, in words; empty for nothing.
    """

    entry: Entry
    next_start: datetime | None
    last: str
    verdict: str
    waits: str


def overview(params: Params, entries: Sequence[Entry], api: str | None) -> list[Row]:
    """Read the overview; without a server, the time of the last verdict stands for the last run.

    Args:
        params: the workspace's parameters.
        entries: deployments of prefect.yaml; those of removed audits are left out.
        api: URL of a Prefect server that responds, None for none.
    """
    from prefect.client.orchestration import get_client

    from flows.server import talking_to

    with contextlib.ExitStack() as life:
        client = None
        if api is not None:
            life.enter_context(talking_to(api))
            client = life.enter_context(get_client(sync_client=True))
        return [_row(params, entry, client) for entry in entries if entry.audit in params.audits]


def show_schedules(console: Console, rows: Sequence[Row]) -> None:
    """Print the overview as a table."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("audit", "schedule", "next start", "last run", "verdict", "waits for"):
        table.add_column(column, overflow="fold")
    for row in rows:
        entry = row.entry
        cron = "none" if entry.cron is None else f"{entry.cron}\n{entry.timezone}"
        start = f"{row.next_start:%a %Y-%m-%d %H:%M %Z}" if row.next_start is not None else "off"
        table.add_row(
            escape(entry.audit), escape(cron), start, escape(row.last), escape(row.verdict), escape(row.waits)
        )
    console.print(table)


def troubles(pool: str, since: datetime, late: timedelta = LATE) -> list[str]:
    """Problems with the runs of a work pool on the server of the current settings.

    Args:
        pool: the workspace's work pool.
        since: crashes before this time are ignored.
        late: how long a run may wait for its start.

    Returns:
        A sentence for each run that crashed or did not start.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    told = []
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            flow_run_filter=_in_state("Crashed", "Late"),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
        for run in runs:
            due = run.expected_start_time
            if run.state is not None and run.state.is_crashed() and run.state.timestamp >= since:
                told.append(f"{named(run)} crashed: {run.state.message}")
            elif run.state is not None and run.state.is_scheduled() and due and datetime.now(UTC) - due > late:
                told.append(
                    f"{named(run)} should have started on {due.astimezone():%a %Y-%m-%d at %H:%M %Z}: no worker is "
                    "running, or another audit is"
                )
    return told


def named(run: FlowRun) -> str:
    """A flow run's name for people."""
    audits = ", ".join(run.parameters.get("audits", []))
    return f"the audit of {audits} (flow run {run.name})"


def _row(params: Params, entry: Entry, client: SyncPrefectClient | None) -> Row:
    from flows.results import read_verdict

    verdict = read_verdict(params, entry.audit)
    waits = []
    try:
        if needs_decision(params, entry.audit) is not None:
            until = deadline(entry.audit)
            waits.append("your decision" + (f" until {until.astimezone():%Y-%m-%d %H:%M}" if until is not None else ""))
    except FadedError as error:  # a decision file is broken; still show the others
        waits.append(str(error))
    if client is not None and (due := _late_since(entry, client)) is not None:
        waits.append(f"a worker or its turn, since {due.astimezone():%Y-%m-%d %H:%M}")
    last = _last_run(entry, client) if client is not None else None
    return Row(entry, entry.next_start(), last or _last_verdict(params, entry.audit), verdict.word, "; ".join(waits))


def _late_since(entry: Entry, client: SyncPrefectClient) -> datetime | None:
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[entry.name])),
        flow_run_filter=_in_state("Late"),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
        limit=1,
    )
    return runs[0].expected_start_time if runs else None


def _in_state(*names: str) -> FlowRunFilter:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName

    return FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(names))))


def _last_verdict(params: Params, audit: str) -> str:
    from flows.results import last_stage

    path = stage_dir(audit, last_stage(params, audit)) / "verdict.json"
    return f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}" if path.exists() else "never"


def _last_run(entry: Entry, client: SyncPrefectClient) -> str | None:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    started = [kind for kind in StateType if kind not in (StateType.SCHEDULED, StateType.PENDING)]
    runs = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[entry.name])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=started))),
        sort=FlowRunSort.START_TIME_DESC,
        limit=1,
    )
    # A run has no start time if its process died before it reported that it was running.
    if not runs or (began := runs[0].start_time or runs[0].expected_start_time) is None or runs[0].state is None:
        return None
    return f"{began.astimezone():%Y-%m-%d %H:%M} {str(runs[0].state.name).lower()}"
