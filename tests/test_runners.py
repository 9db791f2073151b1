"""Stages on Dask and Ray, with GPUs that are only declared: order, devices, and the effect of a kill."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

import flows.places.runners
from flows.graph import read_graph
from flows.places.runners import Job, Runner, chosen_runner, open_runner, visible_gpus
from flows.places.runners.reaper import reaped_folder
from stages.check import check_audits
from stages.core.errors import Exit, InfrastructureError, UsageError
from stages.params import load_params
from stages.params.file import RunnerConfig
from stages.provenance import provenance
from tests.clusters import Cluster
from tests.finished import faded
from tests.servers import until
from tests.test_kill import all_gone, family, running
from tests.workspace import Workspace, audit_params, make_workspace

MASK = ("4", "GPU-ab12cd")  # mask of the process that starts the cluster: stages get only these


def clusters(*marks_of_ray: pytest.MarkDecorator) -> list[Any]:
    """Dask and Ray, each skipped if its package is missing; Ray, which starts slowly, with further marks."""
    return [
        pytest.param(
            kind, marks=[*marks, pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")]
        )
        for kind, package, marks in (("dask", "distributed", ()), ("ray", "ray", marks_of_ray))
    ]


@pytest.fixture(scope="module", params=clusters(pytest.mark.nightly))
def place(request) -> Iterator[Runner]:
    """A cluster on this machine with two GPUs and slots for two stages without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", ",".join(MASK))
        with open_runner(RunnerConfig(kind=request.param, workers=2, gpus=2), gpus=1) as runner:
            yield runner


def spans(toys: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (toys.path / "spans.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_stages_get_the_gpus_they_ask_for_and_others_go_on_beside_them(place, tmp_path):
    many = make_workspace(tmp_path / "many", dict.fromkeys("abcd", audit_params()), {}, toys=True)
    read_graph(many.path)  # as every run begins
    many.toy(**{f"prepare__{audit}": {"until": "go"} for audit in "abcd"})
    said: dict[str, list[str]] = {audit: [] for audit in "abcd"}

    def run(audit: str) -> str:
        me = threading.get_ident()

        def say(line: str) -> None:
            assert threading.get_ident() == me
            said[audit].append(line)

        return place(Job(f"prepare@{audit}", int(audit in "abc"), str(many.path)), say).outcome

    def at_work() -> list[str]:
        return (many.path / "executed.txt").read_text().split() if (many.path / "executed.txt").exists() else []

    with ThreadPoolExecutor(4) as threads:
        ended = threads.map(run, "abcd")
        until(lambda: len(at_work()) >= 3)
        time.sleep(1)  # time for one that should not start
        assert "prepare@d" in at_work() and len(at_work()) == 3, "there are two GPUs, and d asks for none"
        (many.path / "go").touch()
        assert list(ended) == ["ran"] * 4
    assert said == {audit: [f"toy prepare of {audit} at work"] for audit in "abcd"}
    given = {span["stage"][-1]: span["gpus"] for span in spans(many)}
    assert given.pop("d") == "" and given.keys() == {*"abc"} and {*given.values()} == {*MASK}


@pytest.mark.slow
def test_what_is_wrong_there_comes_back_as_itself(place, toys, tmp_path):
    toys.toy(prepare__tiny={"exit": 2})
    read_graph(toys.path)  # as every run begins
    with pytest.raises(UsageError, match="prepare was told to exit with 2"):
        place(Job("prepare@tiny", 1, str(toys.path)), lambda line: None)
    with pytest.raises(InfrastructureError, match="sees no workspace"):
        place(Job("prepare@tiny", 0, str(tmp_path)), lambda line: None)
    shutil.rmtree(toys.path / ".faded")
    (toys.path / ".faded").touch()
    with pytest.raises(InfrastructureError, match=r"^prepare@tiny: (FileExists|NotADirectory)Error: .*\.faded"):
        place(Job("prepare@tiny", 0, str(toys.path)), lambda line: None)


def above(stage: psutil.Process) -> list[psutil.Process]:
    """The processes that we started to run a stage, the nearest first: DVC."""
    return [process for process in stage.parents() if "flows.start.child" in " ".join(process.cmdline())]


def worker_of(stage: psutil.Process) -> psutil.Process:
    return above(stage)[-1].parent()


@pytest.mark.slow
def test_when_its_worker_is_killed_the_stage_ends_and_runs_again_elsewhere(place, toys):
    toys.toy(prepare__tiny={"sleep": 600})
    read_graph(toys.path)  # as every run begins
    job = Job("prepare@tiny", 1, str(toys.path))
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(place, job, lambda line: None)
        stage = running("-m stages.prepare", toys)
        ours = [stage, *above(stage)]
        worker_of(stage).kill()
        with pytest.raises(InfrastructureError, match="the worker that ran it died"):
            future.result(timeout=60)
    assert all_gone(ours)  # DVC too: until it ends it holds what it writes
    toys.toy()
    assert place(job, lambda line: None).outcome == "ran" and toys.executed() == ["prepare@tiny"] * 2


@pytest.mark.slow
def test_a_cluster_is_ended_where_the_temporary_folder_is_a_link(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    code = "import sys, time; log = open(sys.argv[1] + '/log', 'w'); print(flush=True); time.sleep(600)"
    with reaped_folder("faded-") as folder:
        process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE)
        process.stdout.readline()
    assert process.wait(timeout=60) == -signal.SIGKILL and list((tmp_path / "real").iterdir()) == []


def test_every_stage_that_runs_the_model_asks_for_its_gpus(toys, monkeypatch):
    params = toys.params()
    params["audits"]["tiny"]["compute"]["gpus"], params["repairs"]["tiny"]["gpus"] = 2, 3
    params["audits"]["tiny"]["discover"]["shards"] = 2
    toys.write_params(params)
    assert faded(toys, "status")[0] == 0  # writes what the shares need
    monkeypatch.chdir(toys.path)
    asked = {stage.kind: stage.gpus for stage in read_graph()}
    assert asked == {
        **dict.fromkeys(("prepare", "explore", "discover", "summarize"), 2),
        **dict.fromkeys(("restructure", "re_evaluate"), 3),
        **dict.fromkeys(("report", "collect_feedback", "compare", "conclude"), 0),
    }


def test_a_mask_is_kept_to(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-ab12cd,-1")
    assert visible_gpus() == ["4", "GPU-ab12cd"] and visible_gpus(1) == ["4"] and visible_gpus(3) == ["4", "GPU-ab12cd"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus(2) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus(2) == ["0", "1"]


def test_the_option_comes_before_the_environment_and_that_before_params(toys, monkeypatch):
    toys.write_params({**toys.params(), "runner": {"kind": "dask", "gpus": 2, "remote": "store"}})
    params = load_params(toys.path / "params.yaml")
    monkeypatch.delenv("FADED_RUNNER", raising=False)
    assert chosen_runner(params, None) == params.runner
    assert chosen_runner(params, "dask") == params.runner  # other settings under `runner:` apply
    assert chosen_runner(params, "threads") == RunnerConfig(kind="threads")
    there = chosen_runner(params, "dask=tcp://127.0.0.1:8786")
    assert (there.address, there.gpus, there.remote) == ("tcp://127.0.0.1:8786", None, "store")
    monkeypatch.setenv("FADED_RUNNER", "ray")
    assert chosen_runner(params, None).kind == "ray" and chosen_runner(params, "threads").kind == "threads"


def test_a_wrong_runner_is_refused_with_what_there_is(toys, monkeypatch):
    params = load_params(toys.path / "params.yaml")
    with pytest.raises(UsageError, match="no runner 'rya', found: threads, dask, ray, did you mean 'ray'"):
        chosen_runner(params, "rya")
    with pytest.raises(UsageError, match="threads have no address"):
        chosen_runner(params, "threads=127.0.0.1:1")
    with pytest.raises(UsageError, match="dask=: expected an address behind =, or dask alone"):
        chosen_runner(params, "dask=")
    with pytest.raises(ValidationError, match="gpus: a cluster at an address says itself what it has"):
        RunnerConfig.model_validate({"kind": "ray", "address": "127.0.0.1:6379", "gpus": 1})
    monkeypatch.setattr(flows.places.runners, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'faded\[dask\]'"):
        chosen_runner(params, "dask")


@pytest.mark.parametrize("kind", ["threads", *clusters()])
def test_an_address_where_nobody_answers_and_more_gpus_than_there_are_are_told_at_once(kind, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UsageError, match=r"requests 2 GPU.*has 1"), open_runner(RunnerConfig(kind=kind), gpus=2):
        pass
    if kind == "threads":
        return
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nowhere = f"127.0.0.1:{taken.getsockname()[1]}"
    for error, told, address in (
        (InfrastructureError, f"nothing answers at {nowhere}", nowhere),
        (UsageError, "HOST:PORT", "somewhere"),
    ):
        with pytest.raises(error, match=told), open_runner(RunnerConfig(kind=kind, address=address)):
            pass


@pytest.fixture
def server(prefect_server, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # set while a cluster of `place` is open
    return {"PREFECT_API_URL": prefect_server}


def on_gpus(path: Path, kind: str, names: str) -> Workspace:
    """Audits on a GPU that this machine lacks, and "z" without one."""
    compute = {"device": "cuda:97", "threads": 1, "batch_size": 32, "gpus": 1}
    audits = {name: audit_params(compute=compute) for name in names} | {"z": audit_params()}
    toys = make_workspace(path, audits, {}, toys=True)
    toys.write_params({**toys.params(), "runner": {"kind": kind, "workers": 2, "gpus": 2}})
    return toys


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "ending"), [("dask", "ctrl-c"), ("ray", "kill")])
def test_stopped_or_killed_it_leaves_nothing_and_resumes_whatever_happens_to_a_worker(kind, ending, tmp_path, server):
    pytest.importorskip({"dask": "distributed"}.get(kind, kind))
    toys = on_gpus(tmp_path / "toys", kind, "a")
    toys.toy(discover__a={"sleep": 600})
    process = toys.start("audit", "--all", **server)
    running("-m stages.discover a", toys)
    executed_so_far = toys.path / "executed.txt"
    until(lambda: "discover@a" in executed_so_far.read_text())  # its process is there before it says so
    relatives = family(process)
    if ending == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=120) == 130
    else:
        process.kill()
        process.wait()
    assert all_gone(relatives)
    told = toys.path / ".faded-test.log"
    assert "Traceback" not in told.read_text()

    before = toys.executed()
    process = toys.start("audit", "--all", **server)
    stage = running("-m stages.discover a", toys)
    until(lambda: executed_so_far.exists() and "discover@a" in executed_so_far.read_text())
    toys.toy()
    worker_of(stage).kill()
    assert process.wait(timeout=400) == 0, told.read_text()
    assert "the worker that ran it died" in told.read_text()
    again = toys.executed()
    executed = [*before, *again]
    twice = {stage: executed.count(stage) for stage in executed if executed.count(stage) > 1}
    assert len(set(executed)) == 8 and twice.pop("discover@a") == 3
    assert not [stage for stage in twice if stage.endswith("@a")]  # of z, a stage may have been at work, too
    for stage in set(again):
        name, _, audit = stage.partition("@")
        assert f"{stage} | toy {name} of {audit} at work" in told.read_text()
    given = {(span["stage"][-1], span["gpus"]) for span in spans(toys) if not span["stage"].startswith("report")}
    assert given <= {("a", "0"), ("a", "1"), ("z", "")}


@pytest.fixture
def dask_at(tmp_path) -> Iterator[Cluster]:
    """A cluster that somebody else started: one worker with a GPU, and one without."""
    cluster = Cluster("dask", tmp_path, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    cluster.add_worker("--resources", "GPU=1", CUDA_VISIBLE_DEVICES="7")
    cluster.add_worker()
    yield cluster
    cluster.end()


@pytest.mark.slow
@pytest.mark.parametrize("kind", clusters(pytest.mark.nightly))
def test_without_its_scheduler_or_head_a_run_ends_as_infrastructure_and_resumes_later(kind, request, tmp_path, server):
    """Dask's is at an address, where workers outlive a run that is killed, and its stages do not."""
    toys = on_gpus(tmp_path / "toys", kind, "a")
    toys.toy(discover__a={"sleep": 600})
    cluster = request.getfixturevalue("dask_at") if kind == "dask" else None
    command = ("audit", "a", *([f"--runner=dask={cluster.address}"] if cluster else []))
    process = toys.start(*command, **server)
    stage = running("-m stages.discover", toys)
    if cluster:
        process.kill()
        process.wait()
        assert all_gone([stage]) and all(worker.poll() is None for worker in cluster.workers)
        assert toys.executed() == ["prepare@a", "discover@a"] and {span["gpus"] for span in spans(toys)} == {"7"}
        process = toys.start(*command, **server)
        running("-m stages.discover", toys)
    relatives = family(process)
    head = cluster.head if cluster else next(one for one in relatives if one.name() == "gcs_server")
    head.kill()
    told = toys.path / ".faded-test.log"
    assert process.wait(timeout=200) == Exit.INFRASTRUCTURE, told.read_text()  # Ray itself would end it with 1
    assert "is gone" in told.read_text() and "Traceback" not in told.read_text() and all_gone(relatives)
    toys.toy()
    done = toys.faded("audit", "a", "--runner", kind, **server)
    assert done.returncode == 0, done.stdout
    assert toys.executed().count("prepare@a") == (cluster is None)


def test_a_gpu_that_only_the_cluster_has_is_for_its_workers_to_find(toys, monkeypatch):
    toys.edit_params({"audits.tiny.compute.device": "cuda:97"})
    monkeypatch.chdir(toys.path)
    read = load_params()
    with pytest.raises(UsageError, match=r"cuda:97.* but this machine has"):
        check_audits(read, ["tiny"])
    check_audits(read, ["tiny"], elsewhere=True)
    assert "device" not in provenance("tiny", read.audit("tiny"), computes=False)  # of collect_feedback


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_a_cluster_that_does_not_come_up_is_infrastructure_and_leaves_nothing(monkeypatch, tmp_path):
    import ray

    def too_busy(**settings: Any) -> None:
        assert Path(settings["_temp_dir"]).is_dir()
        raise Exception("The current node timed out during startup.")  # as Ray does

    monkeypatch.setattr(ray, "init", too_busy)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started = open_runner(RunnerConfig(kind="ray", workers=1), gpus=0)
    with pytest.raises(InfrastructureError, match=r"^Ray did not start: The current node timed out"), started:
        raise AssertionError
    assert list(tmp_path.iterdir()) == []
