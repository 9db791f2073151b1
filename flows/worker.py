"""A worker that runs the audits of its workspace and nothing else: `python -P -m flows.worker POOL [NAME] [--once]`.

What a flow run executes is what a Prefect server says: command, environment, entrypoint, pull steps. Whoever may call
that server could so run anything here as this user. This worker takes all of it from prefect.yaml, and refuses runs
for which the server says something else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from prefect.exceptions import ObjectNotFound
from prefect.states import Failed
from prefect.workers import process
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.engine import ALLOWED
from flows.recur.runs import crash_silent
from flows.recur.schedule import FILE, read_launches
from flows.workspace import enter_workspace
from stages.core.errors import FadedError

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun, WorkPool
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.flows import Flow

_COMMAND = "python -P -m flows.engine"  # default if prefect.yaml has none


def why_foreign(run: FlowRun, deployment: DeploymentResponse | None) -> str | None:
    """Why a flow run is not one of those in prefect.yaml; None if it is.

    Args:
        run: the run as the server describes it.
        deployment: its deployment as the server describes it.

    Raises:
        UsageError: if prefect.yaml cannot be read.
    """
    if deployment is None:
        return "it belongs to no deployment"
    ours = read_launches().get(deployment.name)
    if ours is None:
        return f"deployment {deployment.name!r} is not in {FILE}"
    for what, found, expected in (
        ("entrypoint", deployment.entrypoint, [ours.entrypoint]),
        ("pull steps", deployment.pull_steps, [ours.pull_steps]),
        ("job variables", deployment.job_variables, [ours.job_variables]),
        ("job variables of the run", run.job_variables or {}, [{}]),
        ("parameters", _given(run.parameters), ours.parameters),
    ):
        if found not in expected:
            return f"{what}: {FILE} says {expected[0]!r:.200}, the server {found!r:.200}"
    return None


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}  # forms send all parameters


class AuditJob(ProcessJobConfiguration):
    """How a flow run is started: by prefect.yaml, whatever the server's settings."""

    @classmethod
    async def resolve_for_flow_run(
        cls,
        flow_run: FlowRun,
        *,
        client: PrefectClient,
        work_pool: WorkPool,
        worker_name: str,
        worker_id: Any = None,
        deployment: DeploymentResponse | None = None,
    ) -> AuditJob:
        """See Prefect. prefect.yaml is used throughout, as the server's settings may have changed since the check."""
        assert flow_run.deployment_id is not None
        deployment = deployment or await client.read_deployment(flow_run.deployment_id)
        ours = read_launches()[deployment.name]
        job = await super().resolve_for_flow_run(
            flow_run.model_copy(update={"job_variables": {}}),
            client=client,
            work_pool=work_pool.model_copy(update={"base_job_template": ProcessWorker.get_default_base_job_template()}),
            worker_name=worker_name,
            worker_id=worker_id,
            deployment=deployment.model_copy(update={"job_variables": {"command": _COMMAND, **ours.job_variables}}),
        )
        job.working_dir = Path.cwd()
        # With its own entrypoint, the run neither requests one nor executes steps that pull code.
        job.env |= {"PREFECT__FLOW_ENTRYPOINT": ours.entrypoint, ALLOWED: json.dumps(ours.parameters)}
        return job


class AuditWorker(ProcessWorker):
    """Runs the runs of prefect.yaml; others fail before anything of them is executed."""

    job_configuration = AuditJob

    @classmethod
    def __dispatch_key__(cls) -> str:
        """A name of its own, so that it does not replace Prefect's worker; its work pools have the same type."""
        return "faded"

    async def _get_scheduled_flow_runs(self) -> list[Any]:
        if self._limiter is not None and not self._limiter.borrowed_tokens:  # it has no run that could be one of these
            await asyncio.to_thread(crash_silent, self._work_pool_name)
        return [found for found in await super()._get_scheduled_flow_runs() if await self._is_ours(found.flow_run)]

    async def _is_ours(self, run: FlowRun) -> bool:
        deployment = None
        try:
            if run.deployment_id is not None:
                deployment = await self.client.read_deployment(run.deployment_id)
            why = why_foreign(run, deployment)
        except ObjectNotFound:
            why = "its deployment is gone"
        except FadedError as error:
            why = str(error)
        if why is not None:
            message = f"refused: flow run {run.name} is not an audit of {Path.cwd()}: {why}"
            self.get_flow_run_logger(run).error(message)
            await self.client.set_flow_run_state(run.id, Failed(message=message), force=True)
        return why is None


async def _audit(_run: FlowRun) -> Flow[..., Any]:
    """The flow of a crashed run, for its hooks: Prefect would execute the server's pull steps to find it."""
    from flows.audit import audit

    return audit


def main() -> None:
    """Run a pool's audits until stopped, or with --once until the run that is due has ended."""
    from prefect.utilities.processutils import setup_signal_handlers_worker

    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
    enter_workspace()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("name", nargs="?", default=f"faded on {socket.gethostname()}")
    parser.add_argument("--once", action="store_true", help="end after the run that is due, or at once if none is")
    given = parser.parse_args()
    worker = AuditWorker(given.pool, name=given.name, limit=1, create_pool_if_not_found=False)
    setup_signal_handlers_worker(os.getpid(), "the worker", print)
    with patch.object(process, "load_flow_from_flow_run", _audit):
        asyncio.run(worker.start(run_once=given.once))


if __name__ == "__main__":
    main()
