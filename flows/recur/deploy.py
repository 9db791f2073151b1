"""Updates a Prefect server to match prefect.yaml: work pool, deployments, and automations.

Also the overview of schedules: the next start, the last run, and what waits for a person.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from rich.console import Console
from rich.markup import escape

from flows.recur.notify import block_id
from flows.recur.runs import SKIPPED, cancel_unscheduled, in_state, of_pool, run_label
from flows.recur.schedule import FILE, Entry, read_entries, work_pool
from flows.request import deadline, needs_decision
from flows.server import talking_to
from flows.server.security import client_environment
from flows.terminal import narrow_table, print_plain
from flows.workspace import stage_environment
from stages.core.errors import FadedError, InfrastructureError, UsageError
from stages.params import Params

_OWNED = "Audits of "  # start of the description of Faded's work pools
_DEAD, _LATE = "tell of dead runs", "tell of late runs"  # ends of the names of automations
LATE = timedelta(hours=1)  # that a run may wait for its start before people are notified


def apply(entries: Sequence[Entry]) -> list[str]:
    """Update the server to match prefect.yaml: work pool, deployments, automations; return sentences for people.

    Raises a UsageError if the work pool or a deployment belongs to another workspace, and an InfrastructureError if the
    server refuses.
    """
    if not entries:
        return []
    pool = work_pool(entries)
    with get_client(sync_client=True) as client:
        _ensure_pool(client, pool)
        for entry in entries:
            _refuse_foreign(client, entry)
        _deploy([entry.name for entry in entries])
        ours = _deployments(client, pool)
        lines = []
        for name in sorted(set(ours) - {entry.name for entry in entries}):
            client.pause_deployment(ours[name])
            lines.append(f"deployment {name} is not in {FILE} any more: its schedules are paused")
        lines += cancel_unscheduled(client, pool)
        ensure_automations(client, pool, [ours[entry.name] for entry in entries], block_id(client))
    return lines


def refresh_automations() -> None:
    """Update the automations to the current notification settings, for deployments that are already on the server."""
    pool = work_pool(entries := read_entries())
    with get_client(sync_client=True) as client:
        ours = _deployments(client, pool)
        if ids := [ours[entry.name] for entry in entries if entry.name in ours]:
            ensure_automations(client, pool, ids, block_id(client))


def _ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    mine = f"{_OWNED}{Path.cwd()} on {socket.gethostname()}"
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker

        # One audit at a time: they share the workspace, and often the only GPU.
        how = {"concurrency_limit": 1, "base_job_template": ProcessWorker.get_default_base_job_template()}
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", description=mine, **how))
        return
    if (found.description or "").startswith(_OWNED) and found.description != mine:
        raise UsageError(
            f"work pool {pool!r} of this Prefect server belongs to another workspace ({found.description}), this is "
            f"{Path.cwd()}: give this one's another name in {FILE} (work_pool: name), and its deployments; if that "
            f"folder has moved here, run `prefect work-pool delete {pool}` first"
        )


def _refuse_foreign(client: SyncPrefectClient, entry: Entry) -> None:
    """Refuse a name that another work pool uses: Prefect would move its deployment here, together with its schedule."""
    try:
        found = client.read_deployment_by_name(f"audit/{entry.name}")
    except ObjectNotFound:
        return
    if found.work_pool_name not in (None, entry.pool):
        raise UsageError(
            f"deployment audit/{entry.name} of this Prefect server runs in work pool {found.work_pool_name!r}, not "
            f"{entry.pool!r}: give it another name in {FILE}, or run `prefect deployment delete audit/{entry.name}`"
        )


def _deploy(names: Sequence[str]) -> None:
    """Run `prefect deploy`, so that Prefect itself reads the file."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy"]
    command += [word for name in names for word in ("--name", name)]
    env = {**stage_environment(), **client_environment(), "COLUMNS": "200"}
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode or done.stdout.count("successfully created") != len(names):
        output = "\n".join(f"  {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-15:])
        raise InfrastructureError(f"Prefect did not accept {FILE}, `prefect deploy --all` says:\n{output}")


def _deployments(client: SyncPrefectClient, pool: str) -> dict[str, Any]:
    """Ids of the pool's deployments on the server, by name."""
    return {deployment.name: deployment.id for deployment in client.read_deployments(**of_pool(pool))}


def make_automations(pool: str, deployments: Sequence[UUID], block: UUID | None) -> list[AutomationCore]:
    """The automations of a workspace: what people are told about runs whose processes can tell nothing.

    Args:
        deployments: the deployments whose runs they watch; others on the server are ignored.
        block: where notifications go; None for nowhere.
    """
    if block is None:
        return []
    ours = {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in deployments],
    }

    def automation(
        what: str, subject: str, body: str, posture: Posture, after: set[str], expect: set[str], within: timedelta
    ) -> AutomationCore:
        trigger = EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=ours,
            for_each={"prefect.resource.id"},
            after=after,
            expect=expect,
            posture=posture,
            threshold=1,
            within=within,
        )
        message = SendNotification(
            block_document_id=block,
            subject="faded: {{ deployment.name }} " + subject,
            body="{{ deployment.name }} (flow run {{ flow_run.name }}) " + body + "\n{{ flow_run|ui_url }}",
        )
        return AutomationCore(name=f"{pool}: {what}", trigger=trigger, actions=[message])

    crashed = "crashed: {{ flow_run.state.message }}"
    no_start = "should have started an hour ago; no worker is running, or another audit is"
    begun = _events("Pending", "Running", "Cancelled")
    return [
        automation(_DEAD, "broken", crashed, Posture.Reactive, set(), _events("Crashed"), timedelta(0)),
        automation(_LATE, "late", no_start, Posture.Proactive, _events("Late"), begun, LATE),
    ]


def ensure_automations(client: SyncPrefectClient, pool: str, deployments: Sequence[UUID], block: UUID | None) -> None:
    """Create, update or remove the automations on a server, found by their names; see `make_automations`."""
    automations = {automation.name: automation for automation in make_automations(pool, deployments, block)}
    for what in ("dead runs", _DEAD, _LATE):  # the first is one of earlier versions
        name = f"{pool}: {what}"
        existing = client.read_automations_by_name(name)
        if name not in automations:
            for automation in existing:
                client.delete_automation(automation.id)
        elif existing:
            client.update_automation(existing[0].id, automations[name])
        else:
            client.create_automation(automations[name])


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}


_STARTED = ("RUNNING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED", "PAUSED", "CANCELLING")  # types of states


@dataclass(frozen=True)
class ScheduleRow:
    """One audit with a deployment."""

    entry: Entry
    next_start: datetime | None  # in local time; None if its schedule is off
    last: str  # when it ran last and how that ended, in words
    verdict: str
    waits: str  # what it waits for, or what is wrong with its decisions, in words; empty for nothing


def overview(params: Params, entries: Sequence[Entry], api: str | None) -> list[ScheduleRow]:
    """The overview; without the URL of a server, the time of the last verdict stands for the last run."""
    known = [entry for entry in entries if entry.audit in params.audits]
    if api is None:
        return [_row(params, entry, None) for entry in known]
    with talking_to(api), get_client(sync_client=True) as client:
        return [_row(params, entry, client) for entry in known]


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
            by = f" until {until.astimezone():%Y-%m-%d %H:%M}" if until is not None else ""
            waits.append(f"your decision{by} (`faded review {entry.audit}`)")
    except FadedError as error:  # a decision file is broken; still show the others
        waits.append(str(error))
    late = _first_run(client, entry, "EXPECTED_START_TIME_ASC", name=["Late"])
    if late is not None and late.expected_start_time is not None:
        waits.append(f"a worker or its turn, since {late.expected_start_time.astimezone():%Y-%m-%d %H:%M}")
    last = f"{verdict.when:%Y-%m-%d %H:%M}" if verdict.when is not None else "never"
    run = _first_run(client, entry, "START_TIME_DESC", type=_STARTED, without=SKIPPED)
    # A run has no start time if its process died before it reported that it was running.
    if run is not None and run.state is not None and (began := run.start_time or run.expected_start_time) is not None:
        last = f"{began.astimezone():%Y-%m-%d %H:%M} {str(run.state.name).lower()}"
    return ScheduleRow(entry, entry.next_start(), last, verdict.word, "; ".join(waits))


def _first_run(client: SyncPrefectClient | None, entry: Entry, sort: str, **states: Any) -> FlowRun | None:
    if client is None:
        return None
    deployment = DeploymentFilter.model_validate({"name": {"any_": [entry.name]}})
    runs = client.read_flow_runs(deployment_filter=deployment, **in_state(**states), sort=FlowRunSort(sort), limit=1)
    return runs[0] if runs else None
