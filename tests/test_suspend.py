"""A deployed audit waits for a person without a process, on a real Prefect server with toy stages."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partialmethod
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import pytest
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow_sync
from prefect.states import Completed, Pending, Running
from rich.console import Console

import flows.audit
from flows.people.approval import decide, settle
from flows.people.draft import decision_of
from flows.request import REQUESTS, Request, read_modes, read_request
from flows.run import run_audits, show_audits
from flows.views.labels import shown_before
from stages.core.files import write_state
from stages.decisions import Decision, landscape_hash, read_chain, record_decision
from stages.params import load_params
from tests.finished import inside
from tests.servers import until
from tests.test_approval import let_time_pass
from tests.workspace import ROOT, STAGES, Workspace, audit_params, call

ALL = [f"{stage}@tiny" for stage in STAGES]
BEFORE, AFTER = ALL[:4], ALL[4:]


@pytest.fixture(scope="module")
def client(prefect_server) -> Iterator[SyncPrefectClient]:
    # Prefect keeps one sender of events for all servers, and an earlier test's may be bound to one that is gone.
    EventsWorker.set_client_override(PrefectEventsClient, api_url=prefect_server)
    with get_client(sync_client=True) as client:
        yield client
    EventsWorker.set_client_override(None)


@dataclass
class Deployment:
    """An audit's deployment in a workspace of toys in which a person decides."""

    client: SyncPrefectClient
    toys: Workspace
    id: UUID
    told: list[tuple[str, ...]]

    def start(self, **parameters: object) -> UUID:
        return self.client.create_flow_run_from_deployment(self.id, parameters=parameters).id

    def execute(self, run: UUID) -> FlowRun:
        """Do the work of a worker's child process in this process, which has already imported everything."""
        self.client.set_flow_run_state(run, Pending())
        flow_run = self.client.read_flow_run(run)
        with contextlib.suppress(Pause):
            run_flow_sync(flows.audit.audit, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")
        return self.read(run)

    def read(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def run(self) -> FlowRun:
        return self.execute(self.start())

    def answer(self, run: FlowRun, **form: object) -> str | None:
        """Fill in the form as Prefect's page does; return why it was refused."""
        given = {"decision": "approve", "reviewer": "Ada", "M1": "repair", "M1_reason": "seen", "M2": "ignore", **form}
        return getattr(self.client.resume_flow_run(run.id, run_input=given).details, "reason", None)

    def artifacts(self, run: FlowRun) -> dict[str, str]:
        """The last artifact of a run under each key."""
        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        found = self.client.read_artifacts(artifact_filter=wanted)
        return {artifact.key: artifact.data for artifact in sorted(found, key=lambda artifact: artifact.created)}

    def tasks(self, run: FlowRun) -> list[str]:
        """The stages that a run shows, with their states, once all have ended; the server gets them by events."""
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))

        def ended() -> list[str] | None:
            found = [(task.name, task.state) for task in self.client.read_task_runs(flow_run_filter=wanted)]
            over = all(state.is_final() or state.name == "NotReady" for _, state in found)
            return sorted(f"{name} {state.name}" for name, state in found) if over else None

        return until(ended)

    def form(self, run: FlowRun) -> tuple[dict, str]:
        """The schema and the description of the form that the run is suspended with, the latter as rendered text."""
        keys = run.state.state_details.run_input_keyset
        schema, text = (
            self.client.request("GET", "/flow_runs/{id}/input/{key}", path_params={"id": run.id, "key": keys[what]})
            for what in ("schema", "description")
        )
        return schema.json(), re.sub(r"\\(.)", r"\1", text.json())


@pytest.fixture(scope="module")
def waiting_toys(client, _new_toys, tmp_path_factory) -> Workspace:
    """A workspace whose audit has run up to its landscape."""
    toys, told = _new_toys.copy(tmp_path_factory.mktemp("waiting") / "toys"), io.StringIO()
    ask_a_person(toys)
    with inside(toys):
        ended = run_audits(load_params(), ["tiny"], "threads", console := Console(file=told, width=160))
        show_audits(console, ended)
        assert ended.exit_code == 0
    assert "faded review tiny" in told.getvalue() and toys.executed() == BEFORE
    return toys


@pytest.fixture
def deployment(waiting_toys, tmp_path, client, monkeypatch) -> Iterator[Deployment]:
    toys = waiting_toys.copy(tmp_path / "toys")
    monkeypatch.setattr(flows.audit, "aside", call)
    monkeypatch.setattr(flows.audit.reproduce, "retry_delay_seconds", 0)
    told: list[tuple[str, ...]] = []
    monkeypatch.setattr("flows.recur.notify.notify", lambda *event: told.append(event[:3]))
    with inside(toys):
        yield Deployment(client, toys, create(client, tmp_path.name), told)


def create(client: SyncPrefectClient, name: str, **where: Any) -> UUID:
    flow, what = client.create_flow_from_name("audit"), {"parameters": {"audits": ["tiny"]}, "path": "."}
    return client.create_deployment(flow, name, entrypoint="flows.audit.audit", **what, **where)


@pytest.mark.slow
def test_a_run_knows_all_stages_that_it_showed_though_the_server_gives_them_page_by_page(client, monkeypatch):
    run = client.create_flow_run(flow(lambda: None, name="audit"))
    for i in range(5):
        shown = {"name": f"stage{i}", "state": Completed() if i else Running()}
        client.create_task_run(task(lambda: None, name="stage"), run.id, str(i), **shown)
    in_pages = partialmethod(SyncPrefectClient.read_task_runs, limit=2)
    monkeypatch.setattr(SyncPrefectClient, "read_task_runs", in_pages)
    assert shown_before(run) == {"stage1", "stage2", "stage3", "stage4"}


def ask_a_person(toys: Workspace, **feedback: object) -> None:
    params = toys.params()
    params["repairs"]["tiny"]["feedback"] = {"policy": "wait", **feedback}
    toys.write_params(params)


def suspended(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_paused() and run.state.name == "Suspended"


def made(reviewer: str = "Ada") -> Decision:
    chosen = {"action.M1": "repair", "reason.M1": "seen", "action.M2": "ignore"}
    fields = {"reviewer": reviewer, "decision": "approve", **chosen}
    return decision_of(fields, landscape_hash("tiny"), read_modes("tiny"))


@pytest.mark.slow
def test_the_form_leads_to_the_decision_file_and_the_run_goes_on(deployment):
    run = deployment.run()
    assert suspended(run) and run.state.state_details.pause_timeout is None, run.state
    assert re.fullmatch(r"tiny \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", run.name)
    assert set(run.tags) == {"faded", "tiny", "started by hand"}
    # Its own page shows what it waits for, and no verdict.
    assert run.state.message.startswith("tiny waits for a decision on its landscape: `faded review tiny`")
    assert set(shown := deployment.artifacts(run)) == {"tiny-failure-modes", "tiny-decision"}
    assert shown["tiny-decision"].startswith("# tiny: Your decision is needed") and "- M1: " in shown["tiny-decision"]
    assert [event[:2] for event in deployment.told] == [("needs decision", "tiny")]
    schema, text = deployment.form(run)
    for asked in (schema["properties"][mode] for mode in ("M1", "M2")):
        assert asked["enum"] == ["undecided", "repair", "accept", "ignore"] and asked["default"] == "undecided"
        assert asked["description"].endswith("fails in 50% (40% to 60%)")
    assert schema["properties"]["decision"]["description"].startswith("tiny waits for a decision on its landscape: ")
    assert {"decision", "reviewer"} <= set(schema["required"])
    assert "faded review tiny" in text and text.count("fails in 50% (40% to 60%)") == 2
    assert "S1" not in schema["properties"] and "tilt = 3" not in text  # only suspected

    assert deployment.answer(run, reviewer=" ") is not None and deployment.answer(run, M7="repair") is not None
    assert deployment.answer(run, reason="for {{ the }} release", M2="accept", M2_reason="rare") is None
    name, run = run.name, deployment.execute(run.id)
    assert run.state.is_completed() and run.name == name, run.state
    assert run.state.message.startswith("tiny: pass") and run.state.message.endswith("conclude/report.html")
    shown = deployment.artifacts(run)
    assert shown["tiny-verdict"].startswith("# tiny: pass")
    assert "`Ada` approved it (prefect): `for {{ the }} release`" in shown["tiny-decision"]
    states = [f"{stage} {'Cached' if stage in BEFORE else 'Completed'}" for stage in ALL]
    assert deployment.tasks(run) == sorted(states)  # each once, though the run started twice
    assert deployment.toys.executed() == AFTER
    [kept] = read_chain("tiny")
    assert (kept.decision.reviewer, kept.decision.via, kept.decision.approve) == ("Ada", "prefect", True)
    assert kept.decision.reason == "for {{ the }} release"
    assert [(mode.action, mode.reason) for mode in kept.decision.modes] == [("repair", "seen"), ("accept", "rare")]
    assert read_request("tiny") is None


@pytest.mark.slow
def test_reviewers_are_asked_until_all_have_decided(deployment):
    ask_a_person(deployment.toys, reviewers=2)
    run = deployment.run()
    for problem, form in (
        ("M2: nothing was chosen", {"M2": "undecided"}),
        ("M1: a reason is required to repair or accept a mode", {"M1_reason": " "}),
        ("cannot have U+202E RIGHT-TO-LEFT OVERRIDE", {"reviewer": "\u202eAda"}),
    ):
        assert deployment.answer(run, **form) is None
        run = deployment.execute(run.id)
        text = deployment.form(run)[1].replace("a reviewer's name ", "")
        assert suspended(run) and f"not accepted:** {problem}" in text
    assert read_chain("tiny") == []
    assert deployment.answer(run, reviewer="Ada") is None
    run = deployment.execute(run.id)
    assert suspended(run) and "approved so far: `Ada`" in deployment.form(run)[1]
    # Changing a decision needs --revise: the person is told so, and asked again.
    assert deployment.answer(run, reviewer="ada", decision="reject") is None
    run = deployment.execute(run.id)
    assert suspended(run) and "not accepted:** Ada approved" in deployment.form(run)[1]
    assert len(read_chain("tiny")) == 1

    said = decide(load_params(), "tiny", made(reviewer="Bob"), "page").next_steps[2:]
    assert said == [f"The suspended flow run {run.name} resumes."] and deployment.read(run.id).state.is_scheduled()


@pytest.mark.slow
def test_no_second_run_starts_while_one_waits(deployment):
    first = deployment.run()
    second = deployment.run()
    assert second.state.is_completed() and second.state.name == "Skipped"
    assert "skipped: tiny waits for a decision since" in second.state.message
    assert first.name in second.state.message and "faded review tiny" in second.state.message
    assert suspended(deployment.read(first.id)) and deployment.toys.executed() == []

    # Decided where no server could be notified: the next run does that, and leaves what is to be done to the first.
    record_decision(load_params(), "tiny", made(), "file")
    third = deployment.run()
    assert third.state.name == "Skipped" and f"{first.name}, which asked" in third.state.message
    assert deployment.toys.executed() == [] and deployment.read(first.id).state.name == "Resuming"
    assert "Decided" in deployment.artifacts(first)["tiny-decision"]
    first = deployment.execute(first.id)
    assert first.state.is_completed() and deployment.toys.executed() == AFTER


@pytest.mark.slow
def test_a_run_whose_form_or_server_is_gone_goes_on_all_the_same(deployment, prefect_server, monkeypatch):
    gone = "http://127.0.0.1:9/api"  # nobody there
    monkeypatch.setattr("flows.people.waiting.configured_api", lambda: prefect_server)
    run = deployment.run()
    keys = run.state.state_details.run_input_keyset
    for what in ("schema", "description"):  # as if its process was killed before it stored them
        deployment.client.delete_flow_run_input(run.id, keys[what])
    moved = {str(run.id): gone}  # the workspace's own server has another port than before
    elsewhere = {str(uuid4()): gone}
    write_state(REQUESTS / "tiny.json", read_request("tiny").model_copy(update={"runs": moved | elsewhere}))
    said = decide(load_params(), "tiny", made(), "page").next_steps[2:]
    assert said[0] == f"The suspended flow run {run.name} resumes." and f"{gone} could not be notified" in said[1]
    assert deployment.read(run.id).state.is_scheduled() and read_request("tiny").runs == elsewhere


@pytest.mark.slow
def test_who_is_to_be_told_is_told_though_the_process_dies_while_it_suspends(deployment, monkeypatch):
    def die(**_: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr("flows.people.suspend.suspend_flow_run", die)
    deployment.run()
    assert [event[:2] for event in deployment.told] == [("needs decision", "tiny"), ("broken", "tiny")]


@pytest.mark.slow
def test_a_run_that_nobody_can_decide_for_any_more_is_cancelled(deployment):
    first, gone = deployment.run(), landscape_hash("tiny")
    code = deployment.toys.path / "stages/summarize.py"
    code.write_text(code.read_text().replace('"said by a toy"', '"said by another"'))
    assert run_audits(load_params(), ["tiny"], "threads", Console(file=io.StringIO())).exit_code == 0
    assert landscape_hash("tiny") != gone
    second = deployment.run()
    assert suspended(second)
    assert deployment.read(first.id).state.is_cancelled()
    assert f"landscape {gone} of tiny is no longer current" in deployment.read(first.id).state.message
    ask_a_person(deployment.toys, policy="top-k")
    [told] = settle(load_params(), "tiny")
    assert f"{second.name} was cancelled" in told and "a rule now decides on tiny" in told
    assert deployment.read(second.id).state.is_cancelled() and read_request("tiny") is None


@pytest.mark.slow
def test_a_decision_made_while_the_run_is_being_suspended_is_not_missed(deployment, monkeypatch):
    notify = "flows.recur.notify.notify"
    monkeypatch.setattr(notify, lambda *_: record_decision(load_params(), "tiny", made(), "page"))
    run = deployment.run()
    assert run.state.is_scheduled(), run.state


@pytest.mark.slow
def test_the_server_gives_up_at_the_deadline_and_the_next_run_records_it(deployment, monkeypatch):
    ask_a_person(deployment.toys, timeout_hours=2)
    monkeypatch.setattr(Request, "seconds_left", 1)
    run = deployment.run()
    while run.state.state_details.pause_timeout > datetime.now(UTC):
        time.sleep(0.05)
    deployment.answer(run)
    assert deployment.read(run.id).state.is_failed()

    let_time_pass(hours=3)
    deployment.toys.toy(collect_feedback__tiny={"exit": 1})
    assert deployment.run().state.name == "Rejected"
    assert [kept.decision.reviewer for kept in read_chain("tiny")] == ["nobody"]


@pytest.mark.slow
def test_a_run_that_did_not_pass_ends_as_failed_and_tells(deployment):
    record_decision(load_params(), "tiny", made(), "file")
    for behaviour, name, message, kind in (
        ({"restructure__tiny": {"exit": 2}}, "Failed", "broken: restructure@tiny rejected its input", "broken"),
        ({"conclude__tiny": {"passed": False}}, "Gate failed", "tiny: FAIL", "gate failed"),
    ):
        deployment.toys.toy(**behaviour)
        run = deployment.run()
        assert run.state.is_failed() and run.state.name == name and run.state.message.startswith(message)
        assert deployment.told[-1][:2] == (kind, "tiny") and run.state.message.endswith(deployment.told[-1][2])
        assert ("tiny-verdict" in deployment.artifacts(run)) == (kind == "gate failed")
    (deployment.toys.path / "params.yaml").write_text("audits: {}\n")
    run = deployment.run()
    assert run.state.is_failed() and run.state.message.startswith("broken: 1 error(s) in params.yaml: audits: there is")
    assert [event[:2] for event in deployment.told[2:]] == [("broken", "tiny")]


@pytest.mark.slow
def test_other_audits_of_the_workspace_go_on(deployment):
    toys, params = deployment.toys, deployment.toys.params()
    params["audits"]["other"] = audit_params()
    toys.write_params(params)
    for folder in ("inputs", "shards"):
        shutil.copytree(f"data/tiny/{folder}", f"data/other/{folder}")
    first = deployment.run()
    run = deployment.execute(deployment.start(audits=["tiny", "other"]))
    assert suspended(deployment.read(first.id))
    assert run.state.is_completed(), run.state
    assert run.state.message.startswith("other: pass") and "; skipped: tiny waits" in run.state.message
    assert toys.executed() == [f"{stage}@other" for stage in STAGES[:4]]


class Worker:
    """`prefect worker start`, in its own session, so that it can be killed."""

    def __init__(self, pool: str, api: str, folder: Path) -> None:
        env = {**os.environ, "PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "prefect")}
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
        folder.mkdir(exist_ok=True)
        self._log = (folder / "worker.log").open("ab")
        streams = {"stdout": self._log, "stderr": self._log}
        self._process = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **streams)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def at_work_in(toys: Workspace) -> list[str]:
    """Command lines of the other processes that run in the workspace."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(toys.path):
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.slow
def test_suspended_killed_approved_and_gone_on_by_another_worker(toys, client, prefect_server, tmp_path, monkeypatch):
    ask_a_person(toys)
    monkeypatch.chdir(toys.path)
    pool = client.create_work_pool(WorkPoolCreate(name=tmp_path.name, type="process")).name
    id_ = create(client, pool, work_pool_name=pool, job_variables={"working_dir": str(toys.path), "env": worker_env()})
    deployment = Deployment(client, toys, id_, [])
    run = deployment.read(deployment.start())
    worker = Worker(pool, prefect_server, tmp_path / "first")
    try:
        until(lambda: suspended(deployment.read(run.id)))
        run = deployment.read(run.id)  # it gets its name when it starts
        # No process of it takes memory while it waits.
        until(lambda: at_work_in(toys) == [])
    finally:
        worker.kill()
    assert toys.executed() == BEFORE

    done = toys.faded("approve", "tiny", "--reviewer", "Ada", "--repair", "M1,M2=seen")
    assert done.returncode == 0 and f"flow run {run.name} resumes" in done.stdout, done.stdout
    worker = Worker(pool, prefect_server, tmp_path / "second")
    try:
        run = until(lambda: (now := deployment.read(run.id)).state.is_final() and now)
    finally:
        worker.kill()
    assert run.state.is_completed() and run.state.message.startswith("tiny: pass"), run.state
    assert toys.executed() == AFTER
    [kept] = read_chain("tiny")
    assert (kept.decision.reviewer, kept.decision.via) == ("Ada", "command")


def worker_env() -> dict[str, str]:
    """Environment in which runs find this repository's flows and this interpreter's tools."""
    return {"PYTHONPATH": str(ROOT), "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
