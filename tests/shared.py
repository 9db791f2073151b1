"""What is costly to make and the same for all: made once in a session of tests, by whichever worker needs it first."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

_HOME = "FADED_TESTS_SHARED"  # in the environment, so that workers find the folder of the session that started them


def open_shared() -> None:
    """Make the folder of this session, unless this process is one of its workers."""
    if _HOME not in os.environ:
        os.environ[_HOME] = mkdtemp(prefix="faded-tests-")
        atexit.register(shutil.rmtree, os.environ[_HOME], ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The path that `make` wrote when it was first asked for; to be copied, never changed."""
    path, part = Path(os.environ[_HOME], name), Path(os.environ[_HOME], f"{name}.part")
    with Path(os.environ[_HOME], f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(path)
    return path


def prefect_home() -> Path:
    """A home of Prefect with an empty database: making its tables takes a server six CPU-seconds."""
    return once("prefect", _make_prefect_home)


def spare_migrations(workspace: Path) -> None:
    """Have the next server of a workspace find its database."""
    if not (home := workspace / ".faded" / "prefect").exists():
        shutil.copytree(prefect_home(), home)


def _make_prefect_home(home: Path) -> None:
    home.mkdir()
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
    env = {**os.environ, "PREFECT_HOME": str(home)}
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
