"""DVC's view of the workspace: stages, dependencies, and what is stale and why. dvc.yaml is the only graph."""

import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from flows.graph import known_graph
from flows.graph.lock import Hashes
from flows.workspace.pipeline import PARAMS, is_own
from stages.code import CODE, STAGE
from stages.core.errors import InfrastructureError, UsageError
from stages.params import load_params
from stages.params.network import ASK_NO_MODEL

if TYPE_CHECKING:
    from dvc.repo import Repo

FIRST_STAGES = ("prepare", "discover", "summarize", "report")  # an audit has at least these
RUNS_NOW = "runs now"
# Keys of code.json that are of settings, not of code, and what changed then.
SETTINGS = {"compute": "compute", "usage": "usage", "drawn": "usage"}
SHARE = "explore"  # its stages are named by audit and part: explore@mnist-2


@dataclass(frozen=True)
class Stage:
    """One stage of the graph, as it was when DVC was queried.

    Args:
        name: "discover@mnist".
        kind: "discover", the module under stages/.
        audit: "mnist", also for its share "explore@mnist-2"; empty for a stage that belongs to no audit.
        size: bytes of its outputs when it last ran, None if it never did.
        reasons: why it is stale; empty if it is up to date.
    """

    name: str
    kind: str
    audit: str
    gpus: int
    upstream: tuple[str, ...]
    size: int | None
    reasons: tuple[str, ...]

    @property
    def stale(self) -> bool:
        """Whether DVC would run it, or restore its outputs."""
        return bool(self.reasons)


@dataclass(frozen=True)
class Graph:
    """All stages, each after those it depends on."""

    stages: Mapping[str, Stage]

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages.values())

    def of(self, audits: Collection[str]) -> list[Stage]:
        """Stages of these audits, and all others that they depend on.

        Raises a UsageError if dvc.yaml makes no stages for an audit.
        """
        for audit in audits:
            missing = [kind for kind in FIRST_STAGES if f"{kind}@{audit}" not in self.stages]
            if missing:
                raise UsageError(f"dvc.yaml has no stage {', '.join(missing)} for audit {audit!r}")
        return self.upstream(stage.name for stage in self if stage.audit in audits)

    def to_do(self, audits: Collection[str]) -> list[Stage]:
        """Stale stages of these audits, and those that depend on them, which DVC may still find unchanged."""
        selected = self.of(audits)
        return self.downstream([stage.name for stage in selected if stage.stale], selected)

    def upstream(self, names: Iterable[str]) -> list[Stage]:
        reached = set(names)
        for stage in reversed(list(self)):
            if stage.name in reached:
                reached.update(stage.upstream)
        return [stage for stage in self if stage.name in reached]

    def downstream(self, names: Iterable[str], among: Iterable[Stage]) -> list[Stage]:
        """Those among some stages that have these names, or depend on one that has."""
        reached = set(names)
        for stage in self:
            if reached.intersection(stage.upstream):
                reached.add(stage.name)
        return [stage for stage in among if stage.name in reached]


def read_graph(root: Path = Path(), *, looks: bool = False) -> Graph:
    """Query DVC once for all stages and their state, under its lock, so that no stage is read while it is written.

    If nothing changed since the last query, its stored answer is used (flows/graph/known_graph.py). Raises an
    InfrastructureError if another process holds outputs of a stage, unless `looks`.

    Args:
        looks: whether nothing will be run, so that a stage that a process is running is reported as `RUNS_NOW`.
    """
    asked = time.time_ns()
    if (known := known_graph.recall(root, looks=looks)) is not None:
        return Graph({stage.name: stage for stage in TypeAdapter(list[Stage]).validate_python(known)})
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    # A stage that ends without a result changes no file, so the mark could not show that it is no longer running.
    lasting = not known_graph.is_at_work(root)
    logging.getLogger("dvc").setLevel(logging.ERROR)
    hashes = Hashes(root)
    _parse_params_once()
    try:
        with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
            believe_only_bytes(repo, hashes)
            known_graph.note_linked_folders(repo, root)
            ours = (root.resolve() / "dvc.yaml").relative_to(repo.root_dir).as_posix()
            modules = known_graph.name_code(repo, root, ours, looks=looks)
            wanted = _wanted(repo, root, ours)
            lasting = lasting and known_graph.all_local(wanted)
            paths = [*known_graph.paths_of(wanted), *modules] if lasting else []
            mark, _ = known_graph.mark_of(root, paths)
            graph = _snapshot(repo, root, ours, wanted, looks)
            found = [asdict(stage) for stage in graph]
    except LockError as error:
        raise InfrastructureError(f"DVC: {error}") from None
    except (DvcException, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"DVC cannot read the graph in {root.resolve()}: {_causes(error)}") from None
    finally:
        hashes.save()
    if lasting and not any(stage.reasons == (RUNS_NOW,) for stage in graph):
        known_graph.remember(root, known_graph.Known(looks, paths, mark, found), asked)
    return graph


def believe_only_bytes(repo: "Repo", hashes: Hashes) -> None:
    """Make DVC hash local files from their bytes, and correct the hashes it knows; the caller saves `hashes`."""
    repo.state = _Bytes(repo.state, hashes)
    for cache in (repo.cache.local, repo.cache.legacy):
        cache.state = repo.state


def _parse_params_once() -> None:
    """Make DVC parse params.yaml once: it parses it again for each stage, which takes seconds for ten audits."""
    from dvc.utils import serialize

    @lru_cache(maxsize=4)
    def parsed(text: str, path: str) -> Any:
        return serialize.parse_yaml(text, path)

    def load(path: str, fs: Any, **opened: Any) -> Any:
        try:
            with fs.open(path, encoding="utf-8", **opened) as file:
                text = file.read()
        except UnicodeDecodeError:
            return serialize.load_yaml(path, fs=fs, **opened)  # reports what is wrong
        return deepcopy(parsed(text, path))

    serialize.LOADERS[".yaml"] = load


class _Bytes:
    """DVC's memory of hashes (`dvc_data.hashfile.state`), except that hashes of files are computed from their bytes.

    DVC remembers hashes by inode, time and size, and trusts the name of an object that it puts into the workspace.
    Wrong entries are corrected, so that a later `dvc repro` in its own process also uses the right hashes.
    """

    def __init__(self, remembered: Any, hashes: Hashes) -> None:
        self._remembered, self._hashes = remembered, hashes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._remembered, name)

    def get(self, path: str, fs: Any, info: dict[str, Any] | None = None) -> tuple[Any, Any]:
        [(_, meta, found)] = self.get_many([path], fs, {} if info is None else {path: info})
        return meta, found

    def get_many(self, items: Iterable[str], fs: Any, infos: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
        from dvc_data.hashfile.hash_info import HashInfo
        from dvc_data.hashfile.meta import Meta

        remembered = self._remembered.get_many(items := list(items), fs, infos)
        if fs.protocol != "local":
            yield from remembered
            return
        self._hashes.learn(Path(path) for path in items)
        for path, _, before in remembered:
            if not Path(path).is_file():
                yield path, None, None
                continue
            info = infos.get(path) or fs.info(path)
            found = HashInfo("md5", self._hashes.md5(Path(path)))
            if before != found:
                self._remembered.save(path, fs, found, info)
            yield path, Meta.from_info(info), found


def _wanted(repo: Any, root: Path, ours: str) -> Any:
    """The stages of audits, as a graph with edges from a stage to those it depends on."""
    import networkx

    graph = repo.index.graph
    # A repository may have other pipelines. In a clone, those that audits depend on are included; in a custom workspace
    # none are, as what was there before is the user's to run.
    wanted = {stage for stage in graph if _audit(stage, ours)}
    if not is_own(root):
        wanted |= {needed for stage in wanted for needed in networkx.descendants(graph, stage)}
    return graph.subgraph(wanted)


def _snapshot(repo: Any, root: Path, ours: str, graph: Any, looks: bool) -> Graph:
    import networkx

    params = load_params(root / PARAMS)
    # Stages `code` are always up to date.
    graph = graph.subgraph(stage for stage in graph if known_graph.stage_kind(stage) != STAGE)
    position = {stage: i for i, stage in enumerate(repo.index.stages)}
    ordered = networkx.lexicographical_topological_sort(graph.reverse(copy=False), key=position.__getitem__)
    stages: dict[str, Stage] = {}
    for stage in ordered:
        name, audit = _name(stage, ours), _audit(stage, ours)
        kind = name.partition("@")[0]
        upstream = tuple(sorted(_name(needed, ours) for needed in graph.successors(stage)))
        reasons = _reasons(stage, looks)
        if reasons == (RUNS_NOW,) and any(stages[needed].reasons == reasons for needed in upstream):
            reasons = ()  # not running itself: its inputs are being written
        gpus = 0  # stages that probe no model need none
        if audit and kind not in ASK_NO_MODEL:
            of_repair = kind in ("restructure", "re_evaluate")
            gpus = params.repair(audit).gpus if of_repair else params.audit(audit).compute.gpus
        sizes = [out.meta.size for out in stage.outs if out.meta and out.meta.size is not None]
        stages[name] = Stage(
            name=name,
            kind=kind,
            audit=audit,
            gpus=gpus,
            upstream=upstream,
            size=sum(sizes) if sizes else None,
            reasons=reasons,
        )
    return Graph(stages)


def _audit(stage: Any, ours: str) -> str:
    """The audit that a stage of the workspace's dvc.yaml belongs to; empty for other pipelines and `dvc add`."""
    return audit_of(str(stage.name)) if stage.path_in_repo == ours else ""


def audit_of(stage: str) -> str:
    """The audit of a stage, by its name in dvc.yaml; shares of a search are named by audit and part."""
    kind, _, audit = stage.partition("@")
    return audit.rpartition("-")[0] if kind == SHARE else audit


def _name(stage: Any, ours: str) -> str:
    # Not `stage.addressing`, which depends on the current folder. Files tracked by `dvc add` have no name.
    name = getattr(stage, "name", None)
    where = str(stage.path_in_repo)
    return str(name) if name and where == ours else f"{where}:{name}" if name else where


def _reasons(stage: Any, looks: bool) -> tuple[str, ...]:
    from dvc.lock import LockError

    try:
        status = [entry for entries in stage.status().values() for entry in entries]
    except LockError:
        if looks:
            return (RUNS_NOW,)
        raise
    changed = any(entry.get("changed deps") for entry in status if isinstance(entry, dict))
    if changed and not any(dep.hash_info for dep in stage.deps):
        return ("never ran",)
    reasons = []
    for entry in status:
        if isinstance(entry, str):
            reasons.append(entry)
            continue
        for what, changes in entry.items():
            for path, change in changes.items():
                if isinstance(change, dict) and Path(path).name == CODE.name:
                    kinds = dict.fromkeys(SETTINGS.get(key, "code") for key in change)
                    reasons += [f"{kind} changed" for kind in kinds]
                elif isinstance(change, dict):  # a params file: {key: change}
                    reasons += [f"{key} {value}" for key, value in change.items()]
                else:
                    reasons.append(f"{path} {'missing' if change == 'deleted' and 'outs' in what else change}")
    return tuple(reasons)


def _causes(error: BaseException) -> str:
    said, cause = " ".join(str(error).split()), error.__cause__
    return ": ".join(filter(None, [said, _causes(cause) if cause is not None else ""]))
