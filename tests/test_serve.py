"""`faded serve`: whatever it starts lives and dies with it, and interrupted audits resume."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.states import Cancelling
from rich.console import Console

import flows.people.suspend
import flows.serve
from flows.graph.lock import LOCK, read_lock
from flows.processes import end_leftovers
from flows.recur.runs import _DIED, STOPPED
from flows.recur.schedule import add_missing
from flows.serve import RECORDS, Child, serve
from flows.server import RECORD, served_api
from flows.server.security import ServerRecord
from stages.core.errors import UsageError
from stages.params import load_params
from tests.servers import client_of, free_port, until
from tests.test_kill import all_gone, family, running
from tests.workspace import STAGES, Workspace

ALL = [f"{stage}@tiny" for stage in STAGES]
BEFORE, AFTER = ALL[: ALL.index("re_evaluate@tiny")], ALL[ALL.index("re_evaluate@tiny") :]


@pytest.fixture
def here(toys, monkeypatch) -> Workspace:
    monkeypatch.chdir(toys.path)
    add_missing(load_params())
    return toys


def test_a_child_that_keeps_dying_is_started_after_longer_and_longer_waits(monkeypatch):
    now = 0.0
    monkeypatch.setattr(flows.serve.time, "monotonic", lambda: now)
    ended: list[str] = []

    @contextlib.contextmanager
    def start() -> Iterator[Any]:
        yield SimpleNamespace(poll=lambda: 3)
        ended.append("ended")

    kept, waits = Child(start), []
    for _ in range(9):
        kept.start()
        assert (kept.died(), kept.died()) == (3, None)  # reported once
        began = now
        while not kept.due():
            now += 1
        waits.append(now - began)
    assert waits[:4] == [2, 4, 8, 16] and waits[-1] == 60
    assert len(ended) == 9  # its remains are cleaned up each time
    kept.start()
    now += 1000
    assert kept.died() == 3
    now += 1
    assert kept.due()  # no long wait, as it had lived long


def test_a_second_one_in_the_same_workspace_is_refused(here):
    Path(".faded").mkdir(exist_ok=True)
    with Path(".faded/serve.lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match=r"is running in .*toys already \(process 4711\): one is enough"):
            serve(load_params(), Console())


def test_what_reads_results_and_builds_pages_is_not_imported_until_it_is_needed(here):
    imports = "import sys, flows.cli, flows.serve, flows.people.review.server"
    shown = f"{imports}; print({{'pandas', 'fastapi'}} & set(sys.modules))"
    assert here.run([sys.executable, "-c", shown]).stdout.strip() == "set()"


@pytest.mark.slow
def test_a_server_that_is_not_there_or_does_not_start_is_told(here):
    done = here.faded("serve", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 3 and "http://127.0.0.1:9/api (PREFECT_API_URL) does not answer" in done.stdout
    done = here.faded("serve", PREFECT_API_DATABASE_CONNECTION_URL="nonsense")
    assert done.returncode == 3 and "did not start, see .faded/logs/prefect-server.log" in done.stdout
    assert Path(".faded/logs/prefect-server.log").read_text()


def test_only_the_living_server_of_the_workspace_is_found(here, prefect_server, monkeypatch):
    RECORD.parent.mkdir(exist_ok=True)
    assert served_api() is None
    good = ServerRecord.of(os.getpid(), prefect_server, "faded:x", "x.localhost")
    good.write(RECORD)
    assert RECORD.stat().st_mode & 0o077 == 0 and served_api() == prefect_server
    with monkeypatch.context() as clock:  # it is set forward by a day
        began = psutil.boot_time()
        clock.setattr(psutil._psplatform, "boot_time", lambda: began + 86_400)
        assert served_api() == prefect_server
    for change in ({"started": good.started - 1}, {"pid": 2**22 - 1}, {"url": "http://127.0.0.1:9/api"}, {"pid": True}):
        RECORD.write_text(json.dumps(good.model_dump() | change))
        assert served_api() is None
    for broken in ("[]", json.dumps({"url": prefect_server}), '{"url": "ht'):
        RECORD.write_text(broken)
        assert served_api() is None


class Served:
    """`faded serve` in a workspace, and a client of its server."""

    def __init__(self, workspace: Workspace, **env: str) -> None:
        self.workspace, self.log = workspace, workspace.path / ".faded-test.log"
        self.log.write_text("")
        self.process = workspace.start("serve", "--port", str(free_port()), PREFECT_WORKER_QUERY_SECONDS="1", **env)
        until(lambda: "Ctrl-C" in self.log.read_text() or self.process.poll() is not None, 300, self.log)
        assert self.process.poll() is None, self.log.read_text()
        record = workspace.path / RECORD
        self.api = env.get("PREFECT_API_URL") or json.loads(record.read_text())["url"]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def run(self) -> UUID:
        with client_of(self.api) as client:
            return client.create_flow_run_from_deployment(client.read_deployment_by_name("audit/tiny").id).id

    def ended(self, run: UUID) -> Any:
        """The last state of a run, once there is one."""
        with client_of(self.api) as client:

            def last() -> Any:
                state = client.read_flow_run(run).state
                return state if state.is_final() else None

            return until(last, 200, self.workspace.path / ".faded/logs/worker.log")

    def everyone(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid), *family(self.process)]

    def workers(self) -> list[psutil.Process]:
        found = []
        for process in self.everyone():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [process] if {"flows.worker", "flows.start.engine"} & set(process.cmdline()) else []
        return found


@pytest.fixture
def served(here) -> Iterator[Served]:
    with Served(here) as served:
        yield served


@pytest.mark.slow
def test_it_serves_recurring_audits_to_this_machine_only(here, served):
    told = served.log.read_text()
    port = served.api.split(":")[-1].removesuffix("/api")
    assert re.search(rf"http://faded-[0-9a-f]{{32}}\.localhost:{port}\b", told) and "Audits:" in told and "tiny" in told

    # The same audit twice: the second time nothing has changed, and its message says so.
    assert (served.ended(served.run()).name, here.executed()) == ("Completed", ALL)
    second = served.ended(served.run())
    assert second.name == "Completed" and "nothing changed; last verdict: pass" in second.message
    assert here.executed() == [] and "completed" in here.faded("schedule").stdout

    # A worker lives only for one run; what it has to report to the server still arrives.
    until(lambda: served.workers() == [], 60, served.log)
    with client_of(served.api) as client:
        assert client.read_work_pool("faded").status.value == "READY"

    # A changed schedule is applied while it runs.
    done = here.faded("schedule", "tiny", "--cron", "0 3 * * 1", "--timezone", "Europe/Berlin")
    assert f"applied to {served.api}" in done.stdout
    with client_of(served.api) as client:
        [schedule] = client.read_deployment_by_name("audit/tiny").schedules
    assert schedule.active and schedule.schedule.timezone == "Europe/Berlin"

    assert httpx.get(f"{served.api}/health").status_code == 401
    links = here.faded("serve", "--link").stdout
    assert "/faded/open?token=" in links and "/?token=" in links
    listening = {c.laddr.ip for p in served.everyone() for c in p.net_connections() if c.status == "LISTEN"}
    assert "127.0.0.1" in listening and listening <= {"127.0.0.1", "::1"}

    # A command uses the same server.
    here.edit_params({"repairs.tiny.gates": {"newly_failing": {"max": 0.5}}})  # makes only the last stage stale
    done = here.faded("audit")
    assert done.returncode == 0, done.stdout
    with client_of(served.api) as client:
        assert len([run for run in client.read_flow_runs() if run.deployment_id is None]) == 1
    processes = served.everyone()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=60) == 0 and all_gone(processes[1:]) and not (here.path / RECORD).exists()
    assert "Traceback" not in served.log.read_text() and "worker" not in served.log.read_text()


@pytest.mark.slow
def test_what_it_runs_dies_with_it_and_what_was_interrupted_goes_on(here, served):
    here.toy(re_evaluate__tiny={"sleep": 600})
    cancelled = served.run()
    running("-m stages.re_evaluate", here)
    # The report runs beside the repair: what has not ended runs again.
    until(lambda: "report@tiny" in read_lock(LOCK.read_bytes()))
    [worker] = served.workers()
    below = [worker, *worker.children(recursive=True)]
    with client_of(served.api) as client:
        client.set_flow_run_state(cancelled, Cancelling())
    assert served.ended(cancelled).name == "Cancelled" and all_gone(below)
    assert here.executed() == [*BEFORE, "re_evaluate@tiny"]

    cut_off = served.run()
    running("-m stages.re_evaluate", here)
    processes = served.everyone()
    assert len(processes) >= 4  # itself, the flow run, dvc, the stage
    served.process.kill()
    served.process.wait()
    assert all_gone(processes[1:]) and here.executed() == ["re_evaluate@tiny"]
    with Served(here) as again:
        assert "was interrupted and resumes" in again.log.read_text()
        running("-m stages.re_evaluate", here)
        again.process.terminate()
        assert again.process.wait(timeout=60) == 0
    assert here.executed() == ["re_evaluate@tiny"]

    with Served(here) as again:
        running("-m stages.re_evaluate", here)
        here.toy()
        assert here.executed() == ["re_evaluate@tiny"]
        [worker] = again.workers()
        below = worker.children(recursive=True)
        assert below
        worker.kill()
        assert all_gone(below) and again.ended(cut_off).name == "Completed" and here.executed() == AFTER
        assert "the worker ended" in again.log.read_text()
        with client_of(again.api) as client:
            why = [state.message for state in client.read_flow_run_states(cut_off) if state.name == "AwaitingRetry"]
            wanted = FlowRunFilter(id=FlowRunFilterId(any_=[cut_off]))
            tried = {task.state.name for task in client.read_task_runs(flow_run_filter=wanted) if task.name == AFTER[0]}
        assert why[:2] == [_DIED, STOPPED] and tried >= {"Interrupted", "Completed"}


def test_review_pages_come_back_at_the_port_that_links_name(here):
    with contextlib.ExitStack() as life:
        first = flows.serve._review_pages(life, ["tiny"])
    with contextlib.ExitStack() as life, socket.create_server(("127.0.0.1", 0)) as other:
        flows.serve._REVIEW_PORT.write_text(str(other.getsockname()[1]))
        elsewhere = flows.serve._review_pages(life, ["tiny"])  # that port is taken: another one
        assert elsewhere != f"http://127.0.0.1:{other.getsockname()[1]}"
        assert flows.serve._REVIEW_PORT.read_text() == str(other.getsockname()[1])  # may be free next time
        with Path("prefect.yaml").open("a") as file:
            file.write("\npublic_url: https://audits.example.org\n")
        told = rf"leads to port {other.getsockname()[1]}, which \S+ \(process {os.getpid()}\) holds: free it, or write"
        with pytest.raises(UsageError, match=told):
            flows.serve._review_pages(life, ["tiny"])
    Path("prefect.yaml").unlink()
    flows.serve._REVIEW_PORT.write_text(first.rpartition(":")[2])
    with contextlib.ExitStack() as life:
        assert flows.serve._review_pages(life, ["tiny"]) == first
        assert flows.serve._REVIEW_PORT.read_text() == first.rpartition(":")[2]
    with contextlib.ExitStack() as life:
        flows.serve._REVIEW_PORT.write_text(str(port := free_port()))
        assert flows.serve._review_pages(life, ["tiny"]) == f"http://127.0.0.1:{port}"  # not the usual one


def test_a_port_that_cannot_be_used_is_told(here, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setattr(flows.serve, "Child", lambda *_: pytest.fail("started"))
    with temporary_settings(restore_defaults={PREFECT_API_URL}), socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port} cannot be used: Address already in use"):
            flows.serve._api(contextlib.ExitStack(), port)


def test_an_audit_does_not_take_the_children_of_serve_for_leftovers(here):
    from flows.processes import child

    with child("worker", ["http.server", "0"], dict(os.environ), subprocess.DEVNULL, records=RECORDS) as process:
        code = "from flows.graph.intact import heal; print(heal())"
        done = here.run([os.fspath(Path(here.env["PATH"].split(os.pathsep)[0]) / "python"), "-c", code])
        assert done.stdout.strip() == "[]" and process.poll() is None
    assert end_leftovers(RECORDS) == []
