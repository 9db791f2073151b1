"""Checks that an audit's outputs are, byte for byte, what its stages wrote.

DVC trusts the name of an object in its cache, its memory of a file's hash, and whatever is committed. So the bytes are
hashed here and compared with dvc.lock, and with the SHA-256 of inputs and outputs that each stage wrote to
provenance.json. Only a signature helps against somebody who can rewrite all of these.

What a crash or an upgrade left in a workspace is repaired, so that the same command can just be run again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import psutil
from pydantic import BaseModel, Field, ValidationError

from flows.graph import Graph, audit_of, believe_only_bytes, read_graph
from flows.graph.lock import LOCK, Hashes, directory_md5, locked_stages
from flows.processes import end_leftovers
from flows.workspace.pipeline import dvc_root, update_pipeline
from stages.code import CODE
from stages.core.environment import WORK
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import put_aside, replace_file
from stages.core.git import file_at
from stages.params import DATA, Params, load_params

if TYPE_CHECKING:
    from dvc.repo import Repo


RECORD = "provenance.json"
_NOT_OF_STAGES = {"inputs", "decisions", "shards"}  # folders of data/<audit> that people or shares fill
_MOST_TOLD = 5
_IS_MD5 = re.compile(r"[0-9a-f]{32}(\.dir)?")


@dataclass(frozen=True)
class Damage:
    """A file that is not as its stage left it: an output, its copy in DVC's cache, or what its stage recorded of it."""

    stage: str
    path: Path
    told: str
    where: Literal["workspace", "cache", "record"]

    def __str__(self) -> str:
        return f"{self.path} {self.told}"


class DamagedError(InfrastructureError):
    """Outputs are not what their stages wrote, so nothing is concluded from them."""


def check_intact(audit: str) -> None:
    """Compare all outputs of an audit's stages with dvc.lock and the stages' records; missing files are just stale.

    Raises a DamagedError with the differences and the command that repairs them.
    """
    if not (damages := find_damage(stages_of([audit]))):
        return
    if _of_another_run(damages):
        told = "\n".join(f"  {line}" for line in _few([str(damage.path) for damage in damages]))
        raise DamagedError(
            f"the results of {audit!r} here are of another run than {LOCK} names, as after `git checkout` or an"
            f" experiment, so they are not used:\n{told}\nrun `dvc checkout` for those that {LOCK} names"
        )
    told = "\n".join(f"  {line}" for line in _few([str(damage) for damage in damages]))
    raise DamagedError(
        f"audit {audit!r} is not what its stages wrote, so it is not used:\n{told}\n"
        f"`faded audit {audit}` restores or recomputes it"
    )


def _of_another_run(damages: Iterable[Damage]) -> bool:
    """Whether a stage wrote all these files, only not when dvc.lock was written: DVC's cache has them."""
    cache, hashes = CacheFolder.of_workspace(), Hashes()
    return all(
        damage.where == "workspace" and damage.path.is_file() and cache.holds(hashes.md5(damage.path), hashes)
        for damage in damages
    )


def _few(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_TOLD
    return lines if more <= 0 else [*lines[:_MOST_TOLD], f"and {more} more"]


def mend(stages: Collection[str]) -> list[str]:
    """Make DVC notice damaged outputs of stages, so that it restores or redoes them; return what was wrong in lines.

    Damaged copies in DVC's cache are removed, and results that contradict their own stage's record from dvc.lock and
    the run-cache. Raises an InfrastructureError if the cache cannot be written.
    """
    if not find_damage(stages):
        return []
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo

    hashes = Hashes()
    try:
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            believe_only_bytes(repo, hashes)
            damages = find_damage(stages)  # again, as no stage is running on them now
            for damage in damages:
                if damage.where == "cache":
                    remove_damaged(damage.path)
            contradicted = {damage.stage for damage in damages if damage.where == "record"}
            for name in dict.fromkeys(damage.stage for damage in damages):
                for stage in repo.stage.collect(name):
                    if name in contradicted:
                        _forget(repo, stage)
                    else:
                        refill(stage.outs)
    except DvcException as error:
        raise InfrastructureError(f"DVC: {error}") from None
    hashes.save()
    copies = {damage.path: damage for damage in damages if damage.where == "cache"}  # several outputs may share a copy
    removed = [f"{damage}: removed" for damage in copies.values()]
    # `faded plan` writes what names the code, too.
    outputs = [damage for damage in damages if damage.where != "cache" and damage.path.name != CODE.name]
    redone = [f"{damage}: {damage.stage} is restored or run again" for damage in outputs]
    return [*_few(removed), *_few(redone)]


def remove_damaged(path: Path) -> None:
    """Remove an object of DVC's cache that does not match its name.

    Raises an InfrastructureError if the cache cannot be written.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise InfrastructureError(
            f"{path} does not match its name, and cannot be removed ({error.strerror}): remove it yourself"
        ) from None


def refill(outs: Iterable[Any]) -> None:
    """Add correct outputs of the workspace that DVC's cache lacks, or their stage would have to run again."""
    for out in outs:
        if out.use_cache and out.changed_cache() and out.exists and not out.changed_checksum():
            out.commit(relink=False)


def _forget(repo: Repo, stage: Any) -> None:
    """Remove a result from dvc.lock and from DVC's run-cache, from which it would be restored."""
    from dvc.stage.cache import _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    with contextlib.suppress(FileNotFoundError):  # an input of the stage is missing, or there is no such run
        key, wrong = _get_stage_hash(stage), _hashed(to_single_stage_lockfile(stage), "outs")
        runs = Path(repo.stage_cache.cache_dir, key[:2], key)
        for run in list(runs.iterdir()):  # compared by outputs, as somebody may have edited a run under its old name
            if _hashed(repo.stage_cache._load_cache(key, run.name) or {}, "outs") == wrong:
                run.unlink()
        with contextlib.suppress(OSError):  # the folder has other runs
            runs.rmdir()  # DVC assumes that a folder has a record
    stage.dvcfile._lockfile.remove_stage(stage)


def stages_of(audits: Collection[str]) -> list[str]:
    """Names of the audits' stages in dvc.lock, including shares of a search."""
    return [name for name in locked_stages() if audit_of(name) in audits]


def find_damage(stages: Collection[str]) -> list[Damage]:
    """Find differences between dvc.lock, outputs in the workspace, their copies in DVC's cache, and stages' records."""
    locked = {name: entry for name, entry in locked_stages().items() if name in stages}
    if not locked:
        return []
    hashes, cache = Hashes(), CacheFolder.of_workspace()
    outs = [(name, path, md5) for name, entry in locked.items() for path, md5 in _hashed(entry, "outs").items()]
    hashes.learn(f for _, path, md5 in outs for f in (*_files(path), *cache.objects(md5, cache.listed(md5))))
    found = [damage for out in outs for damage in _of_output(*out, hashes, cache)]
    # A file that was swapped after it was written is not also a contradiction between stages.
    known = {path for damage in found for path in (damage.path, *damage.path.parents)}
    for name, entry in locked.items():
        found += [damage for damage in _of_record(name, entry, hashes) if damage.path not in known]
    hashes.save()
    return found


def _hashed(entry: Mapping[str, Any], key: str) -> dict[Path, str]:
    """MD5 by path of a stage's `outs` or `deps` in dvc.lock."""
    named = [one for one in entry.get(key) or [] if isinstance(one, dict)]
    return {Path(one["path"]): str(one["md5"]) for one in named if "path" in one and "md5" in one}


def _of_output(stage: str, path: Path, md5: str, hashes: Hashes, cache: CacheFolder) -> Iterator[Damage]:
    written = cache.listed(md5) if cache.holds(md5, hashes) else {}
    if path.exists() and (present := _listed(path, hashes)) is not None:
        found = directory_md5(present.items()) if path.is_dir() else present["."]
        if found == md5:
            written = present
        elif not _is_as_dvc_hashes(path, md5):
            unlike = [name for name in {*written, *present} if written.get(name) != present.get(name)]
            for name in sorted(unlike) if written else ["."]:
                yield Damage(stage, path / name, f"is not what {stage} wrote ({LOCK})", "workspace")
    for file in cache.objects(md5, written):
        if not cache.is_whole(file, hashes):
            yield Damage(stage, file, f"(DVC's copy of {path}) does not match the hash in its name", "cache")


def _listed(path: Path, hashes: Hashes) -> dict[str, str] | None:
    """MD5 of a file, as ".", or of each file in a folder; None if it disappears meanwhile."""
    try:
        return {file.relative_to(path).as_posix(): hashes.md5(file) for file in _files(path)}
    except FileNotFoundError:
        return None


def _files(path: Path) -> list[Path]:
    """A file, or all files in a folder as DVC finds them; empty if the path is missing."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(Path(here) / name for here, _, names in os.walk(path) for name in names)


def _is_as_dvc_hashes(path: Path, md5: str) -> bool:
    """Whether a folder is unchanged except for files that .dvcignore names."""
    if not path.is_dir():
        return False
    from dvc.repo import Repo
    from dvc_data.hashfile.build import build
    from dvc_objects.fs.local import localfs

    hashes = Hashes()
    with Repo() as repo:
        believe_only_bytes(repo, hashes)
        _, _, found = build(repo.cache.local, str(path.absolute()), localfs, "md5", dry_run=True, ignore=repo.dvcignore)
    return bool(found.hash_info.value == md5)


def _of_record(stage: str, entry: Mapping[str, Any], hashes: Hashes) -> Iterator[Damage]:
    """Files that differ from provenance.json, and inputs or outputs that it lacks."""
    home = DATA / audit_of(stage)
    here = home / stage.partition("@")[0]
    outs, record = _hashed(entry, "outs"), here / RECORD
    if record not in outs or not record.exists():
        return
    told = _read_record(record)
    if told == {}:
        return
    if told is None:
        yield Damage(stage, record, "does not record what the stage read and wrote", "record")
        return
    read, wrote = told["read"], told["wrote"]
    said = {home / name: sha256 for name, sha256 in read.items()} | {here / name: wrote[name] for name in wrote}
    inside = {dep: md5 for dep, md5 in _hashed(entry, "deps").items() if home in dep.parents}
    expected = [here / out.relative_to(here).parts[0] for out in outs if here in out.parents]
    expected += _of_stages(inside, home)
    for path in dict.fromkeys(expected):
        if path not in said and path != record:
            yield Damage(stage, record, f"does not name {path}, which the stage read or wrote", "record")
    # If DVC itself sees that an input has changed, the stage is just stale.
    changed = {dep for dep, md5 in inside.items() if dep.exists() and _md5(dep, hashes) != md5}
    for path, sha256 in said.items():
        if path.exists() and not changed.intersection((path, *path.parents)) and _sha256(path, hashes) != sha256:
            yield Damage(stage, path, f"holds other bytes than {record} names", "record")


def check_recorded(stage: str) -> None:
    """Refuse a stage's new output if its record lacks a dependency of dvc.yaml, as another run would lack it again.

    Raises a UsageError with the dependency.
    """
    home = DATA / audit_of(stage)
    record = home / stage.partition("@")[0] / RECORD
    told = _read_record(record) if record.exists() else None
    if not told:
        return
    inside = [dep for dep in _hashed(locked_stages().get(stage, {}), "deps") if home in dep.parents]
    if unread := [dep for dep in _of_stages(inside, home) if dep.relative_to(home).as_posix() not in told["read"]]:
        raise UsageError(
            f"dvc.yaml has {stage} depend on {', '.join(map(str, unread))}, which {record} does not name among what the"
            " stage read: remove it from dvc.yaml, or have the stage read it and record that"
        )


def _of_stages(deps: Iterable[Path], home: Path) -> list[Path]:
    return [dep for dep in deps if dep.relative_to(home).parts[0] not in _NOT_OF_STAGES]


def _read_record(path: Path) -> dict[str, dict[str, str]] | None:
    """What a stage read and wrote: SHA-256 by path; None if the record is invalid.

    Empty for a record of an earlier version without these; its results are stale anyway, as the code changed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    told = {key: record[key] for key in ("read", "wrote") if key in record}
    return told if not told or (len(told) == 2 and all(isinstance(one, dict) for one in told.values())) else None


def _md5(path: Path, hashes: Hashes) -> str | None:
    if (listed := _listed(path, hashes)) is None:
        return None
    return directory_md5(listed.items()) if path.is_dir() else listed["."]


def _sha256(path: Path, hashes: Hashes) -> str:
    if path.is_file():
        return hashes.sha256(path)
    from stages.provenance import sha256_of_folder

    return sha256_of_folder({file.relative_to(path).as_posix(): hashes.sha256(file) for file in _files(path)})


class CacheFolder:
    """DVC's cache of outputs: objects named by their MD5."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_workspace(cls) -> Self:
        """The cache of the current repository, wherever DVC's settings put it."""
        from dvc.config import Config, ConfigError

        dvc = dvc_root() / ".dvc"
        try:
            settings = Config(str(dvc))["cache"]
        except ConfigError as error:
            raise UsageError(f"DVC's configuration cannot be read: {error}") from None
        return cls(Path(settings.get("dir") or dvc / "cache") / "files" / "md5")

    def objects(self, md5: str, files: Mapping[str, str]) -> list[Path]:
        """The existing objects of an output: a file's, or a folder's list and its `files`, the MD5 of each by path."""
        return [path for name in dict.fromkeys([md5, *files.values()]) if (path := self.path(name)).is_file()]

    def holds(self, md5: str, hashes: Hashes) -> bool:
        """Whether an object exists and matches its name."""
        path = self.path(md5)
        return path.is_file() and self.is_whole(path, hashes)

    def is_whole(self, path: Path, hashes: Hashes) -> bool:
        return hashes.md5(path) == f"{path.parent.name}{path.name}".removesuffix(".dir")

    def damaged(self, md5: str, hashes: Hashes) -> list[Path]:
        """Objects of an output that do not match their names; only the list if a folder's list is one of them."""
        files = self.listed(md5) if self.holds(md5, hashes) else {}
        return [path for path in self.objects(md5, files) if not self.is_whole(path, hashes)]

    def path(self, name: str) -> Path:
        # A list that DVC did not write may name anything, and damaged objects are removed.
        return self._folder / name[:2] / name[2:] if _IS_MD5.fullmatch(name) else self._folder / "none"

    def listed(self, md5: str) -> dict[str, str]:
        """MD5 of a folder's files by path, from DVC's list of them; empty if there is none."""
        if not md5.endswith(".dir"):
            return {}
        try:
            return {str(file["relpath"]): str(file["md5"]) for file in json.loads(self.path(md5).read_bytes())}
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            return {}  # not what DVC wrote


class _Holder(BaseModel):
    """A process that holds a file, as DVC records it."""

    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    cmd: str


class _Locks(BaseModel):
    """DVC's list of files that are being read and written."""

    write: dict[str, _Holder] = {}
    read: dict[str, list[_Holder]] = {}


def read_healed(audits: Collection[str]) -> tuple[list[str], Params, Graph]:
    """Repair the workspace and audits' outputs; return what was wrong, the parameters and the graph."""
    lines = [*heal(), *mend(stages_of(audits))]
    return lines, load_params(), read_graph()


def heal() -> list[str]:
    """Repair the workspace, while its lock is held, before any query of DVC; return a line for each thing wrong."""
    healed = [f"ended {name}, left over by a run that was killed" for name in end_leftovers()]
    rwlock = dvc_root() / ".dvc" / "tmp" / "rwlock"
    return [*healed, *_heal_lock_file(LOCK), *_heal_rwlock(rwlock), *update_pipeline()]


def _heal_lock_file(path: Path) -> list[str]:
    """Restore a truncated dvc.lock: DVC truncates it before writing, so a kill in between makes every later repro fail.

    Nothing is lost without it: DVC's run-cache has the outputs of all that ran before, so nothing executes. One that
    was cut where DVC can still read it is kept: the missing stages are stale and restored from the run-cache too.
    """
    if not path.exists() or _is_readable(path):
        return []
    aside, restored = WORK / f"dvc.lock.broken-{time.time_ns()}", WORK / "dvc.lock.restored"
    replace_file(restored, file_at("HEAD", path) or b"")
    path.replace(aside)
    if _is_readable(restored):
        restored.replace(path)
        return [f"{path} was truncated by a crash: restored from git; the damaged one is {aside}"]
    restored.unlink()
    return [f"{path} was truncated by a crash: moved to {aside}, DVC's run-cache brings the outputs back"]


def _is_readable(lock: Path) -> bool:
    """Whether DVC's own parser and schema accept the file, and its last line is complete.

    The schema accepts half a hash, on which DVC then fails if it happens to look like a number.
    """
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    try:
        load(str(lock), schema=COMPILED_LOCKFILE_SCHEMA)
    except (DvcException, RecursionError):
        return False
    return lock.read_bytes().endswith(b"\n")


def _heal_rwlock(path: Path) -> list[str]:
    """Remove stale lock entries: DVC drops those of dead processes, but not those whose process id is in use again."""
    try:
        written = path.stat().st_mtime
        locks = _Locks.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return []
    except (OSError, ValidationError):
        put_aside(path)
        return []

    writers = {path: holder for path, holder in locks.write.items() if _holds(holder, written)}
    readers = {path: [one for one in holders if _holds(one, written)] for path, holders in locks.read.items()}
    healthy = _Locks(write=writers, read={path: holders for path, holders in readers.items() if holders})
    if healthy == locks:
        return []
    replace_file(path, healthy.model_dump_json().encode())
    return ["removed file locks left by a dead DVC process"]


def _holds(holder: _Holder, written: float) -> bool:
    """Whether the process that made a lock entry still lives: same id, older than the entry, same last argument."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(holder.pid)
        command = process.cmdline()
        last = Path(command[-1]).name if command else ""
        return process.create_time() <= written + 1 and holder.cmd.endswith(last)
    return False
