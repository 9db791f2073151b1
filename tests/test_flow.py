"""The audit flow on toy stages, run as people run it: what it runs, retries, skips and prints."""

import contextlib
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, Log, TaskRun
from prefect.client.schemas.sorting import FlowRunSort
from rich.console import Console

import flows.audit
from flows.people.artifacts import verdict_markdown
from flows.places.runners import Slots
from flows.results import read_verdict
from flows.run import EndedRun, show_audits
from flows.run_stage import _stream, run_stage
from stages.core.errors import BugError, Exit, InfrastructureError, RejectedError, UnavailableError, UsageError
from stages.params import load_params
from tests.finished import faded, finished_toys
from tests.servers import until
from tests.workspace import STAGES, Workspace, audit_params, make_workspace, repair_params

ALL = [f"{stage}@tiny" for stage in STAGES]


@pytest.fixture(scope="module")
def server(prefect_server):
    return {"PREFECT_API_URL": prefect_server}


@pytest.fixture(scope="module")
def first(tmp_path_factory, server) -> tuple[Workspace, CompletedProcess[str]]:
    """A workspace whose audit ran once, and its output."""
    toys = make_workspace(tmp_path_factory.mktemp("first") / "toys", toys=True)
    return toys, CompletedProcess("audit", *faded(toys, "audit"))


@pytest.fixture
def finished(first, tmp_path) -> Workspace:
    """A copy of it with another gate, so that only conclude is stale."""
    toys = first[0].copy(tmp_path / "toys")
    toys.executed()
    toys.edit_params({"repairs.tiny.gates": {"newly_failing": {"max": 0.5}}})
    return toys


@pytest.fixture
def audit_here(server, monkeypatch) -> Callable[..., tuple[int, str]]:
    """`faded audit` in this process, which has already imported everything."""
    monkeypatch.setattr(flows.audit.reproduce, "retry_delay_seconds", 0)
    return lambda toys, *audits: faded(toys, "audit", *audits)


def test_a_whole_audit_runs_once_and_then_not_again(first, monkeypatch):
    toys, done = first
    assert done.returncode == 0, done.stdout
    assert toys.executed() == ALL
    assert "toy discover of tiny at work" in done.stdout
    assert "tiny: pass (decided by policy, no human)" in done.stdout and "said by a toy" in done.stdout
    assert str(toys.path / "data/tiny/conclude/report.html") in done.stdout
    assert (toys.path / ".faded/logs/discover@tiny.log").read_text().count("toy discover of tiny at work") == 1

    monkeypatch.setattr("flows.server.start_prefect_api", lambda: pytest.fail("started"))
    code, told = faded(toys, "audit")
    assert code == 0 and "nothing to do" in told and "tiny: pass" in told
    assert toys.executed() == []
    [row] = [line for line in faded(toys, "status")[1].splitlines() if line.split()[:1] == ["tiny"]]
    assert "pass" in row and "policy, no" in row and "faded audit" not in row


def last_run() -> tuple[FlowRun, dict[str, TaskRun]]:
    """The flow run that started last, and its task runs by name."""
    with get_client(sync_client=True) as client:
        [run] = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))

        def whole() -> dict[str, TaskRun] | None:  # the server learns about task runs from events
            tasks = {task.name: task for task in client.read_task_runs(flow_run_filter=wanted)}
            ended = (task.state.is_final() or task.state.name == "NotReady" for task in tasks.values())
            return tasks if all(ended) else None

        return run, until(whole)


def test_changing_only_a_gate_reruns_only_conclude_and_the_run_shows_whose_it_is(finished, audit_here, monkeypatch):
    again = "flows.graph.intact.read_healed"  # DVC is asked once
    monkeypatch.setattr(again, lambda _: pytest.fail("read a second time"))
    assert audit_here(finished)[0] == 0 and finished.executed() == ["conclude@tiny"]
    run, tasks = last_run()
    assert re.fullmatch(r"tiny \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", run.name)
    assert set(run.tags) == {"faded", "tiny", "from terminal"}
    assert run.state.name == "Completed" and run.state.message.startswith("tiny: pass (decided by policy, no human)")
    states = {name: task.state.name for name, task in tasks.items()}
    assert states == dict.fromkeys(ALL, "Cached") | {"conclude@tiny": "Completed"}
    assert "nothing it depends on has changed" in tasks["discover@tiny"].state.message
    assert tasks["conclude@tiny"].state.message.startswith("ran in ")


def test_a_killed_stage_is_retried_and_a_failed_gate_ends_in_a_state_of_its_own(finished, audit_here):
    (finished.path / ".faded/attempts-conclude-tiny").unlink()
    finished.toy(conclude__tiny={"passed": False, "kill_first": 1})
    code, told = audit_here(finished)
    assert code == 1 and "tiny: pass" not in told  # the verdict on disk is from an earlier run
    assert finished.executed() == ["conclude@tiny"] * 2
    assert "stage exited with -9" in told and "attempt 2 of 3" in told
    run, tasks = last_run()
    assert run.state.is_failed() and (run.state.name, tasks["conclude@tiny"].state.name) == ("Gate failed", "Completed")
    assert "Traceback" not in "".join(log.message for log in logs_of(run))


def logs_of(run: FlowRun) -> list[Log]:
    """The log of a run, once it contains its end."""
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))

    def whole() -> list[Log] | None:
        logs = client.read_logs(wanted, limit=200)
        ended = any("Finished in state" in log.message and log.task_run_id is None for log in logs)
        return logs if ended else None

    with get_client(sync_client=True) as client:
        return until(whole)


@pytest.mark.slow
def test_bad_input_is_not_retried_and_an_audit_without_repairs_goes_on_to_its_landscape(tmp_path, audit_here):
    toys = finished_toys().copy(tmp_path / "toys")
    toys.write_params({"audits": toys.params()["audits"], "repairs": {}})
    toys.edit_params({"audits.tiny.discover.budget": 100, "audits.other.summarize.modes": 3})
    toys.toy(discover__tiny={"exit": 2})
    code, told = audit_here(toys, "tiny", "other")
    assert code == 2, told
    executed = toys.executed()
    assert executed.count("discover@tiny") == 1 and "summarize@tiny" not in executed
    assert [stage for stage in executed if stage.endswith("@other")] == ["summarize@other", "report@other"]
    assert "toy discover was told to exit with 2" in told and "other: pass" in told and "tiny: pass" not in told
    assert str(toys.path / "data/other/report/report.html") in told


@pytest.mark.parametrize(
    ("stage", "code", "error", "told"),
    [
        ("conclude", 2, UsageError, "rejected its input"),
        ("conclude", 137, InfrastructureError, r"exited with 137\), full log in .faded/logs/conclude@tiny.log"),
        ("conclude", 69, UnavailableError, "needs something that does not respond, full log in .faded"),
        ("conclude", 70, BugError, "or its task has a bug, full log in .faded/logs/conclude@tiny.log"),
        ("collect_feedback", 1, RejectedError, ""),
    ],
)
def test_how_a_stage_ended_is_told_by_its_exit_code(tmp_path, monkeypatch, stage, code, error, told):
    """By what DVC prints of it; runs in which stages exit with 1, 2 and -9 are in other tests."""
    monkeypatch.chdir(tmp_path)
    run = f"failed to run: exec python -m stages.{stage} tiny, exited with {code}"
    printed = f"error: toy {stage} was told to exit\nERROR: failed to reproduce '{stage}@tiny': {run}\n"

    @contextlib.contextmanager
    def child(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(stdout=io.StringIO(printed), wait=lambda: 255)

    monkeypatch.setattr("flows.run_stage.child", child)
    said: list[str] = []
    before = f"{stage}@tiny.*{told}.*" if told else ""  # a decision is not an error of the stage
    with pytest.raises(error, match=f"(?s)^{before}toy {stage} was told to exit$"):
        run_stage(f"{stage}@tiny", said.append)
    assert said == [printed.splitlines()[0]]  # without how DVC puts it


def test_only_what_the_machine_did_is_tried_again(tmp_path, audit_here, monkeypatch):
    errors = {
        "away": UnavailableError("a service does not respond"),  # the stage has already retried
        "bug": BugError("its task has a bug"),
        "disk": InfrastructureError("the disk is full"),
    }
    tried = []

    def run_stage(stage: str, *_: object) -> None:
        tried.append(stage)
        raise errors[stage.removeprefix("prepare@")]

    monkeypatch.setattr("flows.places.runners.threads.run_stage", run_stage)
    code, told = audit_here(make_workspace(tmp_path, dict.fromkeys(errors, audit_params()), {}, toys=True), *errors)
    assert code == 3, told
    assert sorted(tried) == ["prepare@away", "prepare@bug", *["prepare@disk"] * 3]
    assert all(str(error) in told for error in errors.values())


@pytest.mark.parametrize(
    ("passed", "gates", "word", "code"),
    [
        (True, [True, True], "pass", Exit.PASS),
        (False, [True, False, None], "FAIL", Exit.GATE_FAILED),
        (None, [True, None], "not judged", Exit.GATE_FAILED),  # a gate without a value is not a pass
        (None, [], "no gates set", Exit.PASS),
    ],
)
def test_a_verdict_in_words_and_as_exit_code(tmp_path, monkeypatch, passed, gates, word, code):
    monkeypatch.chdir(tmp_path)
    Workspace(tmp_path).write_params({"audits": {"tiny": audit_params()}, "repairs": {"tiny": repair_params()}})
    empty = {"bound": 0.1, "value": None, "low": None, "high": None}
    entries = [{"gate": f"g{i}", **empty, "passed": gate} for i, gate in enumerate(gates)]
    path = tmp_path / "data/tiny/conclude/verdict.json"
    path.parent.mkdir(parents=True)
    said = {"audit": "tiny", "decided_by": "human", "reviewer": "Ada", "reason": None, "statement": "Said so."}
    path.write_text(json.dumps({"schema": 1, "passed": passed, "gates": entries, **said}))
    shown = io.StringIO()
    ended = EndedRun(verdicts=[read_verdict(load_params(), "tiny")])
    show_audits(Console(file=shown, width=120), ended)
    assert ended.exit_code == code
    assert f"tiny: {word} (decided by Ada)" in shown.getvalue() and "Said so." in shown.getvalue()
    published = verdict_markdown(read_verdict(load_params(), "tiny"))
    assert published.startswith("Decided by Ada\n\nSaid so\\.\n")
    for text in (shown.getvalue(), published):
        lines = {line.strip("| ").split()[0]: line for line in text.splitlines() if line.strip("| ")}
        for i, gate in enumerate(gates):
            assert lines[f"g{i}"].rstrip(" |").endswith({True: "yes", False: "no", None: "not judged"}[gate])


@pytest.mark.slow
def test_it_waits_for_a_person_and_goes_on_after_the_review(finished, audit_here, monkeypatch):
    toys, params = finished, finished.params()
    params["repairs"]["tiny"]["feedback"] = {"policy": "wait"}
    params["audits"]["tiny"]["summarize"]["modes"] = 3
    toys.write_params(params)
    code, told = audit_here(toys)
    assert code == 0, told
    assert toys.executed() == ALL[2:4]
    assert "faded review tiny" in told and "tiny: pass" not in told
    with monkeypatch.context() as patch:  # nothing to run: no server
        patch.setattr("flows.server.start_prefect_api", lambda: pytest.fail("started"))
        assert audit_here(toys)[0] == 0
    assert toys.executed() == []

    code, told = faded(toys, "review", "--terminal", stdin="repair\n")
    assert code == 2 and "no decision was written" in told
    assert list((toys.path / "data/tiny/decisions").glob("*.yaml")) == []

    answers = "accept\nharmless\nrepair\nhigh\nseen in the field\n\nfor the release\ny\ny\n"
    code, told = faded(toys, "review", "--terminal", stdin=answers)
    assert code == 0, told
    for mode in ("M1", "M2"):
        assert "40% to 60%" in next(line for line in told.splitlines() if line.split()[:1] == [mode])
    assert "tilt = 3" not in told  # only suspected
    [decision] = (toys.path / "data/tiny/decisions").glob("*.yaml")
    text = decision.read_text()
    assert "reviewer: Ada Tester" in text and "severity: 2.0" in text and "reason: seen in the field" in text

    code, told = audit_here(toys)
    assert code == 0, told
    assert toys.executed() == ALL[4:]
    code, told = faded(toys, "review", "--terminal", stdin=answers)
    assert code == 2 and "was approved by Ada Tester; to decide again" in told and "--revise" in told
    assert decision.read_text() == text


def test_a_rejection_ends_like_a_failed_gate_and_a_failure_before_it_ends_the_audit_there(finished, audit_here):
    (finished.path / "data/tiny/decisions/README.md").write_text("changed\n")
    finished.toy(collect_feedback__tiny={"exit": 1}, summarize__tiny={"exit": 2})
    code, told = audit_here(finished)
    assert code == 1, told
    assert finished.executed() == ["collect_feedback@tiny"]
    finished.edit_params({"repairs.tiny.feedback": {"policy": "wait"}, "audits.tiny.summarize.modes": 3})
    code, told = audit_here(finished)
    assert code == 2, told
    assert finished.executed() == ["summarize@tiny"]
    assert "not reached" in told and "waits for a decision" not in told and "tiny: pass" not in told
    run, tasks = last_run()
    assert run.state.is_failed() and (run.state.name, tasks["summarize@tiny"].state.name) == ("Failed", "Failed")
    logs = logs_of(run)
    assert "Traceback" not in "".join(log.message for log in logs)
    assert {log.level for log in logs if log.message.startswith("error: toy summarize was told")} == {logging.ERROR}


def test_a_gpu_is_given_to_one_stage_at_a_time():
    slots = Slots(4, ["0", "1"])
    held: list[str] = []
    lock, most = threading.Lock(), 0
    all_at_work = threading.Barrier(2)

    def stage() -> None:
        nonlocal most
        with slots.hold(1) as taken:
            with lock:
                held.extend(taken)
                assert len(set(held)) == len(held)
                most = max(most, len(held))
            all_at_work.wait(timeout=30)  # both GPUs are in use at the same time
            with lock:
                held.remove(taken[0])

    with ThreadPoolExecutor(6) as threads:
        assert [future.result(timeout=60) for future in [threads.submit(stage) for _ in range(6)]] == [None] * 6
    assert most == 2


def test_what_a_model_answers_does_not_control_the_terminal():
    said: list[str] = []
    log = io.StringIO()
    _stream(io.StringIO("    most often label cat answered as dog\x1b[2J\x07: 3 of 5\n"), log, said.append)
    assert said == log.getvalue().splitlines() == ["    most often label cat answered as dog\\x1b[2J\\x07: 3 of 5"]
