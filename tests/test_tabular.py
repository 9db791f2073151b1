"""A fourth kind of model: rows of measurements, in one folder that would also work in another distribution."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Region
from stages.concepts.rows import CATALOGUE, with_groups
from stages.core.errors import UsageError
from stages.core.processes import Crew
from stages.landscape.harm import PARTS, HeldOut, harm_at, keep_budget
from stages.params.audit import AuditConfig
from stages.params.repair import HarmConfig
from stages.records.repair import Training
from stages.tasks.contract import Compute, Pair, RepairPlan, TargetMode, TaskContext
from stages.tasks.load import load_learner
from stages.tasks.tabular import TabularClassification, models
from stages.tasks.tabular.models import RowModel
from stages.tasks.tabular.probes import _table
from stages.tasks.training import write_loader
from tests.alone import load_alone
from tests.finished import faded, run_stages
from tests.workspace import Workspace

PLAN = RepairPlan([TargetMode("m", Region({"drift": (1, 2)}))], {"method": "risk-weighted"}, 7)
CONCEPTS = {"gain": [0, 10, 20], "drift": [0, 0.5, 1], "noise": [0, 0.5], "missing": [0, 0.4]}


def context(inputs: Path = Path(), **prepare: Any) -> TaskContext:
    """An audit of a logistic regression, which is trained in no time."""
    config = {
        "model": {"estimator": "logistic_regression", "rows": 169},
        "data": {"sklearn": "breast_cancer"},
        "items": {"discover": 130, "repair": 130, "test": 140},
        **prepare,
    }
    return TaskContext("rows", 7, config, CONCEPTS, {"threshold": 0}, inputs, Compute(threads=1))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rows")
    TabularClassification.prepare(context(), out)
    return out


@pytest.fixture
def task(prepared) -> TabularClassification:
    return TabularClassification.load(context(), prepared)


def test_an_answer_depends_on_its_probe_alone(task):
    rng = np.random.default_rng(0)
    ids, cells = rng.choice(task.items.ids("discover"), 20).tolist(), task.concepts.sample(20, rng)
    together = task.probe(ids, cells)
    alone = [float(task.probe([item], cell[None]).discrepancy[0]) for item, cell in zip(ids, cells, strict=True)]
    assert together.discrepancy.tolist() == alone
    again = task.probe(ids, cells, np.ones(20, dtype=int))
    assert (again.discrepancy != together.discrepancy).any()  # another draw of the noise


def test_rows_are_shown_with_known_answers_without_the_model(task):
    ids = task.items.ids("discover")[:3]
    cells = task.concepts.sample(3, np.random.default_rng(1))
    shown, known = task.exhibit(ids, cells), task.probe(ids, cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "model", None)
        assert task.recalled(ids, cells, known) == shown


def test_the_neutral_cell_leaves_rows_as_they_are_and_strong_levels_make_it_fail(task):
    ids = task.items.ids("discover")
    at, rows = task.changed(ids, np.tile(task.concepts.neutral, (len(ids), 1)))
    assert rows.equals(task.rows.iloc[at].reset_index(drop=True)) and task.clean_quality("discover").values.mean() > 0.9
    assert task.probe(ids, np.tile([2, 2, 1, 1], (len(ids), 1))).failed.mean() > 0.3


@pytest.mark.parametrize("name", CATALOGUE)
def test_each_concept_does_what_it_says_to_its_columns_alone(name):
    concept = with_groups({"some": ["a*"]})[f"{name}_some"]
    assert concept.columns == ("a*",)
    values, spread, usual = np.array([10.0, 20.0, 33.0, 47.0]), np.full(4, 8.0), np.full(4, 25.0)
    changed = concept.apply(values, 0.5, spread, usual, np.random.default_rng(0))
    expected = {"gain": values * 1.005, "drift": values + 4, "rounding": np.array([8.0, 20.0, 32.0, 48.0])}
    expected["decimal_slips"] = values  # half a slip has no effect
    if name in expected:
        assert np.allclose(changed, expected[name])
    assert name != "missing" or (changed == usual).sum() == 2
    assert name != "noise" or 0 < np.abs(changed - values).max() < 20


def test_a_model_is_kept_without_a_pickle_and_another_one_is_refused(prepared, tmp_path):
    assert sorted(path.name for path in (prepared / "model").iterdir()) == ["model.json", "rows.parquet"]
    shutil.copytree(prepared, tmp_path / "copy")
    path = tmp_path / "copy" / "model" / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "settings": {"C": 0.001}}))
    with pytest.raises(UsageError, match="fitted again, this logistic_regression answers otherwise"):
        TabularClassification.load(context(), tmp_path / "copy")


@pytest.fixture(scope="module")
def repaired(prepared, tmp_path_factory) -> tuple[Path, Any]:
    """A repaired model, and the record of its repair."""
    out = tmp_path_factory.mktemp("repaired") / "model"
    return out, TabularClassification.load(context(), prepared).repair(PLAN, out)


def test_a_repair_fails_less_where_it_was_aimed(prepared, repaired):
    out, record = repaired
    assert record.details["failures_after"] < record.details["failures_before"]
    assert "drift >= 0.5" in (out / "README.md").read_text()
    after = TabularClassification.load(context(), prepared, out)
    assert len(after.model.rows) == 169 + 130 + 4 * 130


def test_pairs_that_must_pass_are_fitted_beside_the_other_rows(task, prepared, tmp_path):
    plan = replace(PLAN, settings={**PLAN.settings, "copies": 3})
    item, cell = task.items.ids("repair")[0], [1, 0, 0, 0]
    task.repair(plan, tmp_path / "without")
    task.repair(replace(plan, must_pass=[Pair(item, cell)]), tmp_path / "with")
    without, within = (RowModel.read(tmp_path / folder) for folder in ("without", "with"))
    pd.testing.assert_frame_equal(within.rows.iloc[: len(without.rows)], without.rows)
    _, learnt = task.changed([item] * 3, np.tile(cell, (3, 1)), np.arange(3))
    assert np.array_equal(within.rows.iloc[len(without.rows) :].to_numpy(), learnt.to_numpy())
    assert within.labels[-3:].tolist() == task.items.table.set_index("id").loc[[item] * 3, "label"].tolist()


@pytest.mark.parametrize("share", [0.35, 1.0])
def test_a_repaired_model_is_fitted_and_asked_without_faded(task, tmp_path, share):
    settings = {"max_depth": 3, "criterion": "entropy", "n_estimators": 5}
    task.model = RowModel.fit("random_forest", settings, 7, task.rows, task.items.table["label"].to_numpy())
    task.repair(PLAN, tmp_path / "whole")
    task.move(tmp_path / "whole", share, tmp_path / "repaired")
    asked = task.rows.head(50)
    asked.to_csv(tmp_path / "rows.csv", index=False)
    code = "print(*model.predict_proba(pd.read_csv(sys.argv[1])).ravel())"
    *classes, odds = load_alone(tmp_path / "repaired", tmp_path / "rows.csv", code=code, cwd=tmp_path)
    known = RowModel.read(tmp_path / "repaired").log_odds(asked)
    assert classes == [task.model.classes[k] for k in known.argmax(1)]
    assert np.allclose(np.array(odds.split(), float).reshape(known.shape).clip(1e-12), np.exp(known), atol=1e-6)


def test_without_faded_rows_with_gaps_are_answered_as_filled_ones_are(tmp_path):
    rng = np.random.default_rng(3)
    rows = pd.DataFrame({"size": rng.normal(5, 2, 80), "member": rng.choice(["True", "False"], 80)})
    model = RowModel.fit("logistic_regression", {}, 7, rows, np.where(rows["member"] == "True", "yes", "no"))
    model.save(tmp_path / "model")
    write_loader(tmp_path / "model", models.__file__, **model.loading())
    asked = pd.DataFrame({"size": [9.0, None, 1.0], "member": [True, False, True]})  # read as bool, learnt as text
    asked.to_csv(tmp_path / "rows.csv", index=False)
    code = "print(*model.predict_proba(pd.read_csv(sys.argv[1])).ravel())"
    *classes, odds = load_alone(tmp_path / "model", tmp_path / "rows.csv", code=code, cwd=tmp_path)
    known = model.log_odds(asked.fillna({"size": rows["size"].median()}).astype({"member": str}))
    assert classes == ["yes", "no", "yes"]
    assert np.allclose(np.array(odds.split(), float).reshape(known.shape), np.exp(known), atol=1e-6)


def test_a_repair_goes_part_of_the_way_from_the_model_under_test_to_what_was_fitted(task, prepared, repaired, tmp_path):
    rows, margins = task.rows.head(100), []
    for share in (0.0, 0.25, 0.5, 1.0):
        task.move(repaired[0], share, tmp_path / str(share))
        found = RowModel.read(tmp_path / str(share)).log_odds(rows)
        assert np.allclose(np.exp(found).sum(1), 1)
        margins.append(found[:, 0] - found[:, 1])
    start, quarter, half, end = margins
    assert np.abs(end - start).max() > 0.1 and np.allclose(quarter, 0.75 * start + 0.25 * end, atol=1e-6)
    assert np.allclose(half, 0.5 * start + 0.5 * end, atol=1e-6)
    for share, whole in (("0.0", prepared / "model"), ("1.0", repaired[0])):
        for path in whole.iterdir():
            assert (tmp_path / share / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_a_repair_breaks_no_more_than_its_budget_of_harm(prepared, tmp_path):
    config, budget = context(), HarmConfig(newly_failing=0.01, clean=0.01, pairs=200)
    blocks = {"prepare": config.config, "concepts": CONCEPTS, "discrepancy": config.discrepancy, "summarize": {}}
    blocks |= {"compute": {"threads": 1, "backend": "eager"}, "discover": {"budget": 100}}
    audit = AuditConfig(seed=config.seed, task="tabular-classification", **blocks)
    learner = load_learner("rows", audit, prepared, budget.held_out)
    plan = RepairPlan([TargetMode("m", Region({"gain": (2,)}))], {"method": "risk-weighted"}, 7)
    learner.repair(plan, folder := tmp_path / "models" / "repaired")
    held_out = HeldOut("rows", audit, prepared, budget, tmp_path / "scratch")
    share = keep_budget(held_out, learner, {"repaired": folder}, Crew(1))["repaired"].share
    assert 0 < share < 1
    learner.move(tmp_path / "models" / Training.folder_of("repaired", 1.0, 0), share + 1 / PARTS, tmp_path / "further")
    before, *after = (held_out.ask(one) for one in (prepared / "model", folder, tmp_path / "further"))
    allowed = [harm_at(share, before, one, budget).allowed for one in after]
    assert allowed == [True, False]


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ({"model": {"estimator": "logistic_regresion", "rows": 20}}, "did you mean 'logistic_regression'"),
        ({"model": {"estimator": "mlp", "rows": 20, "settings": {"depth": 3}}}, "settings.depth: not of mlp"),
        ({"data": {"sklearn": "breast"}}, "no set 'breast', did you mean 'breast_cancer'"),
        ({"data": {"csv": "own.csv", "target": "diagnosi"}}, "no column 'diagnosi', did you mean 'diagnosis'"),
        ({"items": {"discover": 1000}}, "1000 discover items wanted, the data have 569"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(tmp_path, prepare, said):
    pd.DataFrame({"size": [1.0, 2.0], "diagnosis": ["a", "b"]}).to_csv(tmp_path / "own.csv", index=False)
    assert said in "\n".join(TabularClassification.check(context(tmp_path, **prepare)))


def write_csv(path: Path) -> None:
    """Scikit-learn's data set as a user's table, with a category and a missing value."""
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer(as_frame=True)
    frame = loaded.data.assign(site=np.where(loaded.data["mean radius"] > 15, "north", "south"))
    frame["diagnosis"] = [loaded.target_names[i] for i in loaded.target]
    frame.loc[3, "mean area"] = np.nan
    frame.to_csv(path, index=False)


def test_numbers_of_a_row_are_shown_as_people_write_them():
    old, new = (pd.Series({"income": income, "age": 71.0, "rate": 0.12345}) for income in (25_800.0, 40_352.1))
    assert _table(old, new) == "income: 25,800 → 40,352\nage: 71\nrate: 0.1235"


def repository(folder: Path) -> Workspace:
    folder.mkdir()
    here = Workspace(folder)
    here.run(["git", "init", "--quiet", "--initial-branch=main"])
    for key, value in (("name", "Ada"), ("email", "ada@example.org")):
        here.run(["git", "config", f"user.{key}", value])
    write_csv(folder / "patients.csv")
    return here


@pytest.mark.slow
def test_a_table_of_ones_own_is_audited_repaired_and_judged(tmp_path):
    here = repository(tmp_path / "mine")
    code, told = faded(here, "init", "--data", "patients.csv", "--budget", "300", "--yes")
    assert code == 0, told
    assert "569 rows in 2 classes: benign (357), malignant (212)" in told
    assert "guessed: model: hist_gradient_boosting, target: diagnosis, name: patients, repair: yes" in told
    params = here.params()
    audit = params["audits"]["patients"]
    assert audit["task"] == "tabular-classification"
    audit["prepare"]["model"]["settings"] = {"max_iter": 20}
    here.write_params(params)
    run_stages(here, "patients")
    assert (here.path / "data/patients/conclude/report.html").exists()
    assert "mean radius" in (here.path / "data/patients/report/report.html").read_text()
