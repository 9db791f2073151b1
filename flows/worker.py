"""A worker that runs the audits of its workspace and nothing else: `python -P -m flows.worker POOL [--once]`.

What a flow run executes is what a Prefect server says: command, environment, entrypoint, pull steps. Whoever may call
that server could so run anything here as this user. This worker takes all of it from prefect.yaml, and refuses runs
for which the server says something else.

With --once it takes the run that is due, and becomes its process. `faded serve`, or a worker without --once, resumes
a run whose process dies, and kills that of a cancelled run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.recur.schedule import FILE, Entry, read_entries
from flows.start.engine import ALLOWED
from flows.workspace import enter_workspace
from stages.core.errors import FadedError, UsageError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

_COMMAND = "python -P -m flows.start.engine"  # default if prefect.yaml has none
# What a flow run executes, and its own environment variables; None removes one.
RunCommand = tuple[list[str], dict[str, str | None]]


def _entry_of(client: SyncPrefectClient, run: FlowRun) -> Entry:
    """What prefect.yaml says of a flow run. Raises a UsageError if the server says something else, or it has none."""
    from prefect.exceptions import ObjectNotFound

    try:
        deployment = None if run.deployment_id is None else client.read_deployment(run.deployment_id)
    except ObjectNotFound:
        deployment = None
    if deployment is None:
        raise UsageError("it belongs to no deployment")
    ours = next((entry for entry in read_entries() if entry.name == deployment.name), None)
    if ours is None:
        raise UsageError(f"deployment {deployment.name!r} is not in {FILE}")
    given = {name: value for name, value in run.parameters.items() if value is not None}  # forms send all parameters
    for what, found, expected in (
        ("entrypoint", deployment.entrypoint, [ours.entrypoint]),
        ("pull steps", deployment.pull_steps, [ours.pull_steps]),
        ("job variables", deployment.job_variables, [ours.job_variables]),
        ("job variables of the run", run.job_variables or {}, [{}]),
        ("parameters", given, ours.parameters),
    ):
        if found not in expected:
            raise UsageError(f"{what}: {FILE} says {expected[0]!r:.200}, the server {found!r:.200}")
    return ours


def _command_of(run: FlowRun, entry: Entry) -> RunCommand:
    """How a flow run is started: by prefect.yaml, whatever the server's settings, which may have changed since."""
    variables = entry.job_variables
    own = {name: None if value is None else str(value) for name, value in (variables.get("env") or {}).items()}
    # With its own entrypoint, the run neither requests one nor executes steps that pull code.
    ours = {
        "PREFECT__FLOW_RUN_ID": str(run.id),
        "PREFECT__FLOW_ENTRYPOINT": entry.entrypoint,
        ALLOWED: json.dumps(entry.parameters),
    }
    return shlex.split(variables.get("command") or _COMMAND), {**own, **ours}


def claim(client: SyncPrefectClient, pool: str) -> RunCommand | None:
    """Take the first due run that is one of prefect.yaml, None if there is none; others fail, and run nothing."""
    from prefect.states import Failed, Pending

    for found in client.get_scheduled_flow_runs_for_work_pool(pool, scheduled_before=datetime.now(UTC)):
        run = found.flow_run
        try:
            entry = _entry_of(client, run)
        except FadedError as why:
            message = f"refused: flow run {run.name} is not an audit of {Path.cwd()}: {why}"
            client.set_flow_run_state(run.id, Failed(message=message), force=True)
            continue
        state: State[Any] | None = client.set_flow_run_state(run.id, Pending()).state
        if state is not None and state.is_pending():  # otherwise it waits for another run of its audit
            return _command_of(run, entry)
    return None


def main() -> None:
    """Run a pool's audits until stopped, or with --once become the run that is due."""
    from prefect.client.orchestration import get_client

    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")
    enter_workspace()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pool")
    parser.add_argument("--once", action="store_true", help="become the run that is due; end at once if none is")
    given = parser.parse_args()
    if not given.once:
        from flows.serve import serve_pool

        serve_pool(given.pool)
        return
    with get_client(sync_client=True) as client:
        claimed = claim(client, given.pool)
    if claimed is not None:
        command, own = claimed
        env = {name: value for name, value in {**os.environ, **own}.items() if value is not None}
        os.execvpe(command[0], command, env)


if __name__ == "__main__":
    main()
