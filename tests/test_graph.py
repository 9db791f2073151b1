"""DVC's graph, what is stale, and what a crash leaves."""

import compileall
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from dvc.utils.serialize import dumps_yaml

from flows.graph import audit_of, read_graph
from flows.graph.intact import heal
from flows.graph.lock import read_lock
from flows.processes import child
from stages.core.errors import UsageError
from stages.core.files import write_state
from tests.finished import finished_toys
from tests.servers import until
from tests.workspace import STAGES, Workspace


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Workspace:
    return finished_toys().copy(tmp_path_factory.mktemp("graph") / "ws")


@pytest.fixture
def inside(ran, monkeypatch) -> Workspace:
    monkeypatch.chdir(ran.path)
    return ran


def test_nothing_is_stale_after_a_run_and_an_upstream_stage_comes_first(inside):
    graph = read_graph()
    assert [s.name for s in graph if s.stale] == [] and graph.to_do(["tiny", "other"]) == []
    assert all(stage.size for stage in graph)
    order = [stage.name for stage in graph]
    for stage in graph:
        assert all(order.index(up) < order.index(stage.name) for up in stage.upstream)
    assert "discover@tiny" in graph.stages["summarize@tiny"].upstream
    assert {s.audit for s in graph.of(["other"])} == {"other"}
    with pytest.raises(UsageError, match="no stage prepare, discover, summarize, report for audit 'nosuch'"):
        graph.of(["nosuch"])


def test_a_share_belongs_to_its_audit_whatever_dashes_that_has():
    assert audit_of("explore@a-b-2") == audit_of("discover@a-b") == "a-b"


@pytest.mark.slow
def test_another_pipeline_of_the_repository_is_none_of_an_audits_business(ran, tmp_path, monkeypatch):
    workspace = ran.copy(tmp_path / "two")
    other = workspace.path / "other"
    other.mkdir()
    stages = {
        "made": {"cmd": "echo 1 > made", "outs": ["made"]},
        "apart": {"foreach": ["tiny"], "do": {"cmd": "echo 2 > apart", "outs": ["apart"]}},
    }
    (other / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    monkeypatch.chdir(workspace.path)
    assert {stage.audit for stage in read_graph()} == {"tiny", "other"} and read_graph().to_do(["tiny"]) == []

    # ... unless an audit depends on its outputs.
    graph = yaml.safe_load((workspace.path / "dvc.yaml").read_text())
    graph["stages"]["prepare"]["do"]["deps"].append("other/made")
    (workspace.path / "dvc.yaml").write_text(yaml.safe_dump(graph))
    assert "other/dvc.yaml:made" in [stage.name for stage in read_graph().to_do(["tiny"])]


@pytest.mark.parametrize(
    ("path", "value", "stale"),
    [
        ("repairs.tiny.gates.target_failure_rate.change_max", -0.2, {"conclude@tiny"}),
        ("audits.tiny.prepare.noise", 0.05, {"prepare@tiny", "report@tiny", "conclude@tiny"}),
    ],
)
def test_a_parameter_makes_only_its_stages_stale(inside, path, value, stale):
    before = inside.params()
    inside.edit_params({path: value})
    try:
        graph = read_graph()
        assert {s.name for s in graph if s.stale} == stale
        audit = ".".join(path.split(".")[:2])
        assert any(audit in reason for s in stale for reason in graph.stages[s].reasons)
    finally:
        inside.write_params(before)


ALL = {f"{stage}@tiny" for stage in STAGES} | {f"{stage}@other" for stage in STAGES[:4]}


@pytest.mark.parametrize(
    ("path", "old", "new", "kinds"),
    [
        ("stages/collect_feedback.py", '"said by a toy"', '"said by another"', {"collect_feedback@tiny"}),
        ("planted.py", "", "X = 1\n", ALL),
    ],
)
def test_a_changed_file_makes_what_depends_on_it_stale(inside, path, old, new, kinds):
    file = inside.path / path
    before = file.read_text()
    file.write_text(before.replace(old, new) if old else before + new)
    try:
        graph = read_graph()
        assert {s.name for s in graph if s.stale} == kinds and "re_evaluate" in {s.kind for s in graph.to_do(["tiny"])}
        assert {reason for s in graph for reason in s.reasons} <= {"code changed"}
        if kinds == ALL:  # the same from DVC alone
            told = inside.run(["dvc", "status"]).stdout
            assert {name for name in ALL if f"{name}:" in told} == kinds, told
    finally:
        file.write_text(before)


def test_a_comment_or_a_module_that_nobody_imports_makes_nothing_stale_and_a_missing_output_is_told(inside):
    files = [inside.path / name for name in ("planted.py", "stages/collect_feedback.py")]
    before = [file.read_bytes() for file in files]
    verdict, module = inside.path / "data/other/report/verdict.json", inside.path / "stages/tasks/new_module.py"
    content = verdict.read_bytes()
    for file in files:
        with file.open("a") as stream:
            stream.write("# a comment\n")
    module.write_text("X = 1\n")
    assert compileall.compile_file(inside.path / "stages/concepts/__init__.py", quiet=1, force=True)
    verdict.unlink()
    try:
        stale = {stage.name: stage.reasons for stage in read_graph() if stage.stale}
        assert stale == {"report@other": ("data/other/report/verdict.json missing",)}
    finally:
        verdict.write_bytes(content)
        module.unlink()
        for file, text in zip(files, before, strict=True):
            file.write_bytes(text)


@pytest.mark.slow
def test_a_lock_file_cut_short_anywhere_can_be_read_after_healing(inside):
    lock = inside.path / "dvc.lock"
    whole = lock.read_bytes()
    half_a_hash = whole.index(b"md5: ", len(whole) // 2) + 5 + 4
    # DVC's schema accepts a number in place of half a hash, its code does not.
    cuts = {
        "nothing": b"",
        "a hash": whole[: half_a_hash - 4] + b"4345",
        "a line": whole[: whole.rindex(b"\n", 0, 900)],
    }
    try:
        for cut, content in cuts.items():
            lock.write_bytes(content)
            healed = bool(heal())
            assert lock.exists() is not healed and (healed or cut == "a line") and read_graph()
    finally:
        lock.write_bytes(whole)


@pytest.mark.slow
def test_after_a_cut_nothing_executes_and_the_lock_file_is_as_before(inside):
    lock = inside.path / "dvc.lock"
    before = lock.read_bytes()
    half = before[: before.index(b"\n  summarize@") + 1]
    lock.write_bytes(half)
    assert heal() == [] and lock.read_bytes() == half
    lock.write_bytes(b"")
    [healed] = heal()
    assert "dvc.lock was truncated" in healed and not lock.exists()
    aside = max((inside.path / ".faded").glob("dvc.lock.broken-*"), key=lambda path: path.stat().st_mtime_ns)
    assert aside.read_bytes() == b""
    for left in (half, None):
        lock.unlink(missing_ok=True)
        if left:
            lock.write_bytes(left)
        done = inside.run(["dvc", "repro"])
        assert done.returncode == 0, done.stdout
        assert inside.executed() == [] and yaml.safe_load(lock.read_bytes()) == yaml.safe_load(before)


def test_a_broken_lock_file_is_restored_from_git(inside):
    lock = inside.path / "dvc.lock"
    before = lock.read_bytes()
    assert inside.run(["git", "add", "dvc.lock"]).returncode == 0
    assert inside.run(["git", "commit", "--quiet", "--message", "lock"]).returncode == 0
    lock.write_bytes(b"")
    assert "restored from git" in heal()[0] and lock.read_bytes() == before and heal() == []


def test_a_recycled_process_id_in_the_rwlock_is_dropped_and_a_live_one_kept(inside):
    rwlock = inside.path / ".dvc/tmp/rwlock"
    live = {"pid": os.getpid(), "cmd": f"dvc repro {Path(psutil.Process().cmdline()[-1]).name}"}
    recycled = {"pid": os.getpid(), "cmd": "dvc repro discover@tiny"}
    read = {"/c": [recycled, live], "/d": [recycled]}
    rwlock.write_text(json.dumps({"write": {"/a": recycled, "/b": live}, "read": read}))
    assert heal() == ["removed file locks left by a dead DVC process"]
    assert json.loads(rwlock.read_text()) == {"write": {"/b": live}, "read": {"/c": [live]}}
    rwlock.write_text("{")
    assert heal() == []  # reported when it is moved away
    assert not rwlock.exists()


def test_leftover_process_groups_are_ended_and_strangers_spared(inside):
    token = "a token"
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    ours = subprocess.Popen(sleeper, start_new_session=True, env={**os.environ, "FADED_CHILD": token})
    stranger = subprocess.Popen(sleeper, start_new_session=True)
    records = inside.path / ".faded/run"
    records.mkdir(parents=True, exist_ok=True)
    try:
        write_state(records / "discover@tiny.json", {"group": ours.pid, "token": token})
        write_state(records / "prepare@tiny.json", {"group": stranger.pid, "token": token})
        (records / "half.json").write_text('{"gro')
        until(lambda: b"time.sleep" in Path(f"/proc/{ours.pid}/cmdline").read_bytes())
        assert heal() == ["ended discover@tiny, left over by a run that was killed"] and not psutil.pid_exists(ours.pid)
        assert stranger.poll() is None and [path.name for path in records.iterdir()] == ["half.json.damaged"]
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()


def test_a_child_takes_along_what_it_started_when_it_dies(inside, tmp_path):
    script = tmp_path / "parent_of_a_sleeper.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with child("test", [script.stem], {**os.environ, "PYTHONPATH": str(tmp_path)}) as process:
        assert process.stdout is not None
        grandchild = psutil.Process(int(process.stdout.readline()))
        os.kill(process.pid, 9)
        assert process.stdout.read() == ""  # the pipe closes only when the grandchild is gone too
    until(lambda: not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE)
    assert not (inside.path / ".faded/run/test.json").exists()


def test_words_that_were_booleans_in_yaml_1_1_stay_words_in_dvc_lock():
    classes = ["no", "yes", "off", "12:30"]
    lock = dumps_yaml({"stages": {"prepare@tiny": {"params": {"params.yaml": {"classes": classes}}}}})
    assert read_lock(lock.encode())["prepare@tiny"]["params"]["params.yaml"]["classes"] == classes
