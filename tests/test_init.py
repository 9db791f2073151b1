"""`faded init`: what it writes and when, and that a kill leaves nothing half-written."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import yaml

import flows.init.run
from flows.init.propose import search_budget
from flows.init.run import Options
from flows.init.state import unmeasured
from flows.workspace.block import AuditDraft, with_draft
from stages.core.errors import InfrastructureError, UsageError
from stages.core.intervals import wilson
from stages.params import load_params
from stages.screening.sweep import Worst
from tests.finished import faded
from tests.own_model import SIDE, WEIGHTS, init, options, swept
from tests.workspace import ROOT, Workspace, audit_params, make_workspace

pytest_plugins = ("tests.own_repository",)


# A whole run


@pytest.mark.slow
def test_a_model_and_pictures_become_an_audit_that_plan_accepts(repository):
    here = Workspace(repository)
    code, told = faded(here, "init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--yes")
    assert code == 0, told
    assert "test_resnet of timm, 3 classes, 3 channels" in told
    assert "60 pictures in 3 classes, most of them 32x32, 3 channels" in told
    assert "faded audit shapes" in told
    assert "guessed: architecture: test_resnet, name: shapes, size: 32; options say otherwise" in told
    assert "DVC" not in told
    text = (repository / "params.yaml").read_text()
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.prepare["model"] == {"timm": "test_resnet", "weights": WEIGHTS}
    assert audit.prepare["data"] == {"imagefolder": "shapes", "size": SIDE}
    assert "Each concept was probed alone, " in " ".join(text.replace("#", " ").split())
    assert "Not measured" not in text
    assert (repository / f"data/shapes/inputs/{WEIGHTS}").readlink() == Path(f"../../../{WEIGHTS}")
    code, planned = faded(here, "plan", "shapes")
    assert code == 0, planned
    assert "prepare@shapes" not in planned  # it ran for the sweep, and is not run again


@pytest.mark.slow
def test_an_audit_of_ones_own_model_runs_to_its_verdict(repository):
    """In a repository without a commit, which is not required."""
    here = Workspace(repository)
    shutil.rmtree(repository / ".git")
    here.run(["git", "init", "--quiet"])
    told = here.faded("init", "--model", WEIGHTS, "--data", "shapes", "--repair", "--budget", "100", "--yes")
    assert told.returncode == 0, told.stdout
    audited = here.faded("audit", "shapes")
    assert audited.returncode in (0, 1), audited.stdout  # with so few probes the gates may fail
    for report in ("report/report.html", "conclude/report.html"):
        assert (repository / "data/shapes" / report).exists(), audited.stdout


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_params_are_whole_in_between(repository):
    here = Workspace(repository)
    command = ("init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--yes")
    process = here.start(*command)
    time.sleep(6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if (repository / "params.yaml").exists():
        yaml.safe_load((repository / "params.yaml").read_text())
    told = here.faded(*command)
    finished = "already has an audit of that name" in told.stdout  # the kill came too late
    assert told.returncode == 0 or finished, told.stdout
    text = (repository / "params.yaml").read_text()
    assert text.count("  shapes:") == 1
    assert "Not measured" not in text
    load_params(repository / "params.yaml")


# What is written, and when


def test_what_the_sweep_saw_is_written_beside_the_levels(repository, measured):
    four = Worst("label", "upright", "80°", wilson(48, 50), wilson(3, 50), 1e-9)
    measured(swept([0, 20, 40, 80], [0.02, 0.05, 0.1, 0.35], four, clean=0.02))
    told = init()
    text = (repository / "params.yaml").read_text()
    assert "rotation: [0, 20, 40, 80]" in text
    assert "# turn about the centre, counter-clockwise, in degrees; 80°: 35% fail, label upright 96%" in text
    plain = " ".join(text.replace("#", " ").split())
    assert "2% of unchanged items fail" in plain and "none in 30% of inputs, one in 40%, two in 20%" in plain
    assert "20°: 5% ▁  40°: 10% ▁  80°: 35% ▃" in told and "label upright at 80°: 96% of 50, others 6%" in told
    assert "label upright at 80°" in (repository / ".faded/init/shapes.html").read_text()
    assert "20 discover items and 20 test items support no claim about others" in told
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.discover.budget == 20 * 4 < search_budget(0.05)  # all pairs of an item and a level
    assert audit.summarize.modes == 10
    assert audit.prepare["items"] == {"discover": 20, "repair": 20, "test": 20}
    assert not list((repository / ".faded/init").glob("*.json"))


def test_what_was_stopped_is_whole_and_goes_on_where_it_was(repository, measured, monkeypatch):
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError, match="disk"):
        init(given=options(budget=600, probes=370))
    between = (repository / "params.yaml").read_text()
    assert "Not measured yet" in between
    assert "shapes: its levels are not measured yet" in faded(Workspace(repository), "status")[1]
    load_params(repository / "params.yaml").audit("shapes")
    measured(swept([0, 20]))
    (repository / "elsewhere").mkdir()
    os.chdir(repository / "elsewhere")
    asked = []
    sweep = flows.init.run.sweep_concepts
    monkeypatch.setattr(flows.init.run, "sweep_concepts", lambda *a: asked.append(a[2]) or sweep(*a))
    told = init(given=Options({}, yes=True))  # its answers are remembered, with paths that are still valid
    assert "did not finish" in told and asked == [370]
    assert load_params(repository / "params.yaml").audit("shapes").discover.budget == 600
    after = (repository / "params.yaml").read_text()
    assert after.count("  shapes:") == 2  # under audits: and repairs:
    assert "rotation: [0, 20]" in after
    assert unmeasured(repository) == []


def test_a_bare_workspace_is_one_for_an_audit_that_is_written_by_hand(repository):
    here = Workspace(repository)
    code, told = faded(here, "init", "--bare", "--model", WEIGHTS, "--budget", "5")
    assert code == 2
    assert "--bare creates a workspace without an audit: leave out --model, --budget" in told
    assert not (repository / "dvc.yaml").exists()
    by_hand = yaml.safe_dump({"audits": {"mine": audit_params()}})
    (repository / "params.yaml").write_text(by_hand)
    shutil.copy(ROOT / "tests" / "planted.py", repository)
    code, told = faded(here, "init", "--bare")
    assert code == 0, told
    assert (repository / "params.yaml").read_text() == by_hand
    code, told = faded(here, "plan", "mine")
    assert code == 0 and "prepare@mine" in told, told
    assert "it is already a workspace" in faded(here, "init", "--bare")[1]


def test_other_answers_take_the_place_of_what_was_not_finished_even_after_a_kill_between_two_writes(
    repository, measured, monkeypatch
):
    """The state has the blocks before and after the change, so that either is found in params.yaml."""
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError):
        init()

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flows.init.run.replace_file", killed)
        init(given=options(answers={"repair": False}))
    measured(swept([0, 20]))
    init(given=options(answers={"repair": False}))
    params = load_params(repository / "params.yaml")
    assert list(params.audits) == ["shapes"] and params.repairs == {}


def test_a_name_that_is_taken_is_refused_and_another_one_is_added(repository, measured):
    init()
    with pytest.raises(UsageError, match="already has an audit of that name"):
        init(given=options(answers={"name": "shapes"}))
    (repository / "below").mkdir()
    init(repository / "below")  # in the same workspace; its name is guessed from the data
    assert list(load_params(repository / "params.yaml").audits) == ["shapes", "shapes-2"]


def test_in_a_clone_of_faded_an_audit_is_added_to_those_there_are(tmp_path, shapes, measured, monkeypatch):
    clone = make_workspace(tmp_path / "clone").path
    before = {name: (clone / name).read_bytes() for name in ("dvc.yaml", ".gitignore")}
    params = (clone / "params.yaml").read_text()
    monkeypatch.chdir(clone)
    init(given=options(answers={"model": str(shapes / WEIGHTS), "data": str(shapes / "shapes"), "repair": False}))
    audits = load_params(clone / "params.yaml").audits
    assert list(audits) == ["tiny", "shapes"]
    assert audits["shapes"].task == "image-classification"
    assert all(line in (clone / "params.yaml").read_text().splitlines() for line in params.splitlines())
    assert {name: (clone / name).read_bytes() for name in before} == before


def test_a_folder_in_no_git_repository_is_refused(tmp_path):
    with pytest.raises(UsageError, match="git init"):
        init(tmp_path)


# Text of params.yaml


def test_every_other_byte_of_params_stays():
    text = (ROOT / "params.yaml").read_text()
    draft = AuditDraft(
        "a", {"task": "x:Y", "concepts": {"word": ["", "on", "a, b"]}}, {"gates": {}}, {"concepts": "Levels."}
    )
    after = with_draft(text, draft)
    lines = draft.text()
    assert after.replace(f"\n{lines['audits']}", "").replace(f"\n{lines['repairs']}", "") == text
    assert with_draft(after, draft) == after
    assert yaml.safe_load(after)["audits"]["a"]["concepts"]["word"] == ["", "on", "a, b"]


@pytest.mark.parametrize("text", ["", "audits: {}\nrepairs: {}  # none\nrunner: ray\n", "audits:\n  b: {x: 1}\n"])
def test_an_audit_finds_its_place_in_any_layout(text):
    draft = AuditDraft("a", {"x": 1e-7}, {"gpus": 0})
    whole = yaml.safe_load(with_draft(text, draft))
    assert whole["audits"]["a"] == {"x": 1e-7}
    assert whole["repairs"] == {"a": {"gpus": 0}}
