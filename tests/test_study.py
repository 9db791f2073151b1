"""The study of explorers: its landscapes are as described, its counts are right, and its report is true."""

from __future__ import annotations

import pandas as pd
import pytest
from rich.console import Console

from benchmarks.study import report, run
from flows.choosing.study import run_study
from stages.core.errors import UsageError
from tests.workspace import ROOT

PLAN = {"budgets": [40, 80], "short": 80, "estimate_at": []}


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


def test_what_cannot_be_studied_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="runs in a clone of Faded's repository"):
        run_study([], Console())
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=r"no explorer nope in .*, found: random, "):
        run_study(["nope"], Console())
