"""Automations of the Prefect server: they notice runs whose process died, and runs that did not start.

A killed process cannot report its end. While it lives it sends heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY, 30 s,
see prefect.yaml). When they stop, its run is marked as crashed, which frees its slot for the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = timedelta(seconds=120)  # four heartbeats
LATE = timedelta(hours=1)
# Names of states that end a run, or in which it rests without a process: no heartbeat is expected after them.
_ENDED = ("Completed", "Skipped", "Failed", "Gate failed", "Rejected", "Cancelled", "Crashed")
_AT_REST = ("Suspended", "Paused", "Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot", "Late")


def make_automations(
    pool: str, deployments: Sequence[UUID], block: UUID | None, silence: timedelta = SILENCE, late: timedelta = LATE
) -> list[AutomationCore]:
    """The automations of a workspace.

    Args:
        pool: its work pool; the automations' names begin with it.
        deployments: the deployments whose runs they watch; others on the server are ignored.
        block: where notifications go; None for nowhere.
        silence: time without a heartbeat after which a run counts as dead.
        late: how long a run may wait for its start before people are notified.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState, SendNotification
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

    silent = trigger(Posture.Proactive, {HEARTBEAT}, {HEARTBEAT, *_events(*_ENDED, *_AT_REST)}, silence)
    died = f"no heartbeat for {silence.total_seconds():.0f} s: its process or its machine died"
    automations = [
        AutomationCore(
            name=f"{pool}: dead runs",
            description="Marks a run as crashed whose process no longer sends heartbeats.",
            trigger=silent,
            actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=died)],
        )
    ]
    if block is None:
        return automations
    crashed = trigger(Posture.Reactive, set(), _events("Crashed"), timedelta(0))
    waiting = trigger(Posture.Proactive, _events("Late"), _events("Pending", "Running", "Cancelled"), late)
    for what, when, subject, body in (
        ("tell of dead runs", crashed, "broken", "crashed: {{ flow_run.state.message }}"),
        (
            "tell of late runs",
            waiting,
            "late",
            "should have started an hour ago; no worker is running, or another audit is",
        ),
    ):
        automations.append(
            AutomationCore(
                name=f"{pool}: {what}",
                trigger=when,
                actions=[
                    SendNotification(
                        block_document_id=block,
                        subject="faded: {{ deployment.name }} " + subject,
                        body="{{ deployment.name }} (flow run {{ flow_run.name }}) " + body + "\n{{ flow_run|ui_url }}",
                    )
                ],
            )
        )
    return automations


def ensure_automations(
    client: SyncPrefectClient,
    pool: str,
    deployments: Sequence[UUID],
    block: UUID | None,
    silence: timedelta = SILENCE,
) -> None:
    """Create, update or remove the automations on a server, found by their names; see `make_automations`."""
    wanted = {automation.name: automation for automation in make_automations(pool, deployments, block, silence)}
    for what in ("dead runs", "tell of dead runs", "tell of late runs"):
        name = f"{pool}: {what}"
        found = client.read_automations_by_name(name)
        if name not in wanted:
            for automation in found:
                client.delete_automation(automation.id)
        elif found:
            client.update_automation(found[0].id, wanted[name])
        else:
            client.create_automation(wanted[name])


def _events(*states: str) -> set[str]:
    return {f"prefect.flow-run.{state}" for state in states}
