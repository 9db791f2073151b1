"""Groups of people in tables: an estimator does not learn them, whom it fails is named, and thresholds repair it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.explorers.prober import Prober
from stages.landscape.confirm import no_fresh
from stages.landscape.slices import measure_slices
from stages.tasks.base import known_attributes
from stages.tasks.contract import RepairPlan, TargetMode, TaskContext
from stages.tasks.tabular import TabularClassification
from tests.alone import load_alone
from tests.test_tabular import context

FAILING = TargetMode("m", Region({}, {"group and label": ("B, no",)}))
THRESHOLD = {"method": "threshold"}


def loans(inputs: Path, **data: Any) -> TaskContext:
    """Rows of two groups: in B a larger size is needed for a yes, which a model without the group cannot know."""
    rng = np.random.default_rng(0)
    group, size = rng.choice(["A", "B"], 1600, p=[0.7, 0.3]), rng.normal(size=1600)
    answer = np.where(size + 0.3 * rng.normal(size=1600) > np.where(group == "B", 0.8, 0.0), "yes", "no")
    pd.DataFrame({"group": group, "size": size, "answer": answer}).to_csv(inputs / "loans.csv", index=False)
    model = {"estimator": "logistic_regression", "rows": 400}
    items = {"discover": 400, "repair": 400, "test": 400}
    table = {"csv": "loans.csv", "target": "answer", "protected": ["group"], **data}
    return replace(context(inputs, model=model, data=table, items=items), concepts={"missing": [0, 0.1]})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[TaskContext, Path]:
    folder = tmp_path_factory.mktemp("loans")
    made = loans(folder)
    TabularClassification.prepare(made, folder / "prepared")
    return made, folder / "prepared"


@pytest.fixture
def task(prepared) -> TabularClassification:
    return TabularClassification.load(*prepared)


def failing(task: TabularClassification, value: str) -> float:
    """The share of unchanged test rows of one group and label that fails."""
    ids = task.items.ids("test")
    asked = np.array(ids)[(known_attributes(task, ids)["group and label"] == value).to_numpy()].tolist()
    return float(task.probe(asked, np.tile(task.concepts.neutral, (len(asked), 1))).failed.mean())


def test_a_protected_column_is_not_learnt_from(task):
    rows = task.rows.head(50)
    assert (task.model.log_odds(rows.assign(group="A")) == task.model.log_odds(rows.assign(group="B"))).all()


def test_whom_the_model_fails_is_named(task):
    ids = task.items.ids("discover")
    prober = Prober(task, ids, len(ids))
    prober.ask(np.arange(len(ids)), np.tile(task.concepts.neutral, (len(ids), 1)))
    probes = prober.table().assign(role="control")
    known = known_attributes(task, ids)
    found = measure_slices(probes, ids, known, task.concepts, no_fresh(probes), {}, exact=True, seed=1)
    [groups] = [one for one in found.attributes if one.attribute == "group and label"]
    assert [one.value for one in groups.values if one.worse] == ["B, no"]


def test_a_threshold_repairs_the_group_and_its_control_all_groups_alike(prepared, task, tmp_path):
    before = failing(task, "B, no")
    assert before > failing(task, "A, no") + 0.1
    made = {}
    for control in (None, "as_used"):
        folder = tmp_path / str(control)
        task.repair(RepairPlan([FAILING], THRESHOLD, 7, control=control), folder)
        made[control] = TabularClassification.load(*prepared, folder)
    repaired, control = made[None], made["as_used"]
    assert abs(failing(repaired, "B, no") - failing(task, "A, no")) < 0.05
    assert failing(repaired, "A, no") == failing(task, "A, no")
    assert failing(control, "A, yes") > failing(task, "A, yes") + 0.1
    task.move(tmp_path / "None", 0.5, tmp_path / "half")
    half = TabularClassification.load(*prepared, tmp_path / "half")
    assert failing(repaired, "B, no") < failing(half, "B, no") < before
    assert "needs the group of each row" in (tmp_path / "half" / "README.md").read_text()


def test_thresholds_by_group_are_applied_without_faded(prepared, task, tmp_path):
    task.repair(RepairPlan([FAILING], THRESHOLD, 7), tmp_path / "repaired")
    asked = task.rows.head(50)
    asked.to_csv(tmp_path / "rows.csv", index=False)
    code = "print(*model.predict_proba(pd.read_csv(sys.argv[1])).ravel())"
    *classes, odds = load_alone(tmp_path / "repaired", tmp_path / "rows.csv", code=code, cwd=tmp_path)
    known = TabularClassification.load(*prepared, tmp_path / "repaired").model.log_odds(asked)
    assert classes == [task.model.classes[k] for k in known.argmax(1)]
    assert np.allclose(np.array(odds.split(), float).reshape(known.shape), np.exp(known), atol=1e-6)


@pytest.mark.parametrize(
    ("protected", "said"),
    [(["groop"], "no such column, did you mean 'group'"), (["size"], "expected a column of names")],
)
def test_a_column_without_groups_is_refused(tmp_path, protected, said):
    assert said in "\n".join(TabularClassification.check(loans(tmp_path, protected=protected)))


def test_thresholds_need_groups_and_a_mode_about_one(task, tmp_path):
    [error] = TabularClassification.check_repair(loans(tmp_path, protected=[]), THRESHOLD)
    assert "expected prepare.data.protected" in error
    plan = RepairPlan([TargetMode("m", Region({"missing": (1,)}))], THRESHOLD, 7)
    with pytest.raises(UsageError, match="failure modes about group and label, and the plan names none"):
        task.repair(plan, tmp_path / "repaired")
