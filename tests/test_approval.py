"""The gate for people: requests and their limits, decisions without the page, and which audits may run meanwhile."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.evidence.write import keep_evidence, why_unfinished
from flows.graph import FIRST_STAGES, Graph, Stage
from flows.people.approval import decide, expire, open_standing, settle, wake
from flows.people.draft import decision_of
from flows.request import GATED, REQUESTS, deadline, how_to_decide, open_request, read_request
from flows.results.glance import read_status
from flows.run_stage import StageResult, run_stage
from flows.views.labels import how_it_ended
from flows.workspace import exclusive
from stages.core.errors import DecisionNeeded, Exit, InfrastructureError, RejectedError
from stages.core.files import write_state
from stages.decisions import AlreadyDecided, Decision, landscape_hash, read_chain, record_decision, standing
from stages.params import Params, load_params
from stages.records import Landscape, RepairVerdict
from tests import finished
from tests.landscapes import landscape_file
from tests.servers import http_server
from tests.workspace import Workspace, audit_params, repair_params

FOUND = [{"id": f"M{i}", "text": f"tilt = {i}", "region": {"tilt": [i]}} for i in (1, 2, 3)]
LANDSCAPE = Landscape.from_json(landscape_file(FOUND), "landscape.json")
MODES = LANDSCAPE.modes
GONE = "http://127.0.0.1:9/api"  # nobody there
RUN = "00000000-0000-0000-0000-000000000001"


@pytest.fixture
def params(tmp_path, monkeypatch) -> Params:
    """Parameters of a workspace whose audit "tiny" has a landscape that waits, and nothing else."""
    monkeypatch.chdir(tmp_path)
    show()
    return with_feedback()


def with_feedback(**feedback: object) -> Params:
    repairs = {"tiny": repair_params(feedback={"policy": "wait", **feedback})}
    Workspace(Path()).write_params({"audits": {"tiny": audit_params()}, "repairs": repairs})
    return load_params()


def show(name: str = "first") -> None:
    folder = Path("data/tiny/summarize")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "landscape.json").write_bytes(LANDSCAPE.dump())
    (folder / "landscape.parquet").write_text(name)


def made(reviewer: str = "Ada") -> Decision:
    fields = {"reviewer": reviewer, "decision": "approve"}
    for mode in MODES:
        fields |= {f"action.{mode.id}": "repair", f"reason.{mode.id}": "seen"}
    return decision_of(fields, landscape_hash("tiny"), MODES)


def let_time_pass(hours: float) -> None:
    request = read_request("tiny")
    passed = timedelta(hours=hours)
    ago = {"asked": request.asked - passed, "expires": request.expires - passed if request.expires else None}
    write_state(REQUESTS / "tiny.json", request.model_copy(update=ago))


def test_a_landscape_keeps_the_time_at_which_it_was_asked(params):
    params = with_feedback(timeout_hours=48)
    first = open_request(params, "tiny")
    assert first.expires - first.asked == timedelta(hours=48)
    again = open_request(params, "tiny", ("run-1", GONE))
    assert (again.asked, again.runs) == (first.asked, {"run-1": GONE})
    assert open_request(with_feedback(timeout_hours=2), "tiny").expires == first.asked + timedelta(hours=2)
    assert f"until {first.asked + timedelta(hours=2):%Y-%m-%d %H:%M} UTC" in how_to_decide("tiny")
    assert open_request(with_feedback(), "tiny").seconds_left is None

    show("second")
    assert deadline("tiny") is None
    other = open_request(params, "tiny")
    assert other.landscape != first.landscape and other.asked > first.asked and other.runs == {"run-1": GONE}
    for text in ("", "{", '{"landscape": "x"}', "[]"):  # unreadable: no request
        (REQUESTS / "tiny.json").write_text(text)
        assert read_request("tiny") is None and expire(params, "tiny") is None and deadline("tiny") is None


def test_no_answer_in_time_is_a_rejection_once_and_notifies(params, monkeypatch):
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("flows.recur.notify.notify", lambda *event: told.append(event[:3]))
    params = with_feedback(timeout_hours=48)
    open_request(params, "tiny")
    assert expire(params, "tiny") is None
    let_time_pass(hours=49)
    no = expire(params, "tiny")
    assert (no.reviewer, no.via, no.approve) == ("nobody", "time-out", False) and "within 48 hours" in no.reason
    assert expire(params, "tiny") is None and len(read_chain("tiny")) == 1
    [(event, audit, text)] = told
    assert (event, audit) == ("rejected", "tiny") and "within 48 hours" in text and "--revise" in text


def test_who_decided_and_who_did_not_is_told(params, monkeypatch):
    stages = [Stage(f"{kind}@tiny", kind, "tiny", 0, (), None, ()) for kind in FIRST_STAGES]
    stages.append(Stage(f"{GATED}@tiny", GATED, "tiny", 0, (), None, ("never ran",)))
    monkeypatch.setattr("flows.evidence.write.read_graph", lambda: Graph({stage.name: stage for stage in stages}))
    params = with_feedback(reviewers=2, timeout_hours=48)
    open_request(params, "tiny")
    decide(params, "tiny", made("Ada"), "page")
    assert "approved by 1 of 2 reviewers (Ada)" in how_to_decide("tiny")
    assert isinstance(why_unfinished(params, "tiny"), DecisionNeeded)
    let_time_pass(hours=49)
    assert expire(params, "tiny").reason.startswith("only approved by 1 of 2 reviewers (Ada) within 48 hours")
    with pytest.raises(AlreadyDecided, match="was rejected: only approved by"):
        open_standing(params, "tiny", revise=False)
    [row] = read_status(params, None, ["tiny"]).audits
    assert row.verdict.word.startswith("rejected: only") and row.next == "faded review tiny --revise"
    assert row.verdict.light is None and row.verdict.refuses
    no = why_unfinished(params, "tiny")
    assert isinstance(no, RejectedError) and "faded review tiny --revise" in str(no)
    again = decide(params, "tiny", made("Bob"), "page", revise=True).next_steps
    assert not any("replaces" in step for step in again), "a time-out is nobody's decision"
    third = decide(params, "tiny", made("Eve"), "page", revise=True).next_steps
    assert "This replaces the decisions of Ada, Bob, kept on record." in third


def test_a_limit_that_was_changed_while_it_waits_counts(params):
    open_request(with_feedback(timeout_hours=4), "tiny", ("run-1", GONE))
    let_time_pass(hours=5)
    assert expire(with_feedback(), "tiny") is None and deadline("tiny") is None
    assert expire(with_feedback(timeout_hours=48), "tiny") is None
    request = read_request("tiny")
    assert deadline("tiny") == request.asked + timedelta(hours=48) and request.runs == {"run-1": GONE}
    params = with_feedback(timeout_hours=1)
    show("second")
    assert expire(params, "tiny") is None  # that is not the landscape which waited
    show()
    assert "within 1 hours" in expire(params, "tiny").reason


def test_waking_needs_neither_a_run_nor_a_server(params, monkeypatch):
    monkeypatch.setattr("flows.people.waiting.configured_api", lambda: None)
    assert wake(params, "tiny") == []
    with http_server(lambda _: (200, {}, b"<html>Hello</html>")) as (port, _):
        for number, api in enumerate((GONE, f"http://127.0.0.1:{port}/api")):  # the other is another program by now
            open_request(params, "tiny", (RUN, api))
            two = with_feedback(reviewers=2 + number)
            assert len(decide(two, "tiny", made(f"R{number}"), "page").next_steps) == 3  # none of a run
            assert read_request("tiny").landscape is not None
            [told] = settle(with_feedback(), "tiny")
            assert f"{api} could not be notified" in told and "resumes with the next run of tiny" in told
            # The run is still recorded, but nothing expires any more.
            request = read_request("tiny")
            assert (request.landscape, request.expires, list(request.runs.values())) == (None, None, [api])


def test_a_run_added_while_the_limit_changes_is_kept(params):
    limits = [with_feedback(timeout_hours=hours) for hours in range(1, 9)]

    def look(n: int) -> None:
        open_request(params, "tiny", (f"run-{n}", GONE))
        expire(limits[n], "tiny")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(8)))
    assert len(read_request("tiny").runs) == 8
    assert settle(with_feedback(policy="top-k"), "tiny")  # a rule decides: nothing waits any more
    assert read_request("tiny").landscape is None


@pytest.mark.parametrize(("stage", "held"), [("collect_feedback@tiny", True), ("summarize@tiny", False)])
def test_no_decision_is_recorded_while_a_plan_is_made_of_them(params, monkeypatch, stage, held):
    """DVC hashes decisions when the stage has ended, so one made meanwhile would count as used."""
    found = []
    Path("try_lock.py").write_text(
        "from pathlib import Path\n"
        "from stages.core.files import holder\n"
        "print('free' if holder(Path('.faded/decisions-tiny.lock')) is None else 'held')\n"
    )

    @contextlib.contextmanager
    def stage_process(_name: str, command: list[str], *_: object) -> Iterator[SimpleNamespace]:
        in_place_of_dvc = [*command[: command.index("dvc")], "try_lock"]
        done = subprocess.run([sys.executable, "-m", *in_place_of_dvc], capture_output=True, text=True, check=True)
        found.append({"held\n": True, "free\n": False}[done.stdout])
        yield SimpleNamespace(stdout=io.StringIO("done\n"), wait=lambda: 0)

    monkeypatch.setattr("flows.run_stage.child", stage_process)
    run_stage(stage, print)
    assert found == [held]
    record_decision(params, "tiny", made(), "page")  # allowed afterwards


@pytest.fixture
def faded(params, monkeypatch) -> Callable[..., tuple[int, str]]:
    """The command, in this process: its exit code and output."""
    Path("dvc.yaml").write_text("")
    monkeypatch.setattr("flows.people.approval.git_user", lambda: "Ada Tester")

    def run(*arguments: str) -> tuple[int, str]:
        code, told = finished.faded(Workspace(Path.cwd()), *arguments)
        return code, " ".join(told.split())

    return run


ALL = ("approve", "tiny", "--repair", "M1,M2,M3=seen")


def test_approve_shows_what_was_recorded_and_where(faded):
    words = ("--repair", "M1=seen in [it]", "--accept", "M2=rare", "--ignore", "M3")
    code, told = faded("approve", "tiny", *words, "--reason", "fits the [field]")
    assert code == 0, told
    assert "Ada Tester approved (repair M1, accept M2, ignore M3)" in told
    assert "Ada Tester (name typed, not verified)." in told
    [kept] = read_chain("tiny")
    assert str(kept.path) in told and "`faded audit tiny` continues from here" in told
    assert (kept.decision.reason, kept.decision.via) == ("fits the [field]", "command")
    assert [mode.reason for mode in kept.decision.modes] == ["seen in [it]", "rare", ""]

    code, told = faded(*ALL)
    assert code == 2 and "a second decision is refused" in told
    code, told = faded("reject", "tiny", "--reviewer", " Ada  tester", "--reason", "looked again", "--revise")
    assert code == 0 and "Ada tester rejected landscape" in told
    assert "Then `faded audit tiny` ends there, as with a failed gate." in told and "continues from here" not in told
    assert standing(load_params(), "tiny").rejection.reason == "looked again"
    with_feedback(reviewers=2)
    code, told = faded(*ALL, "--revise")
    assert code == 0 and "tiny needs 1 more reviewer." in told and "continues from here" not in told
    with_feedback(policy="top-k")
    code, told = faded(*ALL, "--revise")
    assert code == 0 and "A rule decides for tiny (repairs.tiny.feedback.policy)" in told


def test_what_is_incomplete_or_about_another_landscape_is_no_decision(faded):
    for given, message in (
        ([], "M1, M2, M3: a choice is needed"),
        (["--repair", "M1,M2", "--ignore", "M3"], "M1, M2: a reason is needed"),
        (["--repair", "M1=a", "--ignore", "M1,M2"], "mode M1 is named twice"),
        ([*ALL[2:], "--reviewer", " "], "--reviewer NAME"),
        ([*ALL[2:], "--landscape", "0" * 16], ", not 0000"),
    ):
        code, told = faded("approve", "tiny", *given)
        assert code == 2 and message in told and read_chain("tiny") == []


def test_the_command_that_is_shown_is_complete_but_for_the_reasons(faded):
    code, told = faded("approve", "tiny", "--accept", "M2=it's rare", "--reviewer", "Ada L.", "--reason", "all in all")
    assert code == 2 and "M1, M3: a choice is needed" in told and "with --accept M1='' or --ignore M1" in told
    command = told[told.index("faded approve tiny") :]
    assert faded(*shlex.split(command)[1:])[0] == 2  # it is not a decision as it stands
    assert faded(*shlex.split(command.replace("M1=''", "M1='seen'").replace("M3=''", "M3='seen'"))[1:])[0] == 0
    [kept] = read_chain("tiny")
    words = [f"{mode.action} {mode.reason}" for mode in kept.decision.modes]
    assert words == ["repair seen", "accept it's rare", "repair seen"]
    assert (kept.decision.reviewer, kept.decision.reason) == ("Ada L.", "all in all")


def test_a_second_audit_is_refused_or_waits_as_it_wants(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hold = "from flows.workspace import exclusive\nwith exclusive():\n print('held', flush=True)\n input()\n"
    command = [sys.executable, "-c", hold]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InfrastructureError, match=rf"process {other.pid}\): wait for it or stop it"), exclusive():
            pass
        told = []

        def say(text: str) -> None:
            told.append(text)
            other.stdin.write("\n")
            other.stdin.flush()

        with exclusive(say):
            assert other.wait(timeout=30) == 0 and (tmp_path / ".faded/flow.lock").read_text() == str(os.getpid())
        assert len(told) == 1 and f"process {other.pid}): this one waits for it" in told[0]


@pytest.mark.parametrize(
    ("results", "kind", "text"),
    [
        ([("collect_feedback", "failed", "Ada\n said no", Exit.GATE_FAILED)], "rejected", "Ada said no"),
        ([("summarize", "not reached")], "broken", "a stage it depends on failed"),
        ([("conclude", "ran")], "done", "tiny: pass (decided by Ada), report /"),
    ],
)
def test_how_an_audit_ended(params, results, kind, text):
    folder = Path("data/tiny/conclude")
    folder.mkdir()
    said = {"decided_by": "human", "reviewer": "Ada", "reason": None, "statement": "said"}
    (folder / "verdict.json").write_bytes(RepairVerdict(audit="tiny", passed=True, gates=[], **said).dump())
    (folder / "report.html").touch()
    fields = ("stage", "outcome", "message", "exit_code")
    own = [StageResult(**dict(zip(fields, (f"{r[0]}@tiny", *r[1:]), strict=False))) for r in results]
    of_others = [StageResult(stage="summarize@other", outcome="failed")]
    ending = how_it_ended(params, "tiny", [*own, *of_others])
    assert ending.kind == kind and text in ending.text


def test_evidence_that_cannot_be_written_costs_no_audit(params, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("flows.evidence.write.write_bundle", refuse)
    assert keep_evidence(params, "tiny") == (None, "no evidence was written for tiny: OSError: disk full")
