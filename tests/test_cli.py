"""The `faded` command on real stages: what it prints, refuses and returns."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from flows.compare import Run, check_alike, paired_difference
from stages.errors import UsageError
from tests.workspace import Workspace, audit_params, make_workspace, repair_params

COMMANDS = ("audit", "plan", "status", "review", "report", "compare")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Workspace:
    """Two committed revisions of a real audit, the second with one more region of failures; then its input changed."""
    workspace = make_workspace(tmp_path_factory.mktemp("cli") / "ws", repairs={})
    for revision in ("first", "second"):
        done = workspace.run(["dvc", "repro"])
        assert done.returncode == 0, done.stdout
        assert workspace.run(["git", "add", "--all"]).returncode == 0
        assert workspace.run(["git", "commit", "--quiet", "--message", revision]).returncode == 0
        assert workspace.run(["git", "tag", revision]).returncode == 0
        regions = '[{"tilt": [1], "fog": [0, 1, 2, 3]}]' if revision == "first" else "[]"
        (workspace.path / "data/tiny/inputs/regions.json").write_text(regions)
    return workspace


def test_help_is_quick_to_import_and_has_examples(tmp_path):
    script = (
        "import sys, flows.cli; from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(flows.cli.app, ['--help'])\n"
        "assert result.exit_code == 0, result.output\n"
        "heavy = {'torch', 'prefect', 'dvc', 'pandas', 'numpy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    for command in COMMANDS:
        done = Workspace(tmp_path).faded(command, "--help")
        assert done.returncode == 0
        assert f"faded {command}" in done.stdout.split("Example")[-1], done.stdout


def test_the_version_is_the_distributions(tmp_path):
    from importlib.metadata import version

    assert Workspace(tmp_path).faded("--version").stdout.strip() == f"faded {version('faded')}"


def test_outside_a_workspace_it_says_so(tmp_path):
    done = Workspace(tmp_path).faded("status")
    assert done.returncode == 2
    assert "no params.yaml and dvc.yaml" in done.stdout and str(tmp_path) in done.stdout


def test_the_workspace_is_found_from_a_folder_inside_it(toys):
    done = Workspace(toys.path / "data/tiny").faded("plan")
    assert done.returncode == 0, done.stdout
    assert "prepare@tiny" in done.stdout and "never ran" in done.stdout


def test_all_configuration_errors_are_told_at_once(toys):
    params = toys.params()
    params["audits"]["tiny"]["seeed"] = 1
    params["audits"]["tiny"]["discover"]["budget"] = 0
    params["repairs"]["tiny"]["feedback"]["policy"] = "guess"
    toys.write_params(params)
    done = toys.faded("audit")
    assert done.returncode == 2
    for where in (
        "audits.tiny.seeed",
        "did you mean 'seed'",
        "audits.tiny.discover.budget",
        "repairs.tiny.feedback.policy",
    ):
        assert where in done.stdout
    assert "Traceback" not in done.stdout
    assert toys.executed() == []


def test_what_a_task_refuses_is_told_before_anything_runs(toys):
    params = toys.params()
    params["audits"]["tiny"]["prepare"]["colour"] = "red"
    toys.write_params(params)
    done = toys.faded("audit")
    assert done.returncode == 2, done.stdout
    assert "audits.tiny.prepare.colour: unknown key" in done.stdout
    assert toys.executed() == []


@pytest.mark.parametrize("command", [["audit", "tinny"], ["plan", "tinny"], ["status", "tinny"], ["report", "tinny"]])
def test_an_unknown_audit_names_the_known_ones(toys, command):
    done = toys.faded(*command)
    assert done.returncode == 2
    assert "found: tiny" in done.stdout and "did you mean 'tiny'" in done.stdout


def test_an_unknown_runner_is_refused(toys):
    done = toys.faded("audit", "--runner", "slurm")
    assert done.returncode == 2
    assert "no runner 'slurm', found: threads" in done.stdout


def test_a_plan_tells_cost_before_anything_runs(toys):
    done = toys.faded("plan")
    assert done.returncode == 0
    # 2 x 200 for discover; twice that and 2 models x 2 areas x 100 pairs for re_evaluate; batches of 32.
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if "@tiny" in line}
    assert {"400", "13"} <= set(rows["discover@tiny"])
    assert {"1,200", "38"} <= set(rows["re_evaluate@tiny"])
    assert "1,600 unique probes at most" in done.stdout
    assert "6 stage(s) never ran here" in done.stdout and "free" in done.stdout
    assert toys.executed() == []


def test_a_report_that_is_not_there_says_what_to_run(toys):
    done = toys.faded("report")
    assert done.returncode == 2
    assert "faded audit tiny" in done.stdout


def test_status_report_and_plan_of_a_finished_audit(finished):
    report = finished.faded("report", "--no-open")
    assert report.stdout.strip() == str(finished.path / "data/tiny/summarize/report.html")
    status = finished.faded("status")
    assert status.returncode == 0
    rows = {line.split()[0]: line for line in status.stdout.splitlines() if "@tiny" in line}
    # The input was changed after the second run.
    assert "stale" in rows["prepare@tiny"] and "data/tiny/inputs" in rows["prepare@tiny"]
    assert "behind" in rows["discover@tiny"] and "behind" in rows["summarize@tiny"]
    assert "of an earlier run" in status.stdout


def test_two_revisions_are_compared_on_common_probes(finished):
    done = finished.faded("compare", "first", "first")
    assert done.returncode == 0, done.stdout
    assert "overall" in done.stdout and "tilt 3" in done.stdout
    assert "+0.0000 (95% interval +0.0000 to +0.0000): no difference shown" in done.stdout


def test_more_planted_failures_are_found_by_the_comparison(finished):
    done = finished.faded("compare", "first", "workspace")
    assert done.returncode == 0, done.stdout
    assert "more failures" in done.stdout


def test_a_revision_that_is_not_there_is_refused(finished):
    done = finished.faded("compare", "nosuch", "workspace")
    assert done.returncode == 2
    assert "nosuch" in done.stdout and "git revision" in done.stdout


def test_unlike_runs_are_refused_with_every_difference():
    empty = pd.DataFrame()
    a = Run("a", {"concepts": [1], "threshold": 0.0}, {"device": "cpu", "dtype": "float32", "data": "x"}, empty)
    b = Run("b", {"concepts": [2], "threshold": 0.0}, {"device": "cuda", "dtype": "float32", "data": "y"}, empty)
    with pytest.raises(UsageError) as error:
        check_alike(a, b)
    told = str(error.value)
    assert "concepts: [1] against [2]" in told and 'device: "cpu" against "cuda"' in told and "data:" in told
    assert "threshold" not in told and "dtype" not in told
    check_alike(a, a)


def test_pairs_are_joined_on_item_cell_and_repeat_of_controls_only():
    def probes(failed: list[bool], roles: list[str]) -> pd.DataFrame:
        rows = {"role": roles, "item": ["i", "i", "j", "k"], "tilt": [0, 1, 0, 0], "repeat": 0, "failed": failed}
        return pd.DataFrame(rows)

    control = ["control"] * 4
    a = probes([False, False, False, True], control)
    b = probes([True, False, True, False], ["control", "control", "control", "agent"])
    paired = paired_difference(a, b, ["tilt"])
    assert paired is not None
    assert (paired.difference.n, paired.items) == (3, 2)
    assert paired.difference.value == pytest.approx(2 / 3)
    assert paired.difference.low == pytest.approx(0.5) and paired.difference.high == pytest.approx(1.0)
    assert paired_difference(a, b[b["role"] == "agent"], ["tilt"]) is None


def test_a_review_without_a_repair_is_refused(tmp_path):
    workspace = make_workspace(tmp_path, repairs={}, toys=True)
    done = workspace.faded("review")
    assert done.returncode == 2
    assert "no entry under repairs" in done.stdout


def test_one_audit_at_a_time(tmp_path):
    workspace = make_workspace(tmp_path, {"tiny": audit_params()}, {"tiny": repair_params()}, toys=True)
    holder = (
        "import os, sys, time; from flows.workspace import *; enter_workspace()\n"
        "with exclusive():\n    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        done = workspace.faded("audit")
        assert done.returncode == 3
        assert f"process {process.pid}" in done.stdout
        assert f"process {process.pid}" in workspace.faded("status").stdout
        process.communicate("")
    assert workspace.executed() == []
