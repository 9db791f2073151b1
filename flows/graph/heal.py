"""Repairs what a crash or an upgrade left in a workspace, so that the same command can just be run again.

Called while the workspace's lock is held (`flows.workspace.exclusive`), before any query of DVC.
"""

import contextlib
import time
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import BaseModel, Field, ValidationError

from flows.graph import Graph, read_graph
from flows.graph.intact import mend, stages_of
from flows.graph.lock import LOCK
from flows.processes import end_leftovers
from flows.workspace.pipeline import dvc_root, update_pipeline
from stages.core.environment import WORK
from stages.core.files import put_aside, replace_file
from stages.core.git import file_at
from stages.params import Params, load_params


class _Holder(BaseModel):
    """A process that holds a file, as DVC records it."""

    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    cmd: str


class _Locks(BaseModel):
    """DVC's list of files that are being read and written."""

    write: dict[str, _Holder] = {}
    read: dict[str, list[_Holder]] = {}


def read_healed(audits: Collection[str]) -> tuple[list[str], Params, Graph]:
    """Repair the workspace and audits' outputs; return lines about what was wrong, the parameters and the graph."""
    lines = [*heal(), *mend(stages_of(audits))]
    return lines, load_params(), read_graph()


def heal() -> list[str]:
    """Repair the workspace; return one line for each thing that was wrong."""
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
