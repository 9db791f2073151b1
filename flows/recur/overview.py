"""The overview of schedules: the next start, the last run, and what waits for a person."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from flows.recur.deploy import LATE
from flows.recur.runs import in_state, of_pool, run_label
from flows.recur.schedule import Entry
from flows.request import deadline, needs_decision
from flows.terminal import narrow_table, print_plain
from stages.core.errors import FadedError
from stages.params import Params

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_STARTED = ("RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING")  # types of states


@dataclass(frozen=True)
class ScheduleRow:
    """One audit with a deployment.

    Args:
        next_start: in local time; None if its schedule is off.
        last: when it ran last and how that ended, in words.
        waits: what it waits for, or what is wrong with its decisions, in words; empty for nothing.
    """

    entry: Entry
    next_start: datetime | None
    last: str
    verdict: str
    waits: str


def overview(params: Params, entries: Sequence[Entry], api: str | None) -> list[ScheduleRow]:
    """Read the overview; without a server, the time of the last verdict stands for the last run.

    Args:
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


def show_schedules(console: Console, rows: Sequence[ScheduleRow]) -> None:
    """Print the overview as a table."""
    table = narrow_table("audit", "schedule", "next start", "last run", "verdict")
    for row in rows:
        entry = row.entry
        cron = "none" if entry.cron is None else f"{entry.cron}\n{entry.timezone}"
        start = f"{row.next_start:%a %Y-%m-%d\n%H:%M %Z}" if row.next_start is not None else "off"
        table.add_row(escape(entry.audit), escape(cron), start, escape(row.last), escape(row.verdict))
    console.print(table)
    print_plain(console, *(f"{row.entry.audit} waits for {row.waits}" for row in rows if row.waits), style="yellow")


def troubles(pool: str, since: datetime) -> list[str]:
    """A sentence for each run of a work pool that crashed since then, or did not start in time."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    lines = []
    latest = FlowRunSort.EXPECTED_START_TIME_DESC
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(**of_pool(pool), **in_state(name=["Crashed", "Late"]), sort=latest):
            due, state = run.expected_start_time, run.state
            if state is not None and state.is_crashed() and state.timestamp >= since:
                lines.append(f"{run_label(run)} crashed: {state.message}")
            elif state is not None and state.is_scheduled() and due and datetime.now(UTC) - due > LATE:
                lines.append(
                    f"{run_label(run)} should have started on {due.astimezone():%a %Y-%m-%d at %H:%M %Z}: no worker is "
                    "running, or another audit is"
                )
    return lines


def _row(params: Params, entry: Entry, client: SyncPrefectClient | None) -> ScheduleRow:
    from flows.results import read_verdict

    verdict = read_verdict(params, entry.audit)
    waits = []
    try:
        if needs_decision(params, entry.audit) is not None:
            until = deadline(entry.audit)
            waits.append("your decision" + (f" until {until.astimezone():%Y-%m-%d %H:%M}" if until is not None else ""))
    except FadedError as error:  # a decision file is broken; still show the others
        waits.append(str(error))
    late = _first_run(client, entry, "EXPECTED_START_TIME_ASC", name=["Late"]) if client is not None else None
    if late is not None and late.expected_start_time is not None:
        waits.append(f"a worker or its turn, since {late.expected_start_time.astimezone():%Y-%m-%d %H:%M}")
    last = f"{verdict.when:%Y-%m-%d %H:%M}" if verdict.when is not None else "never"
    run = _first_run(client, entry, "START_TIME_DESC", type=_STARTED) if client is not None else None
    # A run has no start time if its process died before it reported that it was running.
    if run is not None and run.state is not None and (began := run.start_time or run.expected_start_time) is not None:
        last = f"{began.astimezone():%Y-%m-%d %H:%M} {str(run.state.name).lower()}"
    return ScheduleRow(entry, entry.next_start(), last, verdict.word, "; ".join(waits))


def _first_run(client: SyncPrefectClient, entry: Entry, sort: str, **states: Sequence[str]) -> FlowRun | None:
    from prefect.client.schemas.filters import DeploymentFilter
    from prefect.client.schemas.sorting import FlowRunSort

    deployment = DeploymentFilter.model_validate({"name": {"any_": [entry.name]}})
    runs = client.read_flow_runs(deployment_filter=deployment, **in_state(**states), sort=FlowRunSort(sort), limit=1)
    return runs[0] if runs else None
