"""The repeated checks of `faded serve`: runs that died, wait, crash or do not start, and decisions."""

import contextvars
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Cancelling, Completed, Crashed, Late, Pending, Running, Scheduled, Suspended
from rich.console import Console

import flows.people.waiting
import flows.serve
from flows.recur.deploy import overview, troubles
from flows.recur.runs import (
    STOPPED,
    _last_signs,
    cancel_unscheduled,
    crash_silent,
    in_state,
    name_runs,
    of_pool,
    resume_interrupted,
    run_name,
    superseded,
)
from flows.recur.schedule import Entry
from flows.request import open_request, read_request
from flows.server import talking_to
from stages.core.errors import UsageError
from stages.decisions import landscape_hash, read_chain, record_decision
from stages.params import load_params
from tests.servers import client_of, free_port, long_lived_server, until
from tests.test_approval import let_time_pass, made, show, with_feedback


class Pool:
    """A separate work pool on the shared server, with the deployment of an audit in it."""

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        flow = client.create_flow_from_name("audit")
        of: dict[str, Any] = {"parameters": {"audits": ["tiny"]}, "entrypoint": "flows.audit.audit", "path": "."}
        self.deployment = client.create_deployment(flow, name, work_pool_name=name, **of)

    def run(self, *states: Any) -> UUID:
        """A flow run that went through these states."""
        made = self.client.create_flow_run_from_deployment(self.deployment)
        self.put(made.id, *states)
        return made.id

    def put(self, run: UUID, *states: Any) -> None:
        for state in states:
            self.client.set_flow_run_state(run, state, force=True)

    def state(self, run: UUID) -> str:
        return str(self.client.read_flow_run(run).state.name)


@pytest.fixture
def pool(toys, prefect_server, request, monkeypatch) -> Iterator[Pool]:
    monkeypatch.chdir(toys.path)
    with client_of(prefect_server) as client:
        yield Pool(client, request.node.name)


def test_runs_whose_worker_is_gone_go_on(pool):
    cut_off, cancelled = pool.run(Running()), pool.run(Running(), Cancelling())
    others = {pool.run(Running(), Suspended()): "Suspended", pool.run(Running(), Completed()): "Completed"}
    others[pool.run()] = "Scheduled"
    [told] = resume_interrupted(pool.name)
    names = {run: pool.state(run) for run in [cut_off, cancelled, *others]}
    assert names == {cut_off: "AwaitingRetry", cancelled: "Cancelled"} | others
    assert told.startswith("the audit of tiny (flow run ") and told.endswith("was interrupted and resumes")
    assert resume_interrupted(pool.name) == []


def beat(client: Any, run: UUID, when: datetime) -> None:
    """Report a run's heartbeat to the server, which may come late."""
    event = {"id": str(uuid4()), "occurred": when.isoformat(), "event": "prefect.flow-run.heartbeat"}
    event |= {"resource": {"prefect.resource.id": f"prefect.flow-run.{run}"}, "related": [], "payload": {}}
    client.request("POST", "/events", json=[event]).raise_for_status()


def test_a_clock_that_jumps_makes_no_run_dead(pool, prefect_server):
    run = pool.run(Running(timestamp=datetime.now(UTC) - timedelta(days=1)))
    beat(pool.client, run, datetime.now(UTC) - timedelta(days=1))
    with talking_to(prefect_server):
        until(lambda: crash_silent(pool.name) or run in _last_signs)
        assert pool.state(run) == "Running"
        crash_silent(pool.name, timedelta(0))
        assert pool.state(run) == "Crashed"


@pytest.mark.slow
def test_no_suspended_run_is_taken_for_dead_though_its_heartbeats_come_late(pool, prefect_server):
    began = datetime.now(UTC)
    dead, alive = pool.run(Running()), pool.run(Running())
    runs = [pool.run(Running()) for _ in range(12)]
    silence, ended = timedelta(seconds=15), threading.Event()  # the server stores events every 5 s

    def look_all_the_time() -> None:
        while not ended.is_set():
            beat(pool.client, alive, datetime.now(UTC))
            crash_silent(pool.name, silence)

    with ThreadPoolExecutor() as threads, talking_to(prefect_server):
        looking = threads.submit(contextvars.copy_context().run, look_all_the_time)
        for run in runs:
            pool.put(run, Suspended())
            beat(pool.client, run, began)
        beat(pool.client, dead, began)
        until(lambda: pool.state(dead) == "Crashed")
        resumed = runs.pop()
        pool.put(resumed, Pending())
        ended.set()
        looking.result()
        assert pool.state(alive) == "Running"
        crash_silent(pool.name, timedelta(0))  # as if all this was long ago
    assert {pool.state(run) for run in runs} == {"Suspended"}
    assert (pool.state(alive), pool.state(resumed)) == ("Crashed", "Pending")


@pytest.mark.slow
def test_runs_of_a_schedule_are_named_late_ones_skipped_and_none_left_when_it_is_off(toys, monkeypatch):
    monkeypatch.chdir(toys.path)
    with long_lived_server(free_port()) as server, client_of(server.api) as client:
        pool = Pool(client, "short")
        every_second = [{"schedule": IntervalSchedule(interval=timedelta(seconds=1)), "active": True}]
        client.update_deployment(pool.deployment, DeploymentUpdate(schedules=every_second))
        by_hand = client.read_flow_run(pool.run())

        def scheduled() -> list[Any]:
            runs = client.read_flow_runs(**of_pool(pool.name), **in_state(type=["SCHEDULED"]))
            return sorted([run for run in runs if run.auto_scheduled], key=lambda run: run.expected_start_time)

        def several_late() -> bool:
            return len([run for run in scheduled() if run.expected_start_time < datetime.now(UTC)]) > 2

        until(several_late)
        first, *_, last = scheduled()
        assert "a later start of its schedule is due" in (superseded(first) or "")
        assert superseded(last) is None and superseded(by_hand) is None

        name_runs(client, pool.name)
        names = [run.name for run in scheduled()]
        assert set(names) >= {run_name(first), run_name(last)} and len(set(names)) == len(names) > 2

        client.update_deployment(pool.deployment, DeploymentUpdate(paused=True))
        assert len(cancel_unscheduled(client, pool.name)) >= 3
        assert scheduled() == [] and pool.state(by_hand.id) == "Scheduled"
        assert client.read_flow_run(first.id).state.message == "its schedule is off"


def one_look(monkeypatch, pool: str) -> str:
    """The output of `faded serve` for one round of checks."""

    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    said, worker = io.StringIO(), flows.serve.Child(nullcontext)
    console = Console(file=said, width=200)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker, "due", lambda: False)  # no run is started
        # Only its own sleep between two rounds: a client that retries a busy server also sleeps within a round.
        patch.setattr(flows.serve, "time", SimpleNamespace(monotonic=time.monotonic, sleep=stop))
        flows.serve._watch(console, flows.serve._News(console), None, worker, pool)
    return said.getvalue()


@pytest.fixture
def suspended(pool, prefect_server, monkeypatch) -> UUID:
    """A flow run that waits for a decision on the landscape of "tiny"."""
    show()
    open_request(params := with_feedback(timeout_hours=2), "tiny")
    key = flows.people.waiting.pause_key("tiny", landscape_hash("tiny"), 1)
    run = pool.run(Running(), Suspended(pause_key=key, timeout_seconds=10_000))
    open_request(params, "tiny", (str(run), prefect_server))
    return run


def test_a_run_is_woken_whose_decision_came_while_nobody_could_be_told(pool, suspended, monkeypatch):
    assert "resumes" not in one_look(monkeypatch, pool.name) and pool.state(suspended) == "Suspended"
    record_decision(load_params(), "tiny", made("Ada"), "page")  # as after `git pull`, or while no server ran
    assert "the suspended flow run" in (said := one_look(monkeypatch, pool.name)) and "resumes" in said
    assert pool.client.read_flow_run(suspended).state.is_scheduled()
    assert read_request("tiny") is None
    assert one_look(monkeypatch, pool.name) == ""


def test_nobody_deciding_in_time_is_recorded_while_it_runs(pool, suspended, monkeypatch):
    assert one_look(monkeypatch, pool.name) == ""
    assert read_chain("tiny") == []
    let_time_pass(3)
    assert "tiny: rejected: nobody decided within 2 hours" in one_look(monkeypatch, pool.name)
    [kept] = read_chain("tiny")
    assert (kept.decision.reviewer, kept.decision.approve) == ("nobody", False)
    assert pool.client.read_flow_run(suspended).state.is_scheduled()  # it resumes to report the rejection


def test_runs_that_crash_or_do_not_start_are_told_without_any_notification(pool, prefect_server, monkeypatch):
    def due(**ago: float) -> UUID:
        when = datetime.now(UTC) - timedelta(**ago)
        run = pool.client.create_flow_run_from_deployment(pool.deployment, state=Scheduled(scheduled_time=when)).id
        pool.put(run, Late(scheduled_time=when))
        return run

    started = {"entrypoint": "", "job_variables": {}, "pull_steps": [], "parameters": []}
    entry = Entry(pool.name, "tiny", pool.name, cron=None, timezone="UTC", active=False, **started)
    late, crashed = due(hours=2), pool.run(Running())
    due(minutes=5)
    before = datetime.now(UTC)
    pool.put(crashed, Crashed(message="no heartbeat for 120 s"))
    told = troubles(pool.name, before)
    overdue = pool.client.read_flow_run(late)
    when = overdue.expected_start_time.astimezone()
    waits = f" should have started on {when:%a %Y-%m-%d at %H:%M %Z}: no worker is running, or another audit is"
    assert sorted(line.partition(")")[2] for line in told) == [" crashed: no heartbeat for 120 s", waits]
    assert [line for line in troubles(pool.name, datetime.now(UTC)) if "crashed" in line] == []  # old news
    assert one_look(monkeypatch, pool.name).strip() == f"the audit of tiny (flow run {run_name(overdue)}){waits}"
    [row] = overview(load_params(), [entry], prefect_server)
    assert row.last.endswith(" crashed") and row.waits.startswith("a worker or its turn, since ")
    pool.put(pool.run(Running()), Completed(name="Skipped"))  # left to the run before, which is the one of interest
    assert overview(load_params(), [entry], prefect_server) == [row]


def test_a_run_that_keeps_dying_is_given_up_but_not_one_that_starts_often(pool):
    # It waited for people several times, and `faded serve` was stopped with Ctrl-C.
    patient = pool.run(*[Running(), Suspended()] * 6)
    for _ in range(6):
        pool.put(patient, Running())
        resume_interrupted(pool.name, STOPPED)
    hopeless = pool.run()
    for death in range(1, 6):
        assert pool.state(hopeless) == ("Scheduled" if death == 1 else "AwaitingRetry")
        pool.put(hopeless, Running())
        told = resume_interrupted(pool.name)
    assert pool.state(hopeless) == "Crashed"
    assert told == [line for line in told if line.endswith("died 5 times: given up")] != []
    pool.put(patient, Running())
    resume_interrupted(pool.name)
    assert pool.state(patient) == "AwaitingRetry"


def test_what_does_not_change_is_told_once_and_nothing_ends_it():
    said = io.StringIO()
    told = flows.serve._News(Console(file=said, width=200))

    def look(*errors: Exception) -> list[str]:
        for error in errors:
            with told("tiny"):
                raise error
        lines = said.getvalue().splitlines()
        said.seek(0)
        said.truncate()
        return lines

    assert look(UsageError("params.yaml: bad"), UsageError("params.yaml: bad")) == ["params.yaml: bad"]
    assert look(KeyError("x")) == ["tiny: KeyError: 'x'"]
    with told("tiny"):
        pass
    assert look(KeyError("x")) == ["tiny: KeyError: 'x'"]  # reported again, as the check succeeded in between
    for lines in (["r1 is late"], ["r1 is late", "r2 is late"], ["r2 is late"]):
        with told("runs") as given:
            given.extend(lines)
    assert look() == ["r1 is late", "r2 is late"]
    with pytest.raises(KeyboardInterrupt), told("tiny"):
        raise KeyboardInterrupt
