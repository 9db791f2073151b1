"""The driver's side: what a worker is sent, and how its outputs reach the driver's workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.places.machines.store import Store, entry_of, open_store
from flows.request import GATED
from flows.run_stage import Entry, Shipment, ShipmentResult
from stages.core.errors import InfrastructureError, UsageError
from stages.core.git import git
from stages.params import RunnerConfig, load_params
from stages.provenance import versions

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

_TEXTS = ("params.yaml", "dvc.yaml", "faded.json")


def check_machines(config: RunnerConfig) -> None:
    """Refuse, before anything runs, a configuration in which workers with their own clones could not share outputs.

    Raises a UsageError if no DVC remote is configured, the named one is missing, or it cannot be shared; an
    InfrastructureError if it does not respond.
    """
    if config.workspace is None:
        return
    if config.kind == "threads":
        raise UsageError(
            "runner.workspace is for workers on other machines: expected runner.kind dask or ray, found threads"
        )
    with open_store(config.remote) as store:
        store.check()


def travels(stage: str) -> bool:
    """Whether a stage may run in a worker's clone: not if it needs people's decisions, or is of another pipeline."""
    return ":" not in stage and not stage.endswith(".dvc") and stage.partition("@")[0] != GATED


def pack(stage: str, config: RunnerConfig) -> Shipment | None:
    """Push a stage's inputs to the remote, and describe everything else that a worker needs.

    Everything the stage depends on is up to date in this workspace. None if this clone already has the outputs, so that
    DVC has nothing to execute here. Raises an InfrastructureError if the remote fails, or an input is missing.
    """
    from dvc.repo import lock_repo

    assert config.workspace is not None
    with open_store(config.remote) as store:
        with lock_repo(store.repo):
            known = store.repo.stage.collect(stage)[0]
            if not known.status():
                return None
            reads = store.stage(stage)
            if store.recall(reads, here_only=True):
                return None
            inputs = _inputs(store, reads)
            ratings = (audit.ratings.file for audit in load_params().audits.values() if audit.ratings is not None)
            texts = [path for path in dict.fromkeys([*_TEXTS, *ratings]) if Path(path).is_file()]
            files = {path: Path(path).read_text(encoding="utf-8") for path in texts}
        store.push(inputs)
    return Shipment(
        stage=stage,
        files=files,
        lock=known.dvcfile.lockfile_contents.get("stages", {}).get(stage),
        inputs=inputs,
        hashes=hashes(reads),
        revision=git("rev-parse", "--short", "HEAD"),
        workspace=config.workspace,
        within=within_repository(Path.cwd()),
        remote=config.remote,
    )


def take_back(shipment: Shipment, made: ShipmentResult) -> None:
    """Bring a worker's outputs into this workspace, as if the stage had run here.

    Raises an InfrastructureError if they were made from other inputs than were sent, are not in the remote, or the
    workspace changed meanwhile.
    """
    from dvc.repo import lock_repo
    from dvc.stage.loader import StageLoader

    with open_store(shipment.remote) as store:
        stage = store.repo.stage.collect(shipment.stage)[0]
        outs = _checked(shipment, made, stage)
        if missing := store.pull(outs):
            raise InfrastructureError(
                f"{shipment.stage} ran on {made.host}, but the DVC remote {store.remote} lacks {', '.join(missing)}"
            )
        with lock_repo(store.repo):
            plain = [out.def_path for out in stage.outs if not out.use_cache]
            store.checkout(outs, plain)
            StageLoader.fill_from_lock(stage, made.lock)
            stage.dump(update_pipeline=False)
            store.repo.stage_cache.save(stage)
            if stale := store.repo.stage.collect(shipment.stage)[0].status():
                changes = [entry for entries in stale.values() for entry in entries]
                groups = [group for entry in changes if isinstance(entry, dict) for group in entry.values()]
                told = ", ".join(path for group in groups for path in group) or changes
                raise InfrastructureError(
                    f"{shipment.stage} ran on {made.host}, but this workspace changed meanwhile: {told}"
                )


def other_packages(made: ShipmentResult) -> str:
    """The packages that a worker has in other versions than the driver, as a sentence; empty if there are none.

    Packages that one side lacks are ignored, and so are builds ("+cu128"), as drivers often have no GPU.
    """
    here = versions()
    differing = [
        f"{name} {there} (here {here[name]})"
        for name, there in made.versions.items()
        if name in here and name != "faded" and there.partition("+")[0] != here[name].partition("+")[0]
    ]
    return f"{made.host} has {', '.join(differing)}: results are of its versions" if differing else ""


def hashes(stage: PipelineStage) -> dict[str, str]:
    """MD5 of each existing file and folder that a stage reads, by path; parameters travel as files."""
    from dvc.dependency import ParamsDependency

    read = [dep for dep in stage.deps if not isinstance(dep, ParamsDependency)]
    return {dep.def_path: str(dep.hash_info.value) for dep in read if dep.hash_info}


def _checked(shipment: Shipment, made: ShipmentResult, stage: PipelineStage) -> list[Entry]:
    """The worker's outputs, after checking that they belong to this stage and were made from the inputs it was sent."""
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from voluptuous import Invalid

    try:
        lock = COMPILED_LOCK_FILE_STAGE_SCHEMA(made.lock)
    except Invalid as error:
        raise InfrastructureError(f"{made.host} sent no record of {shipment.stage}: {error}") from None
    outs: list[Entry] = list(lock.get("outs", []))
    read = {dep["path"]: dep.get("md5") for dep in lock.get("deps", [])}
    for path in sorted(shipment.hashes.keys() | read.keys()):
        if read.get(path) != shipment.hashes.get(path):
            raise differs(shipment, made.host, f"bytes under {path}")
    if lock["cmd"] != stage.cmd or {out["path"] for out in outs} != {out.def_path for out in stage.outs}:
        raise InfrastructureError(f"{made.host} has another dvc.yaml than the driver: {shipment.stage} is not the same")
    return outs


def differs(shipment: Shipment, host: str, what: str) -> InfrastructureError:
    """The error for a worker's clone with other bytes at a path that the stage reads, or other code than the driver."""
    state = f"commit {shipment.revision}" if shipment.revision else "the driver's state"
    return InfrastructureError(f"worker {host} has other {what} than the driver: bring its clone to {state}")


def _inputs(store: Store, stage: PipelineStage) -> list[Entry]:
    """Outputs of other stages, and files tracked by `dvc add`, at, below or above the paths that a stage reads."""
    here = Path.cwd()
    paths = [Path(dep.fs_path) for dep in stage.deps]
    outs = {}
    for out in store.repo.index.outs:
        path = Path(out.fs_path)
        related = any(path == p or path in p.parents or p in path.parents for p in paths)
        if related and out.hash_info and here in path.parents:
            outs[path] = entry_of(out)
    return list(outs.values())


def within_repository(folder: Path) -> str | None:
    """A folder's path in its git repository, "." for the root; None if it is not in one."""
    prefix = git("rev-parse", "--show-prefix", folder=folder)
    return None if prefix is None else prefix.rstrip("/") or "."
