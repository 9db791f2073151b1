"""The study of explorers: its landscapes are as described, its counts are right, and its report is true."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from rich.console import Console

from benchmarks.study import report, run
from benchmarks.study.landscapes import Enumerated, Planted, save_enumerated
from benchmarks.study.measure import Clock, Truth, modes_found, search_quality
from flows.choosing.study import run_study
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.core.git import git
from stages.explorers.prober import Prober
from stages.explorers.registry import make_explorer
from tests.workspace import ROOT, make_workspace

PLAN = {"budgets": [40, 80], "short": 80, "estimate_at": []}


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(5, seed=100, searched=20, unseen=5)


@pytest.fixture
def enumerated(tmp_path) -> Enumerated:
    """Two concepts, four cells, three items, two of which are searched."""
    space = ConceptSpace((Concept("a", (0, 1)), Concept("b", (0, 1))))
    margins = np.array([[-1, -1, 0.5, 0.5], [-1, 0.2, -0.1, 0.9], [1, 1, 1, 1]], dtype=np.float32)
    save_enumerated(tmp_path / "t.safetensors", space, np.eye(3), margins, searched=2)
    return Enumerated(tmp_path / "t.safetensors")


def test_planted_modes_fail_and_the_rest_hardly_does(planted):
    cells = planted.concepts.cells()
    rates = planted.true_rates(planted.items.ids("discover"), cells)
    inside = np.any([mode.contains(planted.concepts, cells) for mode in planted.modes], axis=0)
    assert rates[inside].mean() > 0.8
    assert rates[~inside].mean() < 0.1
    assert len(planted.modes) == 5


def test_a_planted_landscape_is_its_seed_and_answers_alike_in_any_batch(planted):
    rng = np.random.default_rng(0)
    items, cells = rng.integers(20, size=50), planted.concepts.sample(50, rng)
    again = Planted(5, seed=100, searched=20, unseen=5)
    one_by_one = [again.margins(items[n : n + 1], cells[n : n + 1])[0] for n in range(50)]
    assert np.array_equal(planted.margins(items, cells), one_by_one)
    assert not np.array_equal(Planted(5, 101, 20, 5).margins(items, cells), one_by_one)


def test_coverage_is_of_the_cells_under_which_half_of_the_items_fail(enumerated):
    searched = enumerated.items.ids("discover")
    assert searched == ["item-0000", "item-0001"]
    assert enumerated.true_rates(searched, enumerated.concepts.cells()).tolist() == [0.0, 0.5, 0.5, 1.0]
    probes = pd.DataFrame({"a": [1, 1, 0], "b": [1, 1, 0], "failed": [True, True, False]})
    found = search_quality(Truth(enumerated), probes)
    assert (found["failures"], found["failing_cells"]) == (2, 1)
    assert found["coverage"] == pytest.approx(1 / 3) and np.isnan(found["modes_found"])


def test_a_mode_counts_once_it_has_ten_failures_that_no_other_mode_shares(planted):
    cells = planted.concepts.cells()
    inside = np.stack([mode.contains(planted.concepts, cells) for mode in planted.modes])
    own = cells[inside[0] & (inside.sum(axis=0) == 1)]
    assert modes_found(planted, own[:9]) == 0
    assert modes_found(planted, own[:10]) == pytest.approx(1 / 5)
    shared = cells[inside.sum(axis=0) > 1]
    assert len(shared) >= 10
    assert modes_found(planted, shared) == 0


def test_the_clock_leaves_the_model_out(planted, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.study.measure.time.process_time", lambda: now[0])
    original = planted.probe

    def slow(*args, **kwargs):
        now[0] += 5.0
        return original(*args, **kwargs)

    monkeypatch.setattr(planted, "probe", slow, raising=False)
    clock = Clock(planted)
    with clock.running():
        now[0] += 1.0
        planted.probe(["item-0000"], np.zeros((1, 5), dtype=int))
        now[0] += 2.0
    assert clock.seconds == 3.0
    assert planted.probe is slow  # restored


def test_a_budget_is_read_off_the_first_probes_of_one_run(planted):
    rows = run.study_one("random", {}, "planted5", PLAN, seed=100)
    assert [row["budget"] for row in rows] == [40, 80]
    task = run.make_landscape("planted5", 100)
    prober = Prober(task, task.items.ids("discover"), 80)
    make_explorer("random", {}).explore(prober, 100)
    failed = prober.table()["failed"]
    assert [row["failures"] for row in rows] == [failed.head(40).sum(), failed.sum()]
    assert "cpu_ms" in rows[1]
    for name, row in yaml.safe_load((run.HERE / "params.yaml").read_text())["study"]["explorers"].items():
        make_explorer(row.get("explorer", name), row.get("settings", {}))


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed_and_ends_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "dependencies", list)  # a changed state of the code would be another run
    study = {"seeds": [100, 101], "landscapes": {"planted5": PLAN}, "explorers": {"random": {}}}
    whole = run.run("random", study, workers=1)
    kept = sorted(tmp_path.glob(".faded/scratch/study/random/*/*.json"))
    assert [path.name for path in kept] == ["planted5-100.json", "planted5-101.json"]
    kept[0].unlink()
    stamp = kept[1].stat().st_mtime_ns
    again = run.run("random", study, workers=1)
    assert kept[1].stat().st_mtime_ns == stamp  # not done again
    pd.testing.assert_frame_equal(whole.drop(columns="cpu_ms"), again.drop(columns="cpu_ms"))


def results(failures: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"landscape": "mnist", "explorer": name, "seed": seed, "budget": 500, "failures": value, "coverage": 0.5}
        for name, numbers in failures.items()
        for seed, value in enumerate(numbers)
    ]
    return pd.DataFrame(rows)


def test_the_best_is_bold_and_so_is_what_ties_it_but_nothing_worse():
    table = results({"one": [100, 110, 120], "two": [101, 108, 121], "three": [10, 12, 11]})
    column = report.TABLES["mnist"][0]
    assert report.within_noise(report.values(table, "mnist", column), "high") == {"one", "two"}
    text = report.markdown(table, "mnist", ["one", "two", "three"])
    assert "| one | **110 ±10**" in text
    assert "| three | 11 ±1 |" in text


def test_what_a_seed_names_is_looked_for_in_what_the_other_seeds_name():
    space = ConceptSpace((Concept("a", (0, 1, 2, 3)), Concept("b", (0, 1))))
    left, right = {"a": [0, 1]}, {"a": [2, 3]}
    named = [[left, right], [left], [left]]
    rows = [
        {"landscape": name, "explorer": "one", "seed": seed, "budget": 500, "named": json.dumps(regions)}
        for name in ("mnist", "planted5")
        for seed, regions in enumerate(named)
    ]
    table = report.with_named_again(pd.DataFrame(rows), {"mnist": space})
    assert table["named_again"].head(3).tolist() == [0.5, 1.0, 1.0]
    assert table["named_again"].tail(3).isna().all()  # each seed has another truth


def test_an_aim_that_was_missed_is_called_missed(tmp_path):
    table = results({"auto": [310, 300, 290]})
    assert "| mnist | failures at 500 | >= 385 | 300 | **missed** |" in report.targets(table, "auto")
    (tmp_path / "study.md").write_text("# Mine\n\nWords.\n\n<!-- below: written by `faded study` -->\n\nlast week's\n")
    report.write(table, {"seeds": [0, 1, 2], "explorers": {"auto": {}}}, tmp_path)
    text = (tmp_path / "study.md").read_text()
    assert text.startswith("# Mine\n\nWords.\n")
    assert "last week's" not in text
    assert "300 ±10" in text
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_dvc_lists_the_study_in_its_own_project_alone():
    with Repo(str(ROOT)) as audits, Repo(str(run.HERE)) as study:
        assert {stage.path_in_repo for stage in audits.index.stages} == {"dvc.yaml"}
        assert "explorer@random" in {stage.name for stage in study.index.stages}


def test_what_python_compiles_makes_no_explorer_stale(tmp_path):
    clone = tmp_path / "clone"
    for folder in ("stages/explorers", "benchmarks/study"):
        shutil.copytree(
            ROOT / folder, clone / folder, symlinks=True, ignore=shutil.ignore_patterns("tmp", "__pycache__")
        )
    (clone / "benchmarks/study/dvc.lock").unlink()
    git("init", folder=clone)

    def code() -> str:
        with Repo(str(clone / "benchmarks/study")) as study:
            [stage] = [stage for stage in study.index.stages if stage.name == "explorer@random"]
            [dep] = [dep for dep in stage.deps if dep.fs_path.endswith("stages/explorers")]
            return dep.get_hash().value

    before = code()
    (clone / "stages/explorers/__pycache__").mkdir()
    (clone / "stages/explorers/__pycache__/random.cpython-311.pyc").write_text("compiled")
    assert code() == before
    (clone / "stages/explorers/another.py").write_text("")
    assert code() != before


def imports_of(module: Path, seen: set[Path] | None = None) -> set[Path]:
    """Files under stages/ that a module imports, itself and transitively."""
    seen = set() if seen is None else seen
    seen.add(module)
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            path = ROOT / name.replace(".", "/")
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if name.startswith("stages") and file.exists() and file not in seen:
                    imports_of(file, seen)
    return seen


def test_what_the_study_computes_with_lies_under_its_deps():
    deps = run.dependencies()
    assert len(deps) > 8
    imported = imports_of(ROOT / "benchmarks/study/run.py") | imports_of(ROOT / "benchmarks/study/measure.py")
    science = ("concepts", "explorers", "landscape", "tasks")
    for path in imported:
        if path.name != "__init__.py" and path.relative_to(ROOT).parts[1] in science:
            assert any(path.is_relative_to(dep) for dep in deps), path


def test_what_cannot_be_studied_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs in a clone of Faded's repository"):
        run_study([], Console())
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=r"no explorer nope in .*, found: random, "):
        run_study(["nope"], Console())


@pytest.mark.slow
def test_the_command_runs_what_is_stale_and_writes_the_page(tmp_path, enumerated):
    workspace = make_workspace(tmp_path / "clone")
    there = workspace.path / "benchmarks"
    left_out = shutil.ignore_patterns("truths", "results", "dvc.lock", "tmp")
    shutil.copytree(ROOT / "benchmarks", there, symlinks=True, ignore=left_out)
    (workspace.path / "docs").mkdir()
    (there / "study" / "truths").mkdir()
    for name in ("mnist", "imagenet"):
        shutil.copy(tmp_path / "t.safetensors", there / "study" / "truths" / f"{name}.safetensors")
    params = {
        "truths": {},
        "study": {
            "seeds": [100, 101],
            "landscapes": {"planted5": {"budgets": [2000], "short": 2000, "estimate_at": []}},
            "explorers": {"random": {}, "ppo": {}},
        },
    }
    (there / "study" / "params.yaml").write_text(yaml.safe_dump(params))
    (workspace.path / "docs" / "study.md").write_text(f"# Mine\n\nWords.\n\n{report.MARKER}\n\nlast week's\n")
    done = workspace.faded("study")
    assert done.returncode == 0, done.stdout
    assert "explorer@ppo: ran" in done.stdout
    text = (workspace.path / "docs" / "study.md").read_text()
    assert text.startswith("# Mine\n\nWords.\n") and "last week's" not in text
    assert "| random |" in text and "| ppo |" in text
    again = workspace.faded("study")
    assert again.returncode == 0, again.stdout
    assert "explorer@ppo: unchanged" in again.stdout and "report: unchanged" in again.stdout
