"""Heals what a crash or an upgrade left in a workspace, so that the same command simply goes on.

Called while the workspace is held (`flows.workspace.exclusive`), before DVC is asked anything.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil

from flows.pipeline import bring_up_to_date, is_own
from flows.processes import end_leftovers
from flows.workspace import dvc_root
from stages.environment import WORK

LOCK = Path("dvc.lock")
# In the clone a broken lock file of its other pipeline keeps DVC from reading this one, too. Elsewhere other pipelines
# are the user's own.
STUDY_LOCK = Path("benchmarks/study/dvc.lock")


def heal() -> list[str]:
    """Heal the workspace; return one line for each thing that was wrong."""
    healed = [f"ended {name}, left over by a run that was killed" for name in end_leftovers()]
    locks = [LOCK] if is_own() else [LOCK, STUDY_LOCK]
    healed += [line for lock in locks for line in _heal_lock_file(lock)]
    return [*healed, *_heal_rwlock(dvc_root() / ".dvc" / "tmp" / "rwlock"), *bring_up_to_date()]


def _heal_lock_file(path: Path) -> list[str]:
    """DVC truncates dvc.lock before it writes it: a kill in between cuts it short, and every later repro fails.

    Without it nothing is lost: DVC's run-cache knows the outputs of all that ran before, so nothing executes. One that
    was cut where DVC can still read it stays: the stages it lacks are stale, and restored in the same way.
    """
    if not path.exists() or _is_readable(path):
        return []
    aside, partial = WORK / f"dvc.lock.broken-{time.time_ns()}", WORK / "dvc.lock.partial"
    WORK.mkdir(exist_ok=True)
    committed = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, check=False)
    path.replace(aside)
    partial.write_bytes(committed.stdout)
    if committed.returncode == 0 and _is_readable(partial):
        partial.replace(path)
        return [f"{path} was cut short by a crash: restored from git, the broken one is {aside}"]
    partial.unlink()
    return [f"{path} was cut short by a crash: moved to {aside}, DVC's run-cache brings the outputs back"]


def _is_readable(lock: Path) -> bool:
    """Whether DVC itself would read it, by its own parser and schema, and the last line is whole.

    The schema lets half a hash pass, on which DVC then breaks if it happens to look like a number.
    """
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.strictyaml import load

    try:
        load(str(lock), schema=COMPILED_LOCKFILE_SCHEMA)
    except DvcException:
        return False
    return lock.read_bytes().endswith(b"\n")


def _heal_rwlock(path: Path) -> list[str]:
    """DVC drops lock entries of dead processes itself, but one whose process id was given anew blocks for ever."""
    try:
        written = path.stat().st_mtime
        locks: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    except ValueError:
        path.unlink()
        return ["DVC's list of locked files was cut short by a crash: removed"]

    writers = {path: info for path, info in locks.get("write", {}).items() if _holds(info, written)}
    readers = {path: [i for i in infos if _holds(i, written)] for path, infos in locks.get("read", {}).items()}
    healthy = {"write": writers, "read": {path: infos for path, infos in readers.items() if infos}}
    if healthy == {"write": locks.get("write", {}), "read": locks.get("read", {})}:
        return []
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(healthy))
    partial.replace(path)
    return ["files were locked by a DVC process that is gone: unlocked"]


def _holds(info: dict[str, Any], written: float) -> bool:
    """Whether the process that made a lock entry still lives: same id, older than the entry, same last argument."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(info["pid"]))
        command = process.cmdline()
        last = Path(command[-1]).name if command else ""
        return process.create_time() <= written + 1 and info["cmd"].endswith(last)
    return False
