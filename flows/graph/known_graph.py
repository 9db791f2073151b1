"""DVC's last answer about the graph, reused while nothing that it depends on has changed.

A query of DVC takes seconds with many audits. So its answer is stored with a mark of all files it depends on: their
inodes, sizes and times, of which the time of the last change (ctime) cannot be set by programs.

Two things are recorded before DVC is queried. The code of audits: DVC would find the stage `code` stale whenever any
file changed, and with it all stages after it, until it has run; its work is done here instead, each
data/AUDIT/code.json and its entry in dvc.lock. And folders that an audit's inputs link to: DVC hashes linked files,
but ignores linked folders, so a hash of their content is written to a file beside the link.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.graph.lock import SETTLED_NS, below, files_below, signature_of
from flows.workspace.pipeline import PARAMS, dvc_root, is_own
from stages.code import PACKAGE, STAGE, Code, model_function
from stages.core.environment import DATA, WORK
from stages.core.errors import UsageError
from stages.core.files import read_state, write_state
from stages.params import load_params

if TYPE_CHECKING:
    from dvc.repo import Repo


def name_code(repo: Repo, root: Path, ours: str, *, looks: bool) -> list[str]:
    """Update code.json of all audits, and their entries in dvc.lock; the caller holds DVC's lock.

    Returns where users' own modules are or could be, if an audit uses any, as DVC does not watch them. Raises a
    UsageError if a file cannot be written.

    Args:
        ours: path of the workspace's dvc.yaml in the repository.
        looks: whether to leave dvc.lock unchanged.
    """
    stages = [stage for stage in repo.index.stages if stage.path_in_repo == ours and stage_kind(stage) == STAGE]
    params, code, named, of_users = load_params(root / PARAMS), code_in(root), [], False
    try:
        for stage in stages:
            audit, path = params.audit(str(stage.name).partition("@")[2]), Path(stage.outs[0].fs_path)
            # Whether its task or its model is in a user's module.
            of_user = (":" in audit.task and not audit.task.startswith(f"{PACKAGE.name}.")) or bool(
                model_function(audit)
            )
            of_users |= of_user
            if not of_user and not stage.status():
                continue
            text = code.written(audit)
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            if not looks and stage.status():
                stage.save(run_cache=False)
                named.append(stage)
        if named:  # all at once, as dvc.lock is read and written as a whole
            named[0].dvcfile.dump_stages(named, update_pipeline=False)
    except OSError as error:
        raise UsageError(f"{path} names the code of its audit, and cannot be updated: {error}") from None
    return code.places() if of_users else []


def code_in(root: Path) -> Code:
    """The code that a workspace's stages run: the installed package, or the clone's own if it is a clone of Faded."""
    return Code(PACKAGE if is_own(root) else root / PACKAGE.name, root)


def stage_kind(stage: Any) -> str:
    """The name of a stage in dvc.yaml without its audit."""
    return str(getattr(stage, "name", "")).partition("@")[0]


NOTE = "linked-folders.json"
# Folders that DVC itself ignores, and the one that Python writes when it imports a module.
_PASSED_OVER = {".git", ".hg", ".dvc", "__pycache__"}


def note_linked_folders(repo: Repo, root: Path = Path()) -> None:
    """Update the notes of all audits.

    Raises a UsageError if a linked folder cannot be read, or its note cannot be written.
    """
    for inputs in sorted(root.resolve().glob(f"{DATA}/*/inputs")):
        note = inputs / NOTE
        try:
            # Links to folders, except those behind another such link.
            folders = (Path(here, name) for here, names, _ in os.walk(inputs) for name in names)
            links = sorted(folder for folder in folders if folder.is_symlink())
            found = {link.relative_to(inputs).as_posix(): _held(link, repo) for link in links}
            # No partial file is needed: a note truncated by a kill differs, and is written again.
            text = json.dumps(found, indent=1) + "\n" if found else ""
            if text and (not note.exists() or note.read_text(encoding="utf-8") != text):
                note.write_text(text, encoding="utf-8")
            elif not text and note.exists():  # without a note, inputs need not be writable
                note.unlink()
        except OSError as error:
            raise UsageError(
                f"{inputs} links to a folder, so its contents have to be read, and recorded in {NOTE}: {error};"
                " copy the folder into it instead, or link its files"
            ) from None


def _held(link: Path, repo: Repo) -> dict[str, int | str]:
    """The number of files in a folder, and the MD5 of their paths and contents."""
    from dvc_data.hashfile.hash import hash_file
    from dvc_objects.fs.local import localfs

    files, digest = 0, hashlib.md5(usedforsecurity=False)
    for path in files_below(link):
        within = path.relative_to(link)
        if _PASSED_OVER.isdisjoint(within.parts[:-1]):
            _, found = hash_file(str(path), localfs, "md5", state=repo.state)
            digest.update(f"{within.as_posix()}\0{found.value}\n".encode(errors="surrogateescape"))
            files += 1
    return {"files": files, "md5": digest.hexdigest()}


KNOWN = WORK / "graph.json"
_SOURCES = (PACKAGE, Path(__file__).parents[1])  # the code that reads the graph


@dataclass(frozen=True)
class Known:
    """A stored answer of DVC: stages, the files and folders that it depends on, and their mark.

    Args:
        looks: whether the querying command runs nothing, so that dvc.lock may not name the current code.
    """

    looks: bool
    paths: list[str]
    mark: str
    stages: list[dict[str, Any]]


def recall(root: Path, *, looks: bool) -> list[dict[str, Any]] | None:
    """The stages from DVC's last answer; None if DVC has to be queried."""
    known = read_state(root / KNOWN, Known)
    if known is None or (known.looks and not looks) or is_at_work(root):
        return None
    return known.stages if mark_of(root, known.paths)[0] == known.mark else None


def remember(root: Path, known: Known, asked: int) -> None:
    """Store an answer, unless files changed meanwhile or may change unnoticed.

    They may while a stage is running, or if they changed shortly before the query, as timestamps are coarse.

    Args:
        asked: when DVC was queried (ns).
    """
    mark, newest = mark_of(root, known.paths)
    if mark == known.mark and asked - newest > SETTLED_NS and not is_at_work(root):
        with contextlib.suppress(OSError):  # if it cannot be stored, DVC is queried again
            write_state(root / KNOWN, known)


def mark_of(root: Path, paths: Iterable[str]) -> tuple[str, int]:
    """A mark of these paths, DVC's own files and the code that reads them, and when any changed last (ns)."""
    from dvc.dirs import global_config_dir, system_config_dir

    dvc = dvc_root(root)
    places = (f"{dvc}/.dvc", global_config_dir(), system_config_dir())
    settings = [f"{dvc}/.dvc/config.local", *(f"{place}/config" for place in places)]
    watched: tuple[str | Path, ...] = (*settings, *_files_of_dvc(dvc), root / PARAMS, *_SOURCES, *paths)
    try:
        files, newest = signature_of(one for path in watched for one in below(Path(path)))
    except OSError:  # a folder cannot be read, or something was just deleted: this is never a mark to go by
        return "", time.time_ns()
    told = {name: value for name, value in os.environ.items() if name.startswith("DVC_")}
    return hashlib.sha256(json.dumps([told, files], sort_keys=True).encode()).hexdigest(), newest


def is_at_work(root: Path) -> bool:
    """Whether DVC records a process that is using stages' files, or one that died while using them."""
    try:
        locks = json.loads((dvc_root(root) / ".dvc" / "tmp" / "rwlock").read_bytes())
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


def _files_of_dvc(dvc: Path) -> Iterator[str]:
    """DVC's files in the repository, except those in hidden folders."""
    for here, folders, files in os.walk(dvc):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name in ("dvc.yaml", "dvc.lock", ".dvcignore") or name.endswith(".dvc"):
                yield f"{here}/{name}"
