"""Updates a Prefect server to match prefect.yaml: work pool, deployments, and automations."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.recur.notify import block_id
from flows.recur.runs import cancel_unscheduled, of_pool
from flows.recur.schedule import FILE, Entry, read_entries, work_pool
from flows.server.security import client_environment
from flows.workspace import stage_environment
from stages.core.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

_OWNED = "Audits of "  # start of the description of Faded's work pools
LATE = timedelta(hours=1)  # that a run may wait for its start before people are notified


def apply(entries: Sequence[Entry]) -> list[str]:
    """Update the server to match prefect.yaml: work pool, deployments, automations; return sentences for people.

    Raises:
        UsageError: if the work pool or a deployment belongs to another workspace.
        InfrastructureError: if the server refuses.
    """
    from prefect.client.orchestration import get_client

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
        ensure_automations(client, pool, [ours[entry.name] for entry in entries], block_id(client, pool))
    return lines


def refresh_automations() -> None:
    """Update the automations to the current notification settings, for deployments that are already on the server."""
    from prefect.client.orchestration import get_client

    pool = work_pool(entries := read_entries())
    with get_client(sync_client=True) as client:
        ours = _deployments(client, pool)
        if ids := [ours[entry.name] for entry in entries if entry.name in ours]:
            ensure_automations(client, pool, ids, block_id(client, pool))


def _ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    mine = f"{_OWNED}{Path.cwd()} on {socket.gethostname()}"
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        # One audit at a time: they share the workspace, and often the only GPU.
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", description=mine, concurrency_limit=1, base_job_template=template)
        )
        return
    if (found.description or "").startswith(_OWNED) and found.description != mine:
        raise UsageError(
            f"work pool {pool!r} of this Prefect server belongs to another workspace ({found.description}), this is "
            f"{Path.cwd()}: give this one's another name in {FILE} (work_pool: name), and its deployments; if that "
            f"folder has moved here, run `prefect work-pool delete {pool}` first"
        )


def _refuse_foreign(client: SyncPrefectClient, entry: Entry) -> None:
    """Refuse a name that another work pool uses: Prefect would move its deployment here, together with its schedule."""
    from prefect.exceptions import ObjectNotFound

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
    for name in names:
        command += ["--name", name]
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
        pool: its work pool; the automations' names begin with it.
        deployments: the deployments whose runs they watch; others on the server are ignored.
        block: where notifications go; None for nowhere.
    """
    if block is None:
        return []
    from prefect.events.actions import SendNotification
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    ours = {
        "prefect.resource.role": "deployment",
        "prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in deployments],
    }

    def trigger(posture: Posture, after: set[str], expect: set[str], within: timedelta) -> EventTrigger:
        return EventTrigger(
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=ours,
            for_each={"prefect.resource.id"},
            after=after,
            expect=expect,
            posture=posture,
            threshold=1,
            within=within,
        )

    automations = []
    crashed = trigger(Posture.Reactive, set(), _events("Crashed"), timedelta(0))
    waiting = trigger(Posture.Proactive, _events("Late"), _events("Pending", "Running", "Cancelled"), LATE)
    no_start = "should have started an hour ago; no worker is running, or another audit is"
    for what, when, subject, body in (
        ("tell of dead runs", crashed, "broken", "crashed: {{ flow_run.state.message }}"),
        ("tell of late runs", waiting, "late", no_start),
    ):
        message = SendNotification(
            block_document_id=block,
            subject="faded: {{ deployment.name }} " + subject,
            body="{{ deployment.name }} (flow run {{ flow_run.name }}) " + body + "\n{{ flow_run|ui_url }}",
        )
        automations.append(AutomationCore(name=f"{pool}: {what}", trigger=when, actions=[message]))
    return automations


def ensure_automations(client: SyncPrefectClient, pool: str, deployments: Sequence[UUID], block: UUID | None) -> None:
    """Create, update or remove the automations on a server, found by their names; see `make_automations`."""
    automations = {automation.name: automation for automation in make_automations(pool, deployments, block)}
    for what in ("dead runs", "tell of dead runs", "tell of late runs"):  # the first is one of earlier versions
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
