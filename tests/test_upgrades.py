"""What an upgrade makes stale in a workspace, and what happens to hand-written audits."""

import shutil
import sys
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from flows.graph import read_graph
from flows.workspace import enter_workspace, running_audit
from flows.workspace.pipeline import make_folders, outdated, pipeline, update_pipeline
from stages.code import read_stages
from stages.core.errors import InfrastructureError
from tests.finished import audit_running
from tests.own_workspaces import toy_package
from tests.workspace import audit_params


def test_the_pipeline_names_code_by_faded_json_and_is_else_the_one_graph():
    derived, original = yaml.safe_load(pipeline())["stages"], read_stages()
    assert list(derived) == list(original)
    for name, stage in derived.items():
        body, source = stage["do"], original[name]["do"]
        assert body.pop("cmd") == source.pop("cmd").replace("exec python -m", "exec python -P -m")
        if name == "code":
            assert source.pop("deps") == ["stages"]
            assert body.pop("params")[0] == {"faded.json": ["code", "plugins"]} != source.pop("params")[0]
        assert body == source


@pytest.mark.slow
def test_after_an_upgrade_the_next_command_says_what_changed_and_only_that_is_stale(own, tmp_path):
    package = tmp_path / "package"
    shutil.copytree(toy_package(), package)
    path = {"PYTHONPATH": str(package)}
    enter = "from flows.workspace import enter_workspace; enter_workspace()"
    assert own.run([sys.executable, "-P", "-c", enter], **path).returncode == 0
    assert own.run(["dvc", "repro", "summarize@tiny"], **path).returncode == 0 and len(own.executed()) == 3
    module = package / "stages" / "summarize.py"
    module.write_text(module.read_text() + "# another\n")
    done = own.faded("status", "--stages", **path)
    assert f"faded {version('faded')} with other code" in done.stdout and "code changed" not in done.stdout, done.stdout
    module.write_text(module.read_text().replace('"said by a toy"', '"said by another"'))
    done = own.faded("status", "--stages", **path)
    lines = done.stdout.splitlines()  # why a stage is stale stands below its name
    changed = [above.split()[0] for above, line in pairwise(lines) if "code changed" in line]
    assert changed == ["summarize@tiny"], done.stdout


@pytest.mark.slow
def test_a_stage_refuses_to_run_with_other_code_than_dvc_was_told_of(own, monkeypatch):
    monkeypatch.chdir(own.path)
    command = [sys.executable, "-P", "-m", "stages.collect_feedback", "tiny"]
    named = Path("data/tiny/code.json")
    for text in (None, "{", '{"collect_feedback": "0000000000000000"}'):
        if text is not None:
            named.write_text(text)
        done = own.run(command)
        assert done.returncode == 2 and "run `faded plan`" in done.stdout, done.stdout
    read_graph()
    done = own.run(command)  # it now fails for lack of a landscape, not because of its code
    assert "landscape" in done.stdout and "code" not in done.stdout, done.stdout


def test_what_was_changed_by_hand_is_written_anew(own, monkeypatch):
    monkeypatch.chdir(own.path)
    assert not outdated()
    graph, record = Path("dvc.yaml").read_bytes(), Path("faded.json").read_bytes()
    Path("dvc.yaml").write_bytes(graph + b"# by hand\n")
    Path("faded.json").write_text("{")
    assert outdated() and len(update_pipeline()) == 1
    assert (Path("dvc.yaml").read_bytes(), Path("faded.json").read_bytes()) == (graph, record)


def test_metrics_that_git_kept_are_given_to_dvc(own, monkeypatch):
    monkeypatch.chdir(own.path)
    ignores, metrics = Path("data/tiny/.gitignore"), Path("data/tiny/report/metrics.json")
    ignores.write_text(ignores.read_text().replace("headline.json", "metrics.json"))
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text("{}")
    assert own.run(["git", "add", str(metrics)]).returncode == 0
    Path("dvc.yaml").write_bytes(Path("dvc.yaml").read_bytes() + b"# of an earlier version\n")
    assert any("took data/*/*/metrics.json out of git's index" in line for line in update_pipeline())
    assert own.run(["git", "ls-files", str(metrics)]).stdout == "" and metrics.exists()
    assert "!/*/headline.json" in ignores.read_text() and "metrics.json" not in ignores.read_text()
    assert not outdated() and update_pipeline() == []


@pytest.mark.slow
def test_an_audit_that_was_written_by_hand_gets_its_folders_and_its_code_may_be_compiled(own, monkeypatch):
    code = own.path / "tasks_of_mine"
    code.mkdir()
    (code / "__init__.py").write_text("")
    shutil.copy(own.path / "my_task.py", code / "task.py")
    own.edit_params({"audits.mine": audit_params(task="tasks_of_mine.task:PlantedTask")})
    monkeypatch.chdir(own.path)
    assert len(make_folders()) == 1 and make_folders() == [] and not outdated()
    assert (own.path / "data/mine/inputs").is_dir() and (own.path / "data/mine/shards").is_dir()
    (own.path / "data/mine/inputs/regions.json").write_text("[]")
    assert own.run(["dvc", "repro", "prepare@mine"], PYTHONPATH=str(toy_package())).returncode != 2
    (code / "__pycache__").mkdir()
    (code / "__pycache__" / "task.pyc").write_bytes(b"compiled")
    stage = read_graph().stages["prepare@mine"]
    assert not any("tasks_of_mine" in reason for reason in stage.reasons), stage.reasons


def test_while_an_audit_runs_another_may_be_written_by_hand_and_looked_at(own, monkeypatch, capsys):
    monkeypatch.chdir(own.path)
    with audit_running(own):
        own.edit_params({"audits.mine": own.params()["audits"]["tiny"]})
        enter_workspace()
        assert "faded wrote data/mine/.gitignore" in capsys.readouterr().err
        assert running_audit() is not None and (own.path / "data/mine/inputs").is_dir()
        Path("faded.json").write_text("{}")  # as written by another version
        with pytest.raises(InfrastructureError, match="another audit runs in"):
            enter_workspace()
    enter_workspace()
    assert not outdated()
