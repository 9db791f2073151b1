"""Files that are costly to make and equal for all tests, made once per session by the first worker that needs them."""

import atexit
import fcntl
import os
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import mkdtemp

_HOME = "FADED_TESTS_SHARED"  # environment variable with the session's folder, for its workers


def open_shared() -> None:
    """Make the folder of this session, unless this process is one of its workers."""
    if _HOME not in os.environ:
        os.environ[_HOME] = mkdtemp(prefix="faded-tests-")
        atexit.register(shutil.rmtree, os.environ[_HOME], ignore_errors=True)


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The path that `make` wrote at the first call; copy it, never change it."""
    open_shared()  # for benchmarks, which have no conftest.py
    path, part = Path(os.environ[_HOME], name), Path(os.environ[_HOME], f"{name}.part")
    with Path(os.environ[_HOME], f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(path)
    return path


def prefect_home() -> Path:
    """A home of Prefect with an empty database, as a server needs three seconds to make its tables."""
    return once("prefect", _make_prefect_home)


def spare_migrations(workspace: Path) -> None:
    """Give the next server of a workspace a finished database."""
    if not (home := workspace / ".faded" / "prefect").exists():
        shutil.copytree(prefect_home(), home)


def _make_prefect_home(home: Path) -> None:
    from flows.server.tables import make_tables  # later than conftest.py, which sets what numpy reads when imported

    home.mkdir()
    assert make_tables(home / "prefect.db")
    (home / "made-by").write_text(version("prefect"))
