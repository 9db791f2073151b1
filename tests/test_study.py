"""The study of explorers: its landscapes are as described, its counts are right, and its report is true."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.study import report, run
from benchmarks.study.landscapes import Planted
from benchmarks.study.measure import modes_found
from flows.choosing.study import run_study
from stages.core.errors import UsageError
from tests.workspace import ROOT

PLAN = {"budgets": [40, 80], "short": 80, "estimate_at": []}


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted(5, seed=100, searched=20, unseen=5)


def test_a_mode_counts_once_it_has_ten_failures_that_no_other_mode_shares(planted):
    cells = planted.concepts.cells()
    inside = np.stack([mode.contains(planted.concepts, cells) for mode in planted.modes])
    own = cells[inside[0] & (inside.sum(axis=0) == 1)]
    assert modes_found(planted, own[:9]) == 0
    assert modes_found(planted, own[:10]) == pytest.approx(1 / 5)
    shared = cells[inside.sum(axis=0) > 1]
    assert len(shared) >= 10
    assert modes_found(planted, shared) == 0


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
