"""kill -9 and Ctrl-C: the same command resumes, ends like an undisturbed run, and leaves no orphan."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time

import psutil
import pytest

from tests.finished import faded
from tests.workspace import Workspace, audit_params, make_workspace

pytestmark = pytest.mark.slow

RESULTS = (
    "tiny/discover/probes.parquet",
    "tiny/discover/robustness.parquet",
    "tiny/discover/policy/*",
    "tiny/*/landscape*.parquet",
    "tiny/*/verdict.json",
    "tiny/*/plan.json",
    "tiny/restructure/models/**/*",
)
SLOW = 0.1  # seconds per model call, so that a kill mostly hits the search


@pytest.fixture
def server(prefect_server):
    return {"PREFECT_API_URL": prefect_server}


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """All processes that the command has started so far."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def running(what: str, workspace: Workspace, limit: float = 120.0) -> psutil.Process:
    """Wait until a toy is running, and find the process with `what` in its command line."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        record = workspace.path / "executed.txt"
        stage = what.rsplit(maxsplit=1)[-1].removeprefix("stages.")
        for process in psutil.process_iter() if record.exists() and stage in record.read_text() else ():
            try:
                if what in " ".join(process.cmdline()) and process.cwd() == str(workspace.path):
                    return process
            except psutil.Error:
                continue
        time.sleep(0.05)
    raise AssertionError(f"{what} never ran: {(workspace.path / '.faded-test.log').read_text()}")


def all_gone(processes: list[psutil.Process]) -> bool:
    _gone, alive = psutil.wait_procs(processes, timeout=60)
    return not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_killing_the_flow_leaves_no_orphan_and_the_next_run_goes_on(toys, server):
    toys.write_params({**toys.params(), "repairs": {}})
    toys.toy(discover__tiny={"sleep": 600})
    process = toys.start("audit")  # with its own server, which must not be orphaned either
    running("-m stages.discover", toys)
    relatives = family(process)
    assert len(relatives) >= 3  # the server, dvc and the stage
    process.kill()
    process.wait()
    assert all_gone(relatives)

    toys.toy()
    code, told = faded(toys, "audit")
    assert code == 0, told
    assert toys.executed().count("prepare@tiny") == 1  # finished stages are not run again


def test_status_and_plan_of_a_stage_that_runs_now(toys):
    toys.toy(prepare__tiny={"until": "go"})
    process = subprocess.Popen(["dvc", "repro", "--quiet", "prepare@tiny"], cwd=toys.path, env=toys.env)
    running("-m stages.prepare", toys)
    for command in (("status", "--stages"), ("plan",)):
        code, told = faded(toys, *command)
        assert code == 0, told
        _, _, after = told.partition("prepare@tiny")
        assert "runs now" in after.partition("discover@tiny")[0]
        assert told.count("runs now") == 1  # later stages wait
    (toys.path / "go").touch()
    assert process.wait(timeout=300) == 0


def test_killing_dvc_takes_the_stage_along_and_is_retried(toys, server):
    params = toys.params()
    toys.write_params({**params, "repairs": {}})
    toys.toy(prepare__tiny={"sleep": 600})
    process = toys.start("audit")
    stage = running("-m stages.prepare", toys)
    toys.toy()
    running("--single-item prepare@tiny", toys).kill()
    assert all_gone([stage])
    assert process.wait(timeout=300) == 0
    assert toys.executed().count("prepare@tiny") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
def test_a_signal_ends_the_stage_and_its_server_and_is_told_in_a_line(toys, number, code):
    toys.toy(prepare__tiny={"sleep": 600})
    process = toys.start("audit")
    running("-m stages.prepare", toys)
    relatives = family(process)
    process.send_signal(number)
    assert process.wait(timeout=120) == code
    assert all_gone(relatives)
    assert toys.executed() == ["prepare@tiny"]  # not retried
    told = (toys.path / ".faded-test.log").read_text()
    assert "Traceback" not in told and "the same command resumes from here" in told
    assert "connection" not in told.lower()
    assert list((toys.path / ".faded/run").iterdir()) == [] and (toys.path / ".faded/prefect/prefect.db").exists()


def test_killed_at_random_moments_it_ends_as_an_undisturbed_run(tmp_path, server):
    audit = audit_params()
    audit["prepare"]["delay"] = SLOW
    undisturbed = make_workspace(tmp_path / "undisturbed", {"tiny": audit})
    started = time.monotonic()
    done = undisturbed.faded("audit", **server)
    assert done.returncode == 0, done.stdout
    duration = time.monotonic() - started

    disturbed = make_workspace(tmp_path / "disturbed", {"tiny": audit})
    rng = random.Random(7)
    seen: list[psutil.Process] = []
    for what in ("dvc", "flow"):
        process = disturbed.start("audit", **server)
        time.sleep(rng.uniform(0.1, 0.6) * duration)
        relatives = family(process)
        seen += relatives
        victims = {
            "flow": [process.pid],
            "dvc": [p.pid for p in relatives if "flows.child" in " ".join(_line(p))],
        }[what]
        for pid in victims[:1]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if what != "flow":
            process.wait(timeout=400)
        process.kill()
        process.wait()
    assert all_gone(seen)
    last = disturbed.faded("audit", **server)
    assert last.returncode == 0, last.stdout
    assert disturbed.digests(*RESULTS) == undisturbed.digests(*RESULTS)
    assert all(undisturbed.digests(pattern) for pattern in RESULTS)


def _line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
