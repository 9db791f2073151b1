"""The workspace: the folder that holds params.yaml and dvc.yaml, and what every command does before it works in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from stages.errors import InfrastructureError, UsageError

WORK = Path(".faded")
LOGS = WORK / "logs"

# An audit tells nobody that it runs. Prefect's own console output is off because `faded` prints the same lines itself.
_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
}


def enter_workspace() -> Path:
    """Make the workspace at or above the current folder the current one.

    Raises:
        UsageError: when there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            os.chdir(folder)
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            return folder
    raise UsageError(f"no params.yaml and dvc.yaml in {here} or above: run faded inside a workspace")


def stage_environment() -> dict[str, str]:
    """Environment of a stage: `python` in dvc.yaml is this very interpreter, and nothing is fetched unless allowed.

    HF_HUB_OFFLINE=0 in the user's environment allows a hub; the default makes a run depend on local files only.
    """
    env = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **_ENVIRONMENT, **os.environ}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    return env


_holding = 0


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Hold the workspace against a second audit; re-entrant within this process.

    Raises:
        InfrastructureError: when another process audits here, with its process id.
    """
    global _holding  # noqa: PLW0603  # a file lock belongs to the process, so does its count
    if _holding:
        yield
        return
    WORK.mkdir(exist_ok=True)
    with (WORK / "flow.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InfrastructureError(
                f"another audit runs in {Path.cwd()} (process {running_audit() or 'unknown'}): wait for it or end it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _holding += 1
        try:
            yield
        finally:
            _holding -= 1


def running_audit() -> int | None:
    """The process that audits in this workspace now, if one does."""
    path = WORK / "flow.lock"
    if not path.exists():
        return None
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            text = lock.read().strip()
            return int(text) if text.isdigit() else -1
    return None
