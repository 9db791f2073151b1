"""The DVC remote that machines share: outputs by content, and DVC's records of the runs that made them.

DVC's own commands move either too little (`pull` leaves out metrics that are kept in git) or too much (`--run-cache`
moves the records of all runs ever). So outputs are moved by their hashes, and of the run-cache only the folder for a
stage and its inputs.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.graph.intact import CacheFolder, refill, remove_damaged
from flows.graph.lock import Hashes
from flows.run_stage import Entry
from stages.core.errors import FadedError, InfrastructureError, UsageError, did_you_mean

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

# Seconds and attempts until a remote counts as unreachable; the user's own settings take precedence.
_S3_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 30}
_S3_ATTEMPTS = "2"


class Store:
    """A clone's view of the remote; open it with `open_store`."""

    def __init__(self, repo: Repo, remote: str | None) -> None:
        self.repo, self.remote = repo, remote

    def check(self) -> None:
        """Refuse a remote that cannot be shared, or has no bucket. Raises a UsageError with the existing remotes."""
        named = sorted(self.repo.config["remote"])
        if self.remote is not None and self.remote not in named:
            raise UsageError(
                f"runner.remote: no DVC remote {self.remote!r}, found: {', '.join(named) or 'none'}"
                f"{did_you_mean(self.remote, named)}"
            )
        odb = self.repo.cloud.get_remote_odb(self.remote, "push")  # refuses versioned remotes
        if odb.fs.protocol != "s3":
            odb.fs.exists(odb.path)
            return
        bucket = odb.fs.parts(odb.path)[0]
        with contextlib.suppress(PermissionError):  # permission for the bucket as a whole
            try:
                odb.fs.info(bucket)
            except FileNotFoundError:
                raise UsageError(f"DVC remote {self.remote}: there is no bucket {bucket!r}") from None

    def stage(self, name: str) -> PipelineStage:
        """A stage of dvc.yaml with the current hashes of its inputs, empty for those that are missing."""
        from dvc_data.hashfile.hash_info import HashInfo

        stage = self.repo.stage.collect(name)[0]
        for dep in stage.deps:
            if dep.exists:
                dep.save()
            else:
                dep.hash_info = HashInfo()
        return stage

    def outputs(self, entries: Sequence[Entry]) -> list[Output]:
        """Outputs by content. DVC keeps all of these in its cache, including those that a stage leaves to git."""
        from dvc.stage import PipelineStage, create_stage
        from dvc.stage.loader import StageLoader

        holder = create_stage(
            PipelineStage, self.repo, "dvc.yaml", cmd="true", outs=[entry["path"] for entry in entries]
        )
        StageLoader.fill_from_lock(holder, {"outs": list(entries)})
        return list(holder.outs)

    def push(self, entries: Sequence[Entry]) -> None:
        """Push outputs that the remote lacks.

        Raises an InfrastructureError if one is neither here nor there, or the remote does not accept it.
        """
        outputs = self.outputs(entries)
        refill(outputs)  # a metric may have come through git, another output from the user's `dvc repro --no-commit`
        failed = self._each(outputs, lambda objects: self.repo.cloud.push(objects, remote=self.remote).failed)
        if failed:
            raise InfrastructureError(f"the DVC remote {self.remote} did not accept {', '.join(failed)}")

    def pull(self, entries: Sequence[Entry]) -> list[str]:
        """Pull outputs into this clone's cache; return the paths of those that neither cache nor remote has completely.

        Objects that do not match their names are removed from both, so that they can be pushed again.
        """
        hashes, cache = Hashes(), CacheFolder(Path(self.repo.cache.local.path))
        for entry in entries:
            for file in cache.damaged(entry["md5"], hashes):
                remove_damaged(file)
                print(f"removed from DVC's cache, because it does not match its name: {file} (of {entry['path']})")
        hashes.save()
        outputs = [out for out in self.outputs(entries) if out.changed_cache()]
        self._each(outputs, lambda objects: self.repo.cloud.pull(objects, remote=self.remote).failed)
        missing = [out for out in outputs if out.changed_cache()]
        self._drop_damaged_there(missing)
        return [out.def_path for out in missing]

    def _drop_damaged_there(self, outputs: Sequence[Output]) -> None:
        """Remove objects from the remote that do not match their names, among those that did not arrive."""
        from dvc_data.hashfile.db import get_index
        from dvc_data.hashfile.hash import file_md5

        odb = self.repo.cloud.get_remote_odb(self.remote, "pull")
        for out in outputs:
            cache = CacheFolder(Path(self.repo.cache.local.path))  # of this clone; only what it lacks is looked at
            names = dict.fromkeys([out.hash_info.value, *cache.listed(out.hash_info.value).values()])
            paths = [(oid, odb.oid_to_path(oid)) for oid in names if not cache.path(oid).is_file()]
            there = [(oid, path) for oid, path in paths if odb.fs.exists(path)]
            damaged = [path for oid, path in there if file_md5(path, odb.fs) != oid.removesuffix(".dir")]
            for path in damaged:
                self._remove_there(odb, path)
                print(f"removed from the DVC remote {self.remote}, because it does not match its name: {path}")
            # While DVC's index or the remote has a folder's list, DVC assumes that its files are there as well.
            if damaged:
                get_index(odb).clear()
                whole = odb.oid_to_path(out.hash_info.value)
                if odb.fs.exists(whole):
                    self._remove_there(odb, whole)

    def _remove_there(self, odb: Any, path: str) -> None:
        try:
            odb.fs.remove(path)
        except Exception as error:  # from any library that accesses the remote
            raise InfrastructureError(
                f"{path} in the DVC remote {self.remote} does not match its name, and cannot be removed ({error}):"
                " remove it there"
            ) from None

    def _each(self, outputs: Sequence[Output], transfer: Callable[[Any], Any]) -> list[str]:
        failed = []
        for out in outputs:
            # `force` avoids a prompt about a folder whose list is nowhere; the caller reports it.
            used = out.get_used_objs(remote=self.remote, force=True)
            if not used or any(transfer(objects) for objects in used.values()):
                failed.append(out.def_path)
        return failed

    def checkout(self, entries: Sequence[Entry], plain: Sequence[str] = ()) -> None:
        """Put outputs from the cache into the workspace; those that git tracks (`plain`) must not be links into it."""
        for out in self.outputs(entries):
            with self._copying() if out.def_path in plain else contextlib.nullcontext():
                out.checkout(force=True)

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        caches = (self.repo.cache.local, self.repo.cache.legacy)
        types = [cache.cache_types for cache in caches]
        for cache in caches:
            cache.cache_types = ["copy"]
        try:
            yield
        finally:
            for cache, before in zip(caches, types, strict=True):
                cache.cache_types = before

    def recall(self, stage: PipelineStage, *, here_only: bool = False) -> bool:
        """Fetch the outputs of an earlier run on the same inputs into the cache, so that DVC need not run the stage."""
        if (folder := self._runs(stage)) is None:
            return False
        if not here_only:
            self._pull_runs(folder)
        for path in sorted(folder.glob("*"), key=lambda p: p.stat().st_mtime, reverse=True):
            entries = _read_run(path)
            if entries is None:
                continue
            absent = [out for out in self.outputs(entries) if out.changed_cache()] if here_only else self.pull(entries)
            if not absent:
                os.utime(path)  # DVC uses the newest record of runs on the same inputs
                return True
        return False

    def remember(self, stage: PipelineStage) -> None:
        """Push DVC's record of the run that made a stage's current outputs to the remote; the outputs come first."""
        from dvc.stage.cache import _get_cache_hash
        from dvc.stage.serialize import to_single_stage_lockfile
        from dvc_objects.fs.utils import as_atomic

        if (folder := self._runs(stage)) is None or (there := self._runs_there(folder)) is None:
            return
        fs, target = there
        record = folder / _get_cache_hash(to_single_stage_lockfile(stage))
        target = fs.join(target, record.name)
        if record.exists() and not fs.exists(target):
            with as_atomic(fs, target, create_parents=True) as partial:
                fs.put_file(str(record), partial)

    def _runs(self, stage: PipelineStage) -> Path | None:
        """The folder of DVC's records of a stage's runs on the same inputs; None if DVC keeps none for this stage."""
        from dvc.stage.cache import _can_hash, _get_stage_hash

        if not _can_hash(stage):
            return None
        key = _get_stage_hash(stage)
        return Path(self.repo.stage_cache.cache_dir, key[:2], key)

    def _runs_there(self, folder: Path) -> tuple[Any, str] | None:
        """The same folder in the remote, with its file system; None if DVC keeps no records there (HTTP)."""
        from dvc.fs import HTTPFileSystem

        odb = self.repo.cloud.get_remote_odb(self.remote, "fetch --run-cache", hash_name="md5-dos2unix")
        if isinstance(odb.fs, HTTPFileSystem):
            return None
        return odb.fs, odb.fs.join(odb.path, "runs", *folder.parts[-2:])

    def _pull_runs(self, folder: Path) -> None:
        if (there := self._runs_there(folder)) is None:
            return
        fs, source = there
        for path in fs.find(source) if fs.exists(source) else []:
            target = folder / fs.name(path)
            if not target.exists():
                folder.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f".{target.name}.partial")
                fs.get_file(path, str(partial))
                partial.replace(target)


def _read_run(path: Path) -> list[Entry] | None:
    from dvc.schema import COMPILED_LOCK_FILE_STAGE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml
    from voluptuous import Invalid

    try:
        return list(COMPILED_LOCK_FILE_STAGE_SCHEMA(load_yaml(str(path)))["outs"])
    except (YAMLFileCorruptedError, Invalid, KeyError, OSError):
        return None


def entry_of(out: Output) -> Entry:
    """An output's entry as in dvc.lock, with its path relative to the workspace, the current folder."""
    meta = {key: value for key, value in out.meta.to_dict().items() if key != "isdir"} if out.meta else {}
    modern = {} if out.hash_name == "md5-dos2unix" else {"hash": "md5"}
    path = Path(out.fs_path).relative_to(Path.cwd()).as_posix()
    return {"path": path, **modern, "md5": out.hash_info.value, **meta}


@contextlib.contextmanager
def open_store(remote: str | None) -> Iterator[Store]:
    """Open the DVC repository of the current folder, and turn errors of its remote into messages for people.

    Raises a UsageError if there is no such remote, or the package to access it is missing; an InfrastructureError if
    the remote does not respond, or DVC fails otherwise.
    """
    from dvc.config import ConfigError
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    os.environ.setdefault("AWS_MAX_ATTEMPTS", _S3_ATTEMPTS)
    try:
        with Repo(_wait_for_lock=True) as repo:
            remote = remote or repo.config["core"].get("remote")
            settings = repo.config["remote"].get(remote, {})
            if str(settings.get("url", "")).startswith("s3://"):
                settings = {**_S3_TIMEOUTS, **settings}
            if settings:
                repo.config["remote"][remote] = {**settings, "verify": True}  # hash pulled objects
            yield Store(repo, remote)
    except (ConfigError, ImportError) as error:
        raise UsageError(
            f"workers in clones of their own (runner.workspace) share a DVC remote with the driver: {_line(error)}"
        ) from None
    except FadedError:
        raise
    except Exception as error:
        # Errors of DVC, the system and libraries that access the remote; any other is a bug in Faded.
        if not isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise
        raise InfrastructureError(f"DVC remote {remote or '(default)'}: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
