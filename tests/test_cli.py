"""The `faded` command on real stages: its output, refusals and exit codes."""

import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from typer.core import TyperGroup as Group
from typer.main import get_command
from typer.testing import CliRunner

from flows.cli import app
from flows.commands import _Console
from flows.graph import Graph, Stage
from flows.results import TIMINGS, Took
from flows.results.compare import differences, paired_difference, read_run
from flows.results.estimate import Estimate, estimate_cost, supports_no_claim, warnings_of
from flows.terminal import print_plain
from flows.views.labels import code
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import Exit, Terminated, UnavailableError, UsageError, missing_package, run_as_command
from stages.core.files import record_probe_seconds, seal
from stages.core.git import git
from stages.params import AuditConfig, Params
from tests.finished import audit_running, faded, inside
from tests.planted import PlantedTask
from tests.planted_texts import PlantedTexts
from tests.workspace import ROOT, STAGES, Workspace, audit_params, repair_params
from tests.worse import worse_audits


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Workspace:
    """Two committed revisions of "other", the second with code that fails more; then an input was changed."""
    workspace = worse_audits().copy(tmp_path_factory.mktemp("cli") / "ws")
    (workspace.path / "data/other/inputs/regions.json").write_text("[ ]")
    return workspace


def run_here(workspace: Workspace, *command: str) -> subprocess.CompletedProcess[str]:
    """`Workspace.faded` in this process, which has already imported everything."""
    return subprocess.CompletedProcess(command, *faded(workspace, *command))


def test_help_is_quick_to_import_and_has_examples_and_a_run_does_not_hold_heavy_libraries_for_hours(tmp_path):
    script = """if True:
        import sys, flows.cli; from typer.testing import CliRunner
        result = CliRunner().invoke(flows.cli.app, ['--help'])
        assert result.exit_code == 0, result.output
        heavy = {"torch", "prefect", "dvc", "pandas", "numpy", "sklearn"} & set(sys.modules)
        assert not heavy, heavy
        import flows.worker, flows.start.engine, flows.audit
        heavy = {"torch", "dvc", "pandas", "pyarrow", "scipy", "sklearn", "networkx", "PIL"} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    commands = cast(Group, get_command(app)).commands
    assert len(commands) > 20
    for command in commands:
        done = CliRunner().invoke(app, [command, "--help"])
        assert done.exit_code == 0
        assert f"faded {command}" in done.output.split("Example")[-1], done.output


def test_the_workspace_is_found_from_a_folder_inside_it_and_told_from_what_is_none(toys, tmp_path):
    done = run_here(Workspace(toys.path / "data/tiny"), "plan")
    assert done.returncode == 0 and "prepare@tiny" in done.stdout and "never ran" in done.stdout, done.stdout
    other = tmp_path / "other"
    other.mkdir()
    done = run_here(Workspace(other), "status")
    assert done.returncode == 2 and "no params.yaml and dvc.yaml" in done.stdout and str(other) in done.stdout
    (tmp_path / "params.yaml").write_text("train: {lr: 1}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    done = run_here(Workspace(tmp_path), "status")
    assert (
        done.returncode == 2
        and f"in {tmp_path} are not Faded's: run faded inside a workspace, such as {toys.path}" in done.stdout
    )


def test_what_is_wrong_in_params_is_told_at_once_and_before_anything_runs(toys):
    served = {"endpoint": "http://localhost:1", "key_env": "NO_SUCH_KEY"}
    key = "audits.tiny.prepare.model.key_env: the environment variable NO_SUCH_KEY is not set"
    for changes, told in (
        (
            {"audits.tiny.seeed": 1, "audits.tiny.discover.budget": 0, "repairs.tiny.feedback.policy": "guess"},
            ["audits.tiny.seeed", "mean 'seed'", "audits.tiny.discover.budget", "repairs.tiny.feedback.policy"],
        ),
        ({"audits.tiny.prepare.colour": "red"}, ["audits.tiny.prepare.colour: unknown key"]),
        ({"audits.tiny.prepare.model": served}, [key]),
    ):
        before = toys.params()
        toys.edit_params(changes)
        done = run_here(toys, "audit")
        assert done.returncode == 2 and all(line in done.stdout for line in told), done.stdout
        assert "unique probes at most" not in done.stdout
        toys.write_params(before)
    assert toys.executed() == []


def test_a_name_for_the_shell_is_refused_and_nothing_runs(toys):
    name = "x;touch y"
    toys.write_params({"audits": {name: audit_params(), "tiny": audit_params()}, "repairs": {}})
    for command in (["audit", name], ["audit", "tiny"]):
        done, told = run_here(toys, *command), f"audits: {name!r}: expected a name of 1 to 64 letters"
        assert done.returncode == 2 and told in done.stdout, done.stdout
    assert toys.executed() == [] and not (toys.path / "y").exists()


def test_bytes_that_are_no_parameters_are_told_by_every_command(toys):
    for text, told in (
        (b"audits: {}\xff", "params.yaml is not UTF-8 text: byte 11 is 0xFF"),
        (b"audits: !!float oops", "params.yaml, line 1: 'oops' is not a valid float"),
    ):
        (toys.path / "params.yaml").write_bytes(text)
        for command in (["audit"], ["init", "--yes"]):
            done = run_here(toys, *command)
            assert done.returncode == 2 and told in done.stdout, done.stdout


def test_a_new_audit_that_is_refused_leaves_nothing_behind(toys):
    params = toys.params()
    params["audits"]["extra"] = {**params["audits"]["tiny"], "task": "nowhere:Task"}
    toys.write_params({"audits": params["audits"]})  # repairs may be absent
    before = sorted(toys.path.rglob("data/**/*"))
    done = run_here(toys, "plan", "extra")
    assert done.returncode == 2 and "nowhere" in done.stdout, done.stdout
    assert sorted(toys.path.rglob("data/**/*")) == before and (toys.path / ".faded").stat().st_mode & 0o777 == 0o700
    done = run_here(toys, "plan", "tiny")
    assert done.returncode == 0 and "report@tiny" in done.stdout and "restructure" not in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no"), 2),
        (OSError(28, "No space left on device", "models/x"), 3),
        (MemoryError(), 3),
        (torch.OutOfMemoryError("CUDA out of memory"), 3),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), 3),
        (sqlite3.OperationalError("disk I/O error"), 3),
        (UnavailableError("it does not answer"), 69),
        (Terminated(), 3),
        (KeyboardInterrupt(), 130),
        (RuntimeError("shapes do not match"), 70),
    ],
)
def test_what_the_machine_did_is_told_from_a_bug(error, code, capsys):
    def stage() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run_as_command(stage)
    told = capsys.readouterr().err
    assert ended.value.code == code and ("Traceback" in told) is (code == 70)
    assert code == 70 or told.count("\n") <= 1
    if isinstance(error, OSError):
        assert "models/x" in told and "the same command resumes" in told


def test_a_package_of_an_extra_that_is_not_installed_is_told_with_the_command_that_installs_it(monkeypatch):
    def told_of(module: str) -> str | None:
        error = missing_package(ModuleNotFoundError(f"No module named {module!r}", name=module))
        return None if error is None else str(error)

    assert told_of("timm") is None  # it is installed, so a part of it is missing
    monkeypatch.setattr("stages.core.errors.find_spec", lambda module: None)
    assert told_of("timm.models") == "timm is not installed: pip install 'faded[image]'"
    assert told_of("PIL") == "PIL is not installed: pip install 'faded[image]' or 'faded[text-to-image]'"
    assert told_of("mine") is None and missing_package(ValueError("timm")) is None


def test_a_plan_tells_cost_before_anything_runs(toys):
    done = run_here(toys, "plan")
    assert done.returncode == 0
    # Of 200 probes 40 are kept back. In batches of 32: discover 2 x 160 and 100 for small steps; summarize 2 x 40;
    # re_evaluate 2 x 320 and 2 models x 2 x 100 pairs.
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if "@tiny" in line}
    for stage, counts in (("discover", "420 14"), ("summarize", "80 3"), ("re_evaluate", "1,040 33")):
        assert {*counts.split()} <= set(rows[f"{stage}@tiny"])
    assert "1,540 unique probes at most" in done.stdout
    assert "time unknown until prepare has run" in done.stdout and "free" in done.stdout
    few = "tiny: 20 discover items and 20 test items support no claim about others: 20% of 20 has a 95% interval from"
    assert f"{few} 8% to 42%; 30 or more are expected" in done.stdout
    assert supports_no_claim({}, 30) is None and "3 probes support" in (supports_no_claim({}, 3) or "")
    assert toys.executed() == []


def estimated(*kinds: str, **repair: Any) -> Estimate:
    """The estimate for an audit "tiny" of which these stages are stale, in the current folder."""
    stages = [Stage(f"{kind}@tiny", kind, "tiny", 0, (), None, ("never ran",) * (kind in kinds)) for kind in STAGES]
    params = {"audits": {"tiny": audit_params()}, "repairs": {"tiny": repair_params(**repair)}}
    return estimate_cost(Params.model_validate(params), Graph({stage.name: stage for stage in stages}), ["tiny"])


def test_files_that_make_nothing_stale_and_decisions_that_git_ignores_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/tiny/inputs").mkdir(parents=True)
    for name in ("model.joblib", "data/tiny/inputs/in.joblib"):
        (tmp_path / name).touch()
    (tmp_path / "scoring.py").write_text("FILES = 'model.joblib', 'data/tiny/inputs/in.joblib', 'absent.joblib', ''")
    model = {"function": "scoring:predict", "classes": ["a", "b"]}
    audit = AuditConfig.model_validate(audit_params() | {"prepare": {"model": model}})
    [line] = warnings_of("tiny", audit)
    assert line.startswith("tiny: scoring.py mentions files outside data/tiny/inputs (model.joblib): changes")
    (tmp_path / "scoring.py").write_text("not Python")
    assert warnings_of("tiny", audit) == []
    git("init")
    (tmp_path / ".gitignore").write_text("other/\n")
    assert warnings_of("tiny", audit) == []
    (tmp_path / ".gitignore").write_text("tiny/\n")  # meant for pictures of that name
    [line] = warnings_of("tiny", audit)
    assert line.startswith("tiny: git ignores data/tiny/decisions, so no decision would be committed")


def test_time_is_estimated_by_what_a_probe_took_in_prepare(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("flows.results.abilities._asked", lambda *_: None)
    for module in ("estimate", "abilities"):
        monkeypatch.setattr(f"flows.results.{module}.task_class", lambda *_: PlantedTask)
    searching = ("discover", "re_evaluate")
    reference = {}
    monkeypatch.setattr("flows.results.estimate.read_reference", lambda: reference)
    assert estimated(*searching).time == "time unknown"
    record_probe_seconds("tiny", 0.3)
    found = {e.stage.kind: (e.probes, e.seconds, e.source) for e in estimated(*searching, "summarize", "report").stages}
    for kind, probes in (("discover", 420), ("re_evaluate", 1040), ("summarize", 80)):
        assert found[kind] == (probes, pytest.approx(0.3 * probes), "probes")
    assert found["report"] == (None, None, None)
    with monkeypatch.context() as patch:  # a task with measures probes its model again, and unchanged items
        patch.setattr("flows.results.abilities.task_class", lambda *_: PlantedTexts)
        items = audit_params()["prepare"]["items"]["test"]
        assert [e.probes for e in estimated("re_evaluate").stages] == [1040 + 200 + 3 * items]
    # Three trainings of two doses, the whole one half-way too: half as many pairs of two parts, and the model before.
    several = {"restructure": {"method": "planted", "trainings": 3}, "re_evaluate": {"paired_probes": 100}}
    assert [e.probes for e in estimated("re_evaluate", **several).stages] == [640 + 2 * 200 + 2 * 50 * (1 + 3 * 3)]
    by_probes = "the model's answers as timed by prepare, the rest as measured on 2 cores"
    told = estimated(*searching, "restructure").time
    more = "unknown for 1 more stage(s), including the repair's training"
    assert told.startswith(f"about 7 min 18 s ({by_probes}); {more}")
    reference |= {f"{kind}@mnist": Took(seconds=9) for kind in (*searching, "restructure", "report")}
    assert estimated(*searching, "restructure", "report").time.startswith(f"about 7 min 45 s ({by_probes}); {more}")
    reference.clear()

    # With prepare stale, it was another model. The stage's own last run here counts more, the benchmarks least.
    assert estimated("prepare", *searching).time == "time unknown until prepare has run"
    reference["discover@tiny"] = Took(seconds=70)
    (tmp_path / ".faded").mkdir(exist_ok=True)
    took = json.dumps({"discover@tiny": {"seconds": 50}}).encode()
    (tmp_path / ".faded/timings.json").write_bytes(seal(TIMINGS, took))
    assert estimated(*searching).time == f"about 6 min 2 s (from the last run here, {by_probes})"
    (tmp_path / ".faded/timings.json").unlink()
    said = "about 1 min 10 s (as measured on 2 cores); unknown for 2 more stage(s)"
    assert estimated("prepare", *searching).time == said


@pytest.fixture
def presets(toys) -> Workspace:
    """A workspace of toys with an audit "tiny", its preset "quick" and an audit "other"."""
    names = ("tiny", "tiny-quick", "tiny-slow", "other")
    for name in names[1:]:
        (toys.path / "data" / name / "inputs").mkdir(parents=True)
    toys.write_params({"audits": {name: audit_params() for name in names}, "repairs": {}})
    return toys


def test_a_preset_is_an_audit_beside_another_and_one_that_is_not_there_names_those_that_are(presets):
    planned = run_here(presets, "plan", "tiny", "--preset", "quick")
    assert planned.returncode == 0, planned.stdout
    assert "discover@tiny-quick" in planned.stdout and "discover@tiny " not in planned.stdout
    report = presets.path / "data/tiny-quick/report/report.html"
    report.parent.mkdir(parents=True)
    report.write_text("quick")
    assert run_here(presets, "report", "--preset", "quick", "--no-open").stdout.strip() == str(report)
    assert "audit 'tiny-slow' has no entry under repairs" in run_here(presets, "review", "--preset", "slow").stdout
    for command, told in (
        (("audit", "tiny", "--preset", "qick"), "no preset 'qick' (tiny-qick in params.yaml), found: quick, slow"),
        (("plan", "tiny", "other", "--preset", "quick"), "audit 'other' has no preset 'quick'"),
        (("review", "tinny", "--preset", "quick"), "did you mean 'tiny'"),
        (("audit", "tinny"), "found: tiny, tiny-quick, tiny-slow, other, did you mean 'tiny'"),
        (("audit", "--all", "--preset", "quick"), "with --preset, name the audits"),
    ):
        done = run_here(presets, *command)
        assert done.returncode == 2 and told in done.stdout, done.stdout
    assert presets.executed() == []


def test_status_report_and_plan_of_a_finished_audit(finished):
    page = Path(run_here(finished, "report", "other", "--no-open").stdout.splitlines()[-1])
    assert page.is_file() and page.is_relative_to(finished.path) and page.name == "report.html"
    lines = run_here(finished, "status", "other").stdout.splitlines()
    [row] = [line for line in lines if line.split()[:1] == ["other"]]
    assert "(outdated)" in row and "%" in row and "next: faded audit other" in lines
    status = run_here(finished, "status", "other", "--stages")
    assert status.returncode == 0
    rows = {line.split()[0]: line for line in status.stdout.splitlines() if "@other" in line}
    # An input was changed after the second run.
    assert "stale" in rows["prepare@other"] and "  inputs " in status.stdout
    assert "behind" in rows["discover@other"] and "behind" in rows["summarize@other"]
    assert "from an earlier run" in status.stdout


def test_two_revisions_are_compared_on_common_probes(finished):
    done = run_here(finished, "compare", "first", "workspace", "other")
    assert done.returncode == 0, done.stdout
    assert "overall" in done.stdout and "tilt 3" in done.stdout
    assert "paired on" in done.stdout and "more failures" in done.stdout
    assert "failures found by the agent" not in done.stdout
    assert "first: agent (random)" in (finished.path / ".faded/compare.html").read_text()

    with inside(finished):
        first = read_run("first", "other")
    same = paired_difference(first.probes, first.probes, first.landscape.space)
    assert same is not None and same.difference.value == 0 and differences(first, first) == []


TILTED = ConceptSpace((Concept("tilt", (0, 1)),))


def test_pairs_are_joined_on_item_cell_and_repeat_of_controls_only():
    def probes(failed: list[bool], last: str = "control") -> pd.DataFrame:
        rows = {"role": [*["control"] * 3, last], "item": [*"iijk"], "tilt": [0, 1, 0, 0], "repeat": 0}
        return pd.DataFrame(rows | {"failed": failed})

    a, b = probes([False, False, False, True]), probes([True, False, True, False], "agent")
    paired = paired_difference(a, b, TILTED)
    assert paired is not None and (paired.difference.n, paired.items) == (3, 2)
    assert paired.difference.value == pytest.approx(2 / 3)
    assert paired.difference.low < 2 / 3 <= paired.difference.high <= 1
    assert paired_difference(a, b[b["role"] == "agent"], TILTED) is None


def test_one_audit_at_a_time(toys):
    with audit_running(toys) as process:
        done = run_here(toys, "audit")
        assert done.returncode == 3 and f"process {process}" in done.stdout
        assert f"process {process}" in run_here(toys, "status").stdout
    assert toys.executed() == []


@pytest.mark.slow
def test_only_rich_controls_the_terminal():
    """Names of columns, classes and models are printed by many commands, each as it was found."""
    out, hostile = io.StringIO(), "a\x1b]0;t\x9b2J\u202e\u00a0b"
    screen = _Console(file=out, force_terminal=True, width=80)
    table = Table(hostile)
    table.add_row(f"[bold]{hostile}[/]")
    screen.print(table, Text(hostile))
    print_plain(screen, hostile)
    shown = r"a\x1b]0;t\x9b2J\u202e" + "\u00a0b"
    assert out.getvalue().count(shown) == 2 and "\x1b[1m" in out.getvalue()
    assert not set("\x9b\u202e") & set(out.getvalue()) and "\x1b]" not in out.getvalue()
    assert code(hostile) == f"`{shown.replace(chr(160), ' ')}`"


def test_where_nobody_reads_on_the_exit_code_is_not_that_of_a_failed_gate(toys):
    done = toys.run(["bash", "-c", 'faded status | true; exit "${PIPESTATUS[0]}"'])
    assert done.returncode == Exit.INFRASTRUCTURE, done.stdout


def test_a_package_adds_commands_and_a_broken_one_is_named(tmp_path):
    info = tmp_path / "greeting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[faded.commands]\nhello = greeting\nlost = no_such_module\n")
    (tmp_path / "greeting.py").write_text(
        "from flows.commands import app\n@app.command()\ndef hello() -> None:\n    print('good morning')\n"
    )
    command = [sys.executable, "-m", "flows.cli", "hello"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "good morning\n" and "no_such_module" in done.stderr
