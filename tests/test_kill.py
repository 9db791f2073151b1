"""kill -9, Ctrl-C and SIGTERM: the same command resumes and leaves no orphan.

That it ends like an undisturbed run: test_sharded_audit.py, and test_faults.py for each stage.
"""

import signal
import subprocess
import time

import psutil
import pytest

from tests.finished import faded
from tests.workspace import Workspace


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


@pytest.mark.slow
def test_however_a_run_is_ended_nothing_is_left_and_the_same_command_resumes(toys, prefect_server):
    """Killed, interrupted and terminated, the first two with a server of their own; then DVC is killed under it."""
    toys.write_params({**toys.params(), "repairs": {}})
    toys.toy(discover__tiny={"sleep": 600})
    log, told = toys.path / ".faded-test.log", ""
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 3)):
        server = {"PREFECT_API_URL": prefect_server} if number == signal.SIGTERM else {}
        process = toys.start("audit", **server)
        running("-m stages.discover", toys)
        relatives = family(process)
        assert len(relatives) >= 2 + (not server)  # the server, dvc and the stage
        process.send_signal(number)
        assert process.wait(timeout=120) == code
        assert all_gone(relatives)
        # Finished stages are not run again, and the one that was ended is not retried.
        assert toys.executed() == [*["prepare@tiny"] * (number == signal.SIGKILL), "discover@tiny"]
        before, told = told, log.read_text()
        said = told.removeprefix(before)
        assert "Traceback" not in said and "connection" not in said.lower()
        assert ("the same command resumes from here" in said) is (code > 0)
        assert code < 0 or list((toys.path / ".faded/run").iterdir()) == []
    assert (toys.path / ".faded/prefect/prefect.db").exists()

    process = toys.start("audit", PREFECT_API_URL=prefect_server)
    stage = running("-m stages.discover", toys)
    code, shown = faded(toys, "status", "--stages")
    assert code == 0, shown
    assert "runs now" in shown.partition("discover@tiny")[2].partition("summarize@tiny")[0]
    assert shown.count("runs now") == 1  # later stages wait
    toys.toy()
    running("--single-item discover@tiny", toys).kill()
    assert all_gone([stage])
    assert process.wait(timeout=300) == 0
    assert toys.executed() == ["discover@tiny", "discover@tiny", "summarize@tiny", "report@tiny"]
