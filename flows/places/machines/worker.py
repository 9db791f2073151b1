"""The worker's side: a process in the worker's clone brings the stage up to date, watched by the runner's task."""

import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import BaseModel

from flows.places.machines.driver import within_repository
from flows.processes import child
from flows.run_stage import Shipment, StageResult, child_name
from stages.code import RECORD
from stages.core.environment import DEFAULTS
from stages.core.errors import BugError, InfrastructureError, RejectedError, UnavailableError, UsageError

WORKSPACE = "FADED_WORKSPACE"
_ERRORS = (UsageError, RejectedError, BugError, UnavailableError, InfrastructureError)


class Failure(BaseModel):
    """An error of the process in the clone."""

    error: str
    message: str


def run_there(shipment: Shipment, say: Callable[[str], None], env: Mapping[str, str] | None = None) -> StageResult:
    """Bring one stage up to date in this worker's clone, and push its outputs, which `made` of the result names.

    It runs in its own process, because a worker's threads share one current folder. The process ends with the worker,
    even on kill -9. Raises a UsageError if there is no clone here, or the stage refuses its input; a BugError if the
    stage fails in an unforeseen way; an InfrastructureError if the clone differs from the driver's, the remote fails,
    or the process is killed.
    """
    workspace = find_clone(shipment)
    with tempfile.TemporaryDirectory(prefix="faded-") as folder:
        order, answer = Path(folder, "shipment.json"), Path(folder, "answer.json")
        order.write_text(shipment.model_dump_json(), encoding="utf-8")
        command = ["flows.places.machines.clone", str(workspace), str(order), str(answer)]
        environment = {**DEFAULTS, **os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"}
        last = ""
        with child(child_name(shipment.stage), command, environment, records=Path(folder)) as process:
            assert process.stdout is not None
            for line in process.stdout:
                last = line.rstrip() or last
                say(line.rstrip())
            code = process.wait()
        told = answer.read_text(encoding="utf-8") if answer.exists() else ""
    if code == 0 and told:
        return StageResult.model_validate_json(told)
    if code > 0 and told:  # a killed process may have left half an answer
        failure = Failure.model_validate_json(told)
        error = next((error for error in _ERRORS if error.__name__ == failure.error), BugError)
        raise error(failure.message)
    raise InfrastructureError(f"{here(workspace)}: {shipment.stage} ended with {code} without an answer: {last}")


def find_clone(shipment: Shipment) -> Path:
    """The clone of this worker.

    Raises a UsageError if there is none at the given path, or it is not the same folder as the driver's workspace: the
    shipment would overwrite another workspace's params.yaml and dvc.yaml.
    """
    told = os.environ.get(WORKSPACE)
    workspace = Path(told or shipment.workspace).expanduser().absolute()
    source = WORKSPACE if told else "runner.workspace"
    below_dvc = any((folder / ".dvc").is_dir() for folder in (workspace, *workspace.parents))
    if not below_dvc or not (workspace / "dvc.yaml").is_file():
        raise UsageError(
            f"worker {socket.gethostname()} has no clone at {workspace} (from {source}): expected a folder with"
            " dvc.yaml in a DVC repository"
        )
    within = within_repository(workspace)
    if not (workspace / RECORD).is_file() or (shipment.within is not None and within not in (None, shipment.within)):
        expected = f", the folder {shipment.within} of its repository" if shipment.within not in (None, ".") else ""
        raise UsageError(
            f"{here(workspace)} (from {source}) is not what the driver's workspace is: expected a folder with"
            f" params.yaml, dvc.yaml and {RECORD}{expected}"
        )
    return workspace


def here(workspace: Path) -> str:
    """The machine and the clone, for people."""
    return f"{socket.gethostname()}:{workspace}"
