"""What an upgrade makes stale in a workspace, and what is made of an audit that was written by hand."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from flows.graph import read_graph
from flows.pipeline import bring_up_to_date, make_folders, outdated, pipeline
from flows.workspace import enter_workspace, running_audit
from stages.code import code_hashes, read_record, read_stages
from stages.errors import InfrastructureError
from tests.own_workspaces import toy_package
from tests.workspace import ROOT, Workspace, audit_params


def test_the_pipeline_names_code_by_faded_json_and_is_else_the_one_graph():
    derived, original = yaml.safe_load(pipeline())["stages"], read_stages()
    assert list(derived) == list(original)
    for name, stage in derived.items():
        body, source = stage["do"], original[name]["do"]
        assert body["cmd"] == source["cmd"].replace("exec python -m", "exec python -P -m") != source["cmd"]
        code = [dep for dep in source["deps"] if dep not in body["deps"]]
        assert code and all(dep.startswith("stages/") and (ROOT / dep).exists() for dep in code)
        assert f"code.{name}" in body["params"][0]["faded.json"]
        kept = ("outs", "metrics", "plots", "meta", "desc")
        assert {key: body.get(key) for key in kept} == {key: source.get(key) for key in kept}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("stages/collect_feedback.py", {"collect_feedback"}),
        ("stages/landscape/new_module.py", {"summarize", "re_evaluate"}),
        ("stages/tasks/new_module.py", {"prepare"}),
        ("stages/ledger.py", {"explore", "discover", "summarize", "re_evaluate"}),
        ("stages/params/file.py", set(read_stages())),
        ("flows/graph.py", set()),
        ("stages/concepts/__pycache__/x.pyc", set()),
    ],
)
def test_a_changed_file_of_the_package_changes_what_depends_on_it_and_nothing_else(tmp_path, file, stages):
    shutil.copytree(ROOT / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_hashes(package=tmp_path / "stages")
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as changed:
        changed.write("\n")
    after = code_hashes(package=tmp_path / "stages")
    assert {name for name in after if after[name] != before[name]} == stages


def test_after_an_upgrade_the_next_command_says_what_changed_and_only_that_is_stale(own, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(toy_package(), package)
    path = {"PYTHONPATH": str(package)}
    enter = "from flows.workspace import enter_workspace; enter_workspace()"
    assert own.run([sys.executable, "-P", "-c", enter], **path).returncode == 0
    assert own.run(["dvc", "repro", "summarize@tiny"], **path).returncode == 0
    assert len(own.executed()) == 3
    with (package / "stages" / "landscape" / "measures.py").open("a") as changed:
        changed.write("# another\n")
    done = own.faded("status", **path)
    assert "faded 0.1.0: summarize, re_evaluate changed" in done.stdout
    modified = [line.split()[0] for line in done.stdout.splitlines() if " modified" in line]
    assert modified == ["summarize@tiny"], done.stdout


def test_a_stage_refuses_to_run_with_other_code_than_the_workspace_was_written_for(own):
    record = read_record(own.path)
    command = [sys.executable, "-P", "-m", "stages.collect_feedback", "tiny"]
    for changes, told in (
        ({"faded": "0.0.9"}, "written by faded 0.0.9, installed is"),
        ({}, "installed is 0.1.0 with other code for collect_feedback"),
    ):
        code = {**record["code"], "collect_feedback": "0" * 16}
        (own.path / "faded.json").write_text(json.dumps({**record, "code": code, **changes}))
        done = own.run(command)
        assert done.returncode == 2
        assert told in done.stdout and "run `faded plan`" in done.stdout, done.stdout
    assert bring_up_to_date(own.path) == ["faded 0.1.0: collect_feedback changed"]
    done = own.run(command)  # it now fails for want of a landscape, and not for its code
    assert "landscape" in done.stdout and "installed" not in done.stdout, done.stdout


def test_what_was_changed_by_hand_is_written_anew(own, monkeypatch):
    monkeypatch.chdir(own.path)
    assert not outdated()
    graph, record = Path("dvc.yaml").read_bytes(), Path("faded.json").read_bytes()
    Path("dvc.yaml").write_bytes(graph + b"# by hand\n")
    Path("faded.json").write_text("{")
    assert outdated() and len(bring_up_to_date()) == 1
    assert (Path("dvc.yaml").read_bytes(), Path("faded.json").read_bytes()) == (graph, record)


def test_an_audit_that_was_written_by_hand_gets_its_folders_and_its_code_may_be_compiled(own, monkeypatch):
    params = own.params()
    code = own.path / "tasks_of_mine"
    code.mkdir()
    (code / "__init__.py").write_text("")
    shutil.copy(own.path / "my_task.py", code / "task.py")
    params["audits"]["mine"] = audit_params(task="tasks_of_mine.task:PlantedTask")
    own.write_params(params)
    monkeypatch.chdir(own.path)
    assert len(make_folders()) == 1 and make_folders() == [] and not outdated()
    assert (own.path / "data/mine/inputs").is_dir() and (own.path / "data/mine/shards").is_dir()
    (own.path / "data/mine/inputs/regions.json").write_text("[]")
    assert own.run(["dvc", "repro", "prepare@mine"], PYTHONPATH=str(toy_package())).returncode != 2
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "task.pyc").write_bytes(b"compiled")
    stage = read_graph().stages["prepare@mine"]
    assert not any("tasks_of_mine" in reason for reason in stage.reasons), stage.reasons


def test_in_a_clone_too_it_gets_folders_that_git_keeps(toys, monkeypatch):
    params = toys.params()
    params["audits"]["mine"] = params["audits"]["tiny"]
    params["repairs"]["mine"] = params["repairs"]["tiny"]
    toys.write_params(params)
    monkeypatch.chdir(toys.path)
    made = ["data/mine/shards/.gitignore", "data/mine/inputs/.gitkeep", "data/mine/decisions/.gitkeep"]
    assert make_folders() == [f"faded wrote {', '.join(made)}"] and make_folders() == [] and not outdated()
    listed = toys.run(["git", "status", "--short", "--untracked-files=all", "data/mine"]).stdout
    assert {line.split()[1] for line in listed.splitlines()} == {*made}
    (Path("data/mine/inputs/regions.json")).write_text("[]")
    done = toys.faded("audit", "mine")
    assert done.returncode == 0, done.stdout


HOLD = """
import sys
from flows.workspace import exclusive

with exclusive():
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def running(workspace: Workspace) -> Iterator[None]:
    """Another process audits there."""
    command = [sys.executable, "-P", "-c", HOLD]
    with subprocess.Popen(command, cwd=workspace.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield
        process.communicate()
    assert process.returncode == 0


def test_while_an_audit_runs_another_may_be_written_by_hand_and_looked_at(own, monkeypatch, capsys):
    monkeypatch.chdir(own.path)
    with running(own):
        params = own.params()
        params["audits"]["mine"] = params["audits"]["tiny"]
        own.write_params(params)
        enter_workspace()
        assert "faded wrote data/mine/.gitignore" in capsys.readouterr().err
        assert running_audit() is not None and (own.path / "data/mine/inputs").is_dir()
        Path("faded.json").write_text("{}")  # as another version has it
        with pytest.raises(InfrastructureError, match="another audit runs in"):
            enter_workspace()
    enter_workspace()
    assert not outdated()
