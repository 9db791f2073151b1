"""Set-up of all tests: nothing reaches the network or a person's own settings."""

import gc
import os
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from subprocess import CompletedProcess
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from stages.core.environment import set_defaults
from stages.core.errors import BugError
from tests.shared import once, open_shared, prefect_home
from tests.workspace import Workspace, make_workspace, packed

open_shared()
gc.disable()  # while modules are imported: their million objects live to the end, and looking at them takes seconds
# The tests start hundreds of processes, each of which would compile all of Faded again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "PYTEST_XDIST_WORKER" in os.environ:  # two tests with two threads each slow each other down
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")  # each further process imports torch, for seconds
set_defaults()  # before numpy: what tests compute in this process is then what stages compute in theirs
os.environ |= {
    "DO_NOT_TRACK": "1",
    "FADED_KEYS": mkdtemp(prefix="faded-keys-"),
    "HF_HUB_OFFLINE": "1",
    "SHELL": "/bin/sh",  # the plainest one, as under cron and CI, which runs commands as children
}

# Generated cases are the same in every run; FADED_HYPOTHESIS=nightly draws more of them, and others each time.
# Slow drawing is due to the machine, not the test.
common: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=50, derandomize=True, database=None, **common)
settings.register_profile("nightly", max_examples=10_000, print_blob=True, **common)
settings.load_profile(os.environ.get("FADED_HYPOTHESIS", "default"))

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(partial(shutil.rmtree, os.environ["FADED_KEYS"]))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def alike() -> Iterator[None]:
    """Undo what a task with `alike = False` does to this process, for the processes of later tests."""
    yield
    set_defaults()


@pytest.fixture(autouse=True, scope="module")
def own_operators() -> Iterator[None]:
    """Undo what loading a transformer does to torch in this process (`compute_alike`), for the modules to come."""
    yield
    replace = getattr(sys.modules.get("stages.core.arithmetic"), "_replace_operators", None)
    if replace is not None and replace.cache_info().currsize:
        replace()._destroy()
        replace.cache_clear()


@pytest.fixture(scope="module")
def read_here() -> Iterator[None]:
    """Repaired models are read back by this process, as a fresh one takes ten CPU-seconds to start."""

    def run(command: list[str], **_: object) -> CompletedProcess[str]:
        *_, module, folder, base, known, asked = command
        try:
            resolve_name(f"{module}:main")(*map(Path, (folder, base, known, asked)))
        except BugError as error:
            return CompletedProcess(command, 70, "", f"error: {error}")
        return CompletedProcess(command, 0, "", "")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.tasks.training.subprocess", SimpleNamespace(run=run))
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium; tests that need it skip if it is missing.

    Its scope is the module: while it is open, its event loop runs in this thread, and Prefect needs its own.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """One Prefect server for the whole session, as starting one takes ten seconds.

    Yields its URL, for PREFECT_API_URL.
    """
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL
    from prefect.testing.utilities import prefect_test_harness

    home = Path(mkdtemp(prefix="faded-prefect-"))  # the harness removes it
    shutil.copy(prefect_home() / "prefect.db", home / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefect.testing.utilities.mkdtemp", lambda: str(home))
        # At the end the harness waits minutes for events that it could no longer send to servers of single tests.
        patch.setattr(EventsWorker, "drain_all", partial(EventsWorker.drain_all, timeout=5))
        with prefect_test_harness(server_startup_timeout=180):
            yield PREFECT_API_URL.value()


@pytest.fixture(scope="session")
def _new_toys() -> Workspace:
    return Workspace(once("toys", lambda path: packed(make_workspace(path, toys=True))))


@pytest.fixture
def toys(_new_toys, tmp_path) -> Workspace:
    """A workspace whose stages are toys, with one audit and its repair, "tiny"."""
    return _new_toys.copy(tmp_path / "toys")


@pytest.fixture
def own(tmp_path) -> Workspace:
    """A custom workspace, committed, whose stages run from the installed package."""
    from tests.own_workspaces import commit, make_audited, make_repository

    workspace = make_audited(make_repository(tmp_path / "repository"))
    commit(workspace.path)
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """A copy of the finished audits of `finished.py`."""
    from tests.finished import finished_audits

    return finished_audits().copy(tmp_path_factory.mktemp("finished") / "ws")


@pytest.fixture(scope="module")
def bundle(workspace) -> Path:
    """Its evidence on the audit "tiny"."""
    from tests.bundles import bundle_of

    return bundle_of(workspace)


@pytest.fixture(scope="module")
def members(bundle) -> dict[str, bytes]:
    """What that holds."""
    from flows.evidence.bundle import read_bundle

    return dict(read_bundle(bundle).members)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A workspace with a landscape to review, as the current folder."""
    from tests.review_samples import make_review

    return make_review(tmp_path, monkeypatch)


@pytest.fixture
def ada(place) -> Any:
    """A reviewer's browser."""
    from tests.review_samples import reviewers

    return reviewers()[0]
