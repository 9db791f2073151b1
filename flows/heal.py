"""Heals what a crash left in a workspace, so that the same command simply goes on.

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
import yaml

from flows.processes import end_leftovers
from flows.workspace import WORK

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")


def heal() -> list[str]:
    """Heal the workspace; return one line for each thing that was wrong."""
    healed = [f"ended {name}, left over by a run that was killed" for name in end_leftovers()]
    return healed + _heal_lock_file() + _heal_rwlock()


def _heal_lock_file() -> list[str]:
    """DVC truncates dvc.lock before it writes it: a kill in between leaves nothing, and every later repro fails.

    Without it nothing is lost: DVC's run-cache knows the outputs of all that ran before, so nothing executes.
    """
    if not LOCK.exists() or _is_lock_file(LOCK.read_bytes()):
        return []
    aside = WORK / f"dvc.lock.broken-{time.time_ns()}"
    WORK.mkdir(exist_ok=True)
    committed = subprocess.run(["git", "show", f"HEAD:./{LOCK}"], capture_output=True, check=False)
    LOCK.replace(aside)
    if committed.returncode == 0 and _is_lock_file(committed.stdout):
        partial = WORK / "dvc.lock.partial"
        partial.write_bytes(committed.stdout)
        partial.replace(LOCK)
        return [f"dvc.lock was cut short by a crash: restored from git, the broken one is {aside}"]
    return [f"dvc.lock was cut short by a crash: moved to {aside}, DVC's run-cache brings the outputs back"]


def _is_lock_file(content: bytes) -> bool:
    try:
        data = yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError):
        return False
    return isinstance(data, dict) and isinstance(data.get("stages", {}), dict) and "schema" in data


def _heal_rwlock() -> list[str]:
    """DVC drops lock entries of dead processes itself, but one whose process id was given anew blocks for ever."""
    try:
        written = RWLOCK.stat().st_mtime
        locks: dict[str, Any] = json.loads(RWLOCK.read_text())
    except FileNotFoundError:
        return []
    except ValueError:
        RWLOCK.unlink()
        return ["DVC's list of locked files was cut short by a crash: removed"]

    writers = {path: info for path, info in locks.get("write", {}).items() if _holds(info, written)}
    readers = {path: [i for i in infos if _holds(i, written)] for path, infos in locks.get("read", {}).items()}
    healthy = {"write": writers, "read": {path: infos for path, infos in readers.items() if infos}}
    if healthy == {"write": locks.get("write", {}), "read": locks.get("read", {})}:
        return []
    partial = RWLOCK.with_suffix(".partial")
    partial.write_text(json.dumps(healthy))
    partial.replace(RWLOCK)
    return ["files were locked by a DVC process that is gone: unlocked"]


def _holds(info: dict[str, Any], written: float) -> bool:
    """Whether the process that made a lock entry still lives: same id, older than the entry, same last argument."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(int(info["pid"]))
        command = process.cmdline()
        last = Path(command[-1]).name if command else ""
        return process.create_time() <= written + 1 and info["cmd"].endswith(last)
    return False
