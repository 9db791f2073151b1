"""The worker's side: a process in the worker's clone brings the stage up to date, watched by the runner's task.

The process is `python -m flows.places.machines.worker WORKSPACE SHIPMENT ANSWER`.
"""

import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import yaml

from flows.graph import audit_of
from flows.graph.intact import heal
from flows.graph.known_graph import code_in, note_linked_folders
from flows.graph.lock import locked_stages
from flows.places.machines.driver import differs, hashes, within_repository
from flows.places.machines.store import Store, open_store
from flows.processes import child
from flows.run_stage import Shipment, ShipmentResult, StageResult, child_name, run_stage
from flows.workspace import exclusive, running_audit
from flows.workspace.pipeline import remove_path
from stages.code import CODE, RECORD
from stages.core.environment import DEFAULTS, WORK
from stages.core.errors import (
    BugError,
    FadedError,
    InfrastructureError,
    RejectedError,
    UnavailableError,
    UsageError,
)
from stages.core.files import locked, read_state, replace_file, write_state
from stages.params import DATA, load_params
from stages.provenance import versions

WORKSPACE = "FADED_WORKSPACE"
LOCK = WORK / "machines.lock"
BROUGHT = WORK / "machines.json"  # paths of outputs that shipments left here
_ERRORS = (UsageError, RejectedError, BugError, UnavailableError, InfrastructureError)


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
        command = ["flows.places.machines.worker", str(workspace), str(order), str(answer)]
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
        name, message = json.loads(told)
        raise next((error for error in _ERRORS if error.__name__ == name), BugError)(message)
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


def main() -> int:
    """Run a shipment's stage; its lines go to stdout, the result to the answer's file."""
    workspace, order, answer = (Path(argument) for argument in sys.argv[1:4])
    shipment = Shipment.model_validate_json(order.read_text(encoding="utf-8"))
    os.chdir(workspace)
    host = here(workspace)
    try:
        with locked(LOCK, lambda _: print(f"waits for another stage in {host}")):
            if (process := running_audit()) is not None:  # in the driver's own workspace, which would be repaired
                raise UsageError(
                    f"an audit runs in {host} (process {process}): expected a clone that is the worker's own"
                )
            with exclusive():
                result = run_shipment(shipment, host)
    except FadedError as error:
        answer.write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        return int(error.exit_code)
    answer.write_text(result.model_dump_json(), encoding="utf-8")
    return 0


def run_shipment(shipment: Shipment, host: str) -> StageResult:
    """Bring the stage up to date in the current clone, and push its outputs to the remote."""
    for line in heal():
        print(f"healed: {line}")
    stages = {shipment.stage: shipment.lock} if shipment.lock else {}
    texts = {**shipment.files, "dvc.lock": yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False)}
    for name, text in texts.items():
        replace_file(Path(name), text)
    with open_store(shipment.remote) as store:
        _bring_inputs(store, shipment, host)
        _check_code(shipment, host)
        note_linked_folders(store.repo)
        stage = store.stage(shipment.stage)
        mine = hashes(stage)
        for path in sorted(shipment.hashes):
            if mine.get(path) != shipment.hashes[path]:
                raise differs(shipment, host, f"bytes under {path}")
        known = store.recall(stage)
        if not known and shipment.lock is not None and not stage.cmd_changed:
            store.pull(shipment.lock.get("outs", []))  # DVC also looks into dvc.lock before it runs a stage
        _note(out.def_path for out in stage.outs)
    result = run_stage(shipment.stage, print)
    with open_store(shipment.remote) as store:
        lock = locked_stages()[shipment.stage]
        store.push(lock["outs"])
        store.remember(store.stage(shipment.stage))
    return result.model_copy(update={"made": ShipmentResult(host=host, lock=lock, versions=versions())})


def _bring_inputs(store: Store, shipment: Shipment, host: str) -> None:
    """Check out other stages' outputs into this clone; remove those of earlier shipments that are not inputs now."""
    if missing := store.pull(shipment.inputs):
        raise InfrastructureError(f"{host}: the DVC remote {store.remote} lacks {', '.join(missing)}")
    wanted = {entry["path"] for entry in shipment.inputs}
    folders = [Path(path) for path in shipment.hashes]
    for path in _brought() - wanted:
        if any(folder in Path(path).parents for folder in folders):  # several stages write to this folder
            remove_path(Path(path))
    _note(wanted)
    store.checkout(shipment.inputs)


def _check_code(shipment: Shipment, host: str) -> None:
    """Refuse to run code that differs from the driver's, by the code.json that it sent."""
    kind, audit = shipment.stage.partition("@")[0], audit_of(shipment.stage)
    theirs = json.loads((DATA / audit / CODE).read_text(encoding="utf-8"))
    if code_in(Path()).digest(load_params().audit(audit), kind) != theirs.get(kind):
        raise differs(shipment, host, f"code for {shipment.stage}")


def _brought() -> set[str]:
    return set(read_state(BROUGHT, list[str]) or [])


def _note(paths: Iterable[str]) -> None:
    write_state(BROUGHT, sorted(_brought() | set(paths)))


if __name__ == "__main__":
    sys.exit(main())
