"""The audit flow, run as people run it, on toy stages: what it runs, retries, leaves out and says."""

from __future__ import annotations

import threading
from subprocess import CompletedProcess

import pytest

from flows.artifacts import key
from flows.runners import Slots, make_runner
from stages.errors import UsageError
from tests.workspace import STAGES, Workspace, audit_params, make_workspace, repair_params

ALL = [f"{stage}@tiny" for stage in STAGES]


@pytest.fixture(scope="module")
def server(prefect_server):
    return {"PREFECT_API_URL": prefect_server}


@pytest.fixture(scope="module")
def first(tmp_path_factory, server) -> tuple[Workspace, CompletedProcess[str]]:
    """A workspace whose audit ran once, and what that printed."""
    toys = make_workspace(tmp_path_factory.mktemp("first") / "toys", toys=True)
    return toys, toys.faded("audit", **server)


@pytest.fixture
def finished(first, tmp_path) -> Workspace:
    """A copy of it, with another gate: only re_evaluate is stale."""
    toys = first[0].copy(tmp_path / "toys")
    toys.executed()
    params = toys.params()
    params["repairs"]["tiny"]["gates"] = {"newly_failing": {"max": 0.5}}
    toys.write_params(params)
    return toys


def test_a_whole_audit_runs_once_and_then_not_again(first):
    toys, done = first
    assert done.returncode == 0, done.stdout
    assert toys.executed() == ALL
    assert "toy discover of tiny at work" in done.stdout
    assert "tiny: pass" in done.stdout
    assert str(toys.path / "data/tiny/re_evaluate/report.html") in done.stdout
    assert (toys.path / ".faded/logs/discover@tiny.log").read_text().count("toy discover of tiny at work") == 1

    again = toys.faded("audit", PREFECT_API_URL="http://127.0.0.1:9/api")  # nobody there, and nobody is asked
    assert again.returncode == 0, again.stdout
    assert toys.executed() == []
    assert "nothing to do" in again.stdout and "tiny: pass" in again.stdout


def test_what_came_out_is_published_as_artifacts(first):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        for what, kind in (("failure-modes", "table"), ("verdict", "markdown"), ("report", "markdown")):
            wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[f"tiny-{what}"]))
            found = client.read_artifacts(artifact_filter=wanted)
            assert {artifact.type for artifact in found} == {kind}


def test_changing_only_a_gate_reruns_only_re_evaluate(finished, server):
    assert finished.faded("audit", **server).returncode == 0
    assert finished.executed() == ["re_evaluate@tiny"]


def test_changed_code_reruns_its_stage_and_what_depends_on_it(finished, server):
    with (finished.path / "stages/restructure.py").open("a") as code:
        code.write("# changed\n")
    assert finished.faded("audit", **server).returncode == 0
    assert finished.executed() == ["restructure@tiny", "re_evaluate@tiny"]


def test_outputs_that_were_there_before_are_restored_and_nothing_executes(finished, first, server):
    finished.write_params(first[0].params())
    with (finished.path / "stages/re_evaluate.py").open("a") as code:
        code.write("# changed\n")
    assert finished.faded("audit", **server).returncode == 0
    assert finished.executed() == ["re_evaluate@tiny"]
    (finished.path / "stages/re_evaluate.py").write_text((first[0].path / "stages/re_evaluate.py").read_text())
    done = finished.faded("audit", **server)
    assert finished.executed() == []
    assert "restored" in done.stdout


def test_bad_input_is_not_retried_and_other_audits_go_on(tmp_path, server):
    toys = make_workspace(tmp_path, {"tiny": audit_params(), "other": audit_params()}, {}, toys=True)
    toys.toy(discover__tiny={"exit": 2})
    done = toys.faded("audit", "--all", **server)
    assert done.returncode == 2, done.stdout
    executed = toys.executed()
    assert executed.count("discover@tiny") == 1
    assert "summarize@tiny" not in executed
    assert executed.count("summarize@other") == 1
    assert "toy discover was told to exit with 2" in done.stdout
    assert "other: pass" in done.stdout and "tiny: pass" not in done.stdout
    assert "Traceback" not in done.stdout


def test_a_killed_stage_is_retried(finished, server):
    (finished.path / ".faded/attempts-re_evaluate-tiny").unlink()
    finished.toy(re_evaluate__tiny={"kill_first": 1})
    done = finished.faded("audit", **server)
    assert done.returncode == 0, done.stdout
    assert finished.executed() == ["re_evaluate@tiny"] * 2
    assert "stage exited with -9" in done.stdout


def test_a_stage_that_keeps_failing_ends_with_infrastructure(finished, server):
    finished.toy(re_evaluate__tiny={"exit": 3})
    done = finished.faded("audit", **server)
    assert done.returncode == 3, done.stdout
    assert finished.executed() == ["re_evaluate@tiny"] * 3
    assert ".faded/logs/re_evaluate@tiny.log" in done.stdout
    assert "tiny: pass" not in done.stdout  # that verdict on disk is of an earlier run


def test_a_rejected_landscape_ends_like_a_failed_gate(finished, server):
    finished.toy(re_evaluate__tiny={"exit": 1})
    done = finished.faded("audit", **server)
    assert done.returncode == 1, done.stdout
    assert finished.executed() == ["re_evaluate@tiny"]


def test_a_failed_gate_is_exit_code_1_now_and_when_cached(finished, server):
    finished.toy(re_evaluate__tiny={"passed": False})
    assert finished.faded("audit", **server).returncode == 1
    assert finished.executed() == ["re_evaluate@tiny"]
    assert finished.faded("audit").returncode == 1
    assert finished.executed() == []


def test_an_audit_without_repairs_ends_with_its_landscape(tmp_path, server):
    toys = make_workspace(tmp_path, {"only": audit_params()}, {}, toys=True)
    done = toys.faded("audit", **server)
    assert done.returncode == 0, done.stdout
    assert toys.executed() == ["prepare@only", "discover@only", "summarize@only"]
    assert str(toys.path / "data/only/summarize/report.html") in done.stdout


def test_it_runs_without_a_configured_server_and_leaves_no_process(toys):
    toys.toy(prepare__tiny={"exit": 2})
    done = toys.faded("audit")
    assert done.returncode == 2, done.stdout
    assert "connection" not in done.stdout.lower()
    assert list((toys.path / ".faded/run").iterdir()) == []
    assert (toys.path / ".faded/prefect/prefect.db").exists()


def test_it_waits_for_a_person_and_goes_on_after_the_review(tmp_path, server):
    repair = repair_params(feedback={"policy": "wait"})
    toys = make_workspace(tmp_path, repairs={"tiny": repair}, toys=True)
    done = toys.faded("audit", **server)
    assert done.returncode == 0, done.stdout
    assert toys.executed() == ALL[:3]
    assert "faded review tiny" in done.stdout and "tiny: pass" not in done.stdout
    assert toys.faded("audit").returncode == 0  # nothing to run but a person's part: needs no server
    assert toys.executed() == []

    answers = "accept\nharmless\nrepair\nhigh\nseen in the field\n\nfor the release\ny\ny\n"
    review = toys.faded("review", stdin=answers)
    assert review.returncode == 0, review.stdout
    [decision] = (tmp_path / "data/tiny/decisions").glob("*.yaml")
    text = decision.read_text()
    assert "reviewer: Ada Tester" in text and "severity: 2.0" in text and "reason: seen in the field" in text

    done = toys.faded("audit", **server)
    assert done.returncode == 0, done.stdout
    assert toys.executed() == ALL[3:]
    kept = toys.faded("review", stdin="n\n")
    assert "kept as it is" in kept.stdout
    assert decision.read_text() == text


def test_a_failure_before_the_gate_ends_the_audit_there(finished, server):
    params = finished.params()
    params["repairs"]["tiny"]["feedback"] = {"policy": "wait"}
    params["audits"]["tiny"]["summarize"]["modes"] = 3
    finished.write_params(params)
    finished.toy(summarize__tiny={"exit": 2})
    done = finished.faded("audit", **server)
    assert done.returncode == 2, done.stdout
    assert finished.executed() == ["summarize@tiny"]
    assert "not reached" in done.stdout and "waits for a decision" not in done.stdout


def test_a_broken_off_review_writes_nothing(tmp_path, server):
    toys = make_workspace(tmp_path, repairs={"tiny": repair_params(feedback={"policy": "wait"})}, toys=True)
    assert toys.faded("audit", **server).returncode == 0
    done = toys.faded("review", stdin="repair\n")
    assert done.returncode == 2
    assert "no decision was written" in done.stdout
    assert list((tmp_path / "data/tiny/decisions").glob("*.yaml")) == []


def test_a_gpu_is_given_to_one_stage_at_a_time():
    slots = Slots(4, ["0", "1"])
    held: list[str] = []
    at_once: list[int] = []
    lock = threading.Lock()
    all_at_work = threading.Barrier(2)

    def stage() -> None:
        with slots.hold(1) as taken:
            with lock:
                held.extend(taken)
                assert len(set(held)) == len(held)
                at_once.append(len(held))
            all_at_work.wait(timeout=30)  # both GPUs are in use at the same time
            with lock:
                held.remove(taken[0])

    threads = [threading.Thread(target=stage) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(at_once) == 6
    assert max(at_once) == 2


def test_unknown_runners_and_missing_gpus_are_refused(monkeypatch):
    with pytest.raises(UsageError, match="no runner 'slurm', found: threads"):
        make_runner("slurm")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UsageError, match="asks for 2 GPU"):
        make_runner("threads", gpus=2)


def test_artifact_keys_are_as_prefect_wants_them():
    assert key("My_Audit-2", "failure-modes") == "my-audit-2-failure-modes"
