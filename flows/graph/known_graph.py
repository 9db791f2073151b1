"""DVC's last answer about the graph, reused while nothing that it depends on has changed.

A query of DVC takes seconds with many audits, and most commands find everything unchanged. So the answer is stored with
a mark of all files it depends on: their inodes, sizes and times. The system sets the time of the last change (ctime),
and programs cannot. If the mark differs, or a stage is running, DVC is queried.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.graph.before_dvc import code_in, is_of_user
from flows.workspace.pipeline import PARAMS
from stages.code import CODE, PACKAGE
from stages.core.environment import DATA, WORK
from stages.core.errors import UsageError
from stages.core.files import read_state, write_state
from stages.params import load_params

KNOWN = WORK / "graph.json"
# Within the resolution of its timestamps, a file that just changed may change again unnoticed.
_SETTLED_NS = 2_000_000_000
_SOURCES = (str(PACKAGE), str(Path(__file__).parents[1]))  # the code that reads the graph


@dataclass(frozen=True)
class Known:
    """A stored answer of DVC.

    Args:
        looks: whether the querying command runs nothing, so that dvc.lock may not name the current code.
        paths: files and folders it depends on.
    """

    looks: bool
    paths: list[str]
    mark: str
    stages: list[dict[str, Any]]


class Memory:
    """DVC's last answer in a workspace.

    Args:
        dvc: the folder that contains .dvc.
    """

    def __init__(self, root: Path, dvc: Path) -> None:
        self._root, self._dvc = root, dvc

    def recall(self, *, looks: bool) -> list[dict[str, Any]] | None:
        """The stages from DVC's last answer; None if DVC has to be queried."""
        known = read_state(self._root / KNOWN, Known)
        if known is None or (known.looks and not looks) or self.is_at_work():
            return None
        if self.mark(known.paths)[0] != known.mark or not _code_is_named(self._root):
            return None
        return known.stages

    def remember(self, known: Known, asked: int) -> None:
        """Store an answer, unless files changed meanwhile or may change unnoticed.

        They may while a stage is running, or if they changed shortly before the query, as timestamps are coarse.

        Args:
            known: the answer; its mark was taken before DVC looked at the files.
            asked: when DVC was queried (ns).
        """
        mark, newest = self.mark(known.paths)
        if mark == known.mark and asked - newest > _SETTLED_NS and not self.is_at_work():
            with contextlib.suppress(OSError):  # if it cannot be stored, DVC is queried again
                write_state(self._root / KNOWN, known)

    def mark(self, paths: Iterable[str]) -> tuple[str, int]:
        """A mark of these paths, DVC's own files and the code that reads them, and when any changed last (ns)."""
        from dvc.dirs import global_config_dir, system_config_dir

        digest, newest = hashlib.sha256(), 0
        told = {name: value for name, value in os.environ.items() if name.startswith("DVC_")}
        digest.update(json.dumps(told, sort_keys=True).encode())
        places = (f"{self._dvc}/.dvc", global_config_dir(), system_config_dir())
        settings = [f"{self._dvc}/.dvc/config.local", *(f"{place}/config" for place in places)]
        for path in (*settings, *_files_of_dvc(self._dvc), str(self._root / PARAMS), *_SOURCES, *paths):
            for name, status in _below(path, _status(Path(path)), frozenset()):
                times = (status.st_mtime_ns, status.st_ctime_ns) if status else (0, 0)
                text = f"{status.st_ino} {status.st_size} {times}" if status else "missing"
                digest.update(f"{name}\0{text}\n".encode(errors="surrogateescape"))
                newest = max(newest, *times)
        return digest.hexdigest(), newest

    def is_at_work(self) -> bool:
        """Whether DVC records a process that is using stages' files, or one that died while using them."""
        try:
            locks = json.loads((self._dvc / ".dvc" / "tmp" / "rwlock").read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True
        return not isinstance(locks, dict) or any(locks.values())


def all_local(stages: Iterable[Any]) -> bool:
    """Whether all that DVC stages read and write is in local files; anything else cannot be marked."""
    return all(getattr(one.fs, "protocol", "") == "local" for stage in stages for one in (*stage.deps, *stage.outs))


def paths_of(stages: Iterable[Any]) -> list[str]:
    """The files that the state of DVC stages depends on: inputs, outputs, and the outputs' copies in the cache."""
    found: dict[str, None] = {}
    for stage in stages:
        found |= {str(one.fs_path): None for one in (*stage.deps, *stage.outs)}
        for out in stage.outs:
            if out.use_cache and out.hash_info:
                names = [out.hash_info.value]
                if out.hash_info.isdir:
                    with contextlib.suppress(Exception):  # no list, or a damaged one, which is marked itself
                        names += [entry.value for _, _, entry in out.get_obj() or ()]
                found |= {str(out.cache.oid_to_path(name)): None for name in names}
    return list(found)


def _status(file: Path | os.DirEntry[str]) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None


def _below(
    path: str, status: os.stat_result | None, above: frozenset[tuple[int, int]]
) -> Iterator[tuple[str, os.stat_result | None]]:
    """A file, or a folder and everything below it, through links; a link back to a folder above is not followed."""
    yield path, status
    if status is None or not stat.S_ISDIR(status.st_mode) or (here := (status.st_dev, status.st_ino)) in above:
        return
    try:
        with os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError:  # not readable, or deleted meanwhile
        yield path, None
        return
    for entry in inside:
        yield from _below(entry.path, _status(entry), above | {here})


def _files_of_dvc(dvc: Path) -> Iterator[str]:
    """DVC's files in the repository, except those in hidden folders."""
    for here, folders, files in os.walk(dvc):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name in ("dvc.yaml", "dvc.lock", ".dvcignore") or name.endswith(".dvc"):
                yield f"{here}/{name}"


def _code_is_named(root: Path) -> bool:
    """Whether code.json is current for users' tasks and models, whose files are not marked."""
    audits = {name: audit for name, audit in load_params(root / PARAMS).audits.items() if is_of_user(audit)}
    if not audits:
        return True
    code = code_in(root)
    try:
        return all(
            (root / DATA / name / CODE).read_text(encoding="utf-8") == code.written(audit)
            for name, audit in audits.items()
        )
    except (OSError, UsageError):
        return False
