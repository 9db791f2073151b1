"""The process in a worker's clone: `python -m flows.places.machines.clone WORKSPACE SHIPMENT ANSWER`."""

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from flows.graph import audit_of
from flows.graph.intact import heal
from flows.graph.known_graph import code_in, note_linked_folders
from flows.graph.lock import LOCK as DVC_LOCK
from flows.graph.lock import read_lock
from flows.places.machines.driver import differs, hashes
from flows.places.machines.store import Store, open_store
from flows.places.machines.worker import Failure, here
from flows.run_stage import Shipment, ShipmentResult, StageResult, run_stage
from flows.workspace import exclusive, running_audit
from flows.workspace.pipeline import remove_path
from stages.code import CODE
from stages.core.environment import WORK
from stages.core.errors import FadedError, InfrastructureError, UsageError
from stages.core.files import locked, read_state, replace_file, write_state
from stages.params import DATA, load_params
from stages.provenance import versions

LOCK = WORK / "machines.lock"
BROUGHT = WORK / "machines.json"  # paths of outputs that shipments left here


def main() -> int:
    """Run a shipment's stage; its lines go to stdout, the result to the answer's file."""
    workspace, order, answer = (Path(argument) for argument in sys.argv[1:4])
    shipment = Shipment.model_validate_json(order.read_text(encoding="utf-8"))
    os.chdir(workspace)
    host = here(workspace)
    try:
        with locked(LOCK, lambda _: print(f"waits for another stage in {host}")), _nobodys_else(host):
            result = run_shipment(shipment, host)
    except FadedError as error:
        answer.write_text(Failure(error=type(error).__name__, message=str(error)).model_dump_json(), encoding="utf-8")
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
        lock = read_lock(DVC_LOCK.read_bytes())[shipment.stage]
        store.push(lock["outs"])
        store.remember(store.stage(shipment.stage))
    return result.model_copy(update={"made": ShipmentResult(host=host, lock=lock, versions=versions())})


def _bring_inputs(store: Store, shipment: Shipment, host: str) -> None:
    """Check out other stages' outputs into this clone; remove those of earlier shipments that are not inputs now."""
    if missing := store.pull(shipment.inputs):
        raise InfrastructureError(f"{host}: the DVC remote {store.name} lacks {', '.join(missing)}")
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


@contextlib.contextmanager
def _nobodys_else(host: str) -> Iterator[None]:
    """Lock the clone against audits started there, and refuse the driver's own workspace, which would be repaired."""
    if (process := running_audit()) is not None:
        raise UsageError(f"an audit runs in {host} (process {process}): expected a clone that is the worker's own")
    with exclusive():
        yield


if __name__ == "__main__":
    sys.exit(main())
