"""The way of rated examples: named in the landscape, rated in the terminal, given to a repair that learns."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from stages import collect_feedback, decisions, prepare, restructure
from stages.concepts import Region
from stages.core.files import read_json, write_json
from stages.core.intervals import Rate
from stages.landscape.confirm import Mode
from stages.landscape.show import exhibits
from stages.landscape.summary import MOST_EXAMPLES, pick_examples
from stages.params import load_params
from stages.records.landscape import ModeRecord
from tests.landscapes import landscape_file, planted, uniform
from tests.review_samples import review
from tests.workspace import Workspace, audit_params, repair_params

TASK = """
import json

from tests.planted import PlantedTask


class Learner(PlantedTask):
    learns_from_examples = ("planted",)

    def repair(self, plan, out_dir):
        record = super().repair(plan, out_dir)
        (out_dir / "examples.json").write_text(json.dumps([vars(example) for example in plan.examples]))
        return record

"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a prepared task that learns from examples, and a landscape of two modes."""
    (tmp_path / "rated_task.py").write_text(TASK)
    (tmp_path / "data/x/inputs").mkdir(parents=True)
    (tmp_path / "data/x/inputs/regions.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "rated_task", raising=False)
    write_params()
    prepare.main("x")
    (tmp_path / "data/x/summarize").mkdir()
    pd.DataFrame({"tilt": [0]}).to_parquet(tmp_path / "data/x/summarize/landscape.parquet")
    example = {"item": "discover-0001", "cell": [2, 3], "discrepancy": 0.5}
    modes = [
        {"id": name, "region": {"tilt": [i]}, "text": f"tilt = {i}"}
        | {"examples": [{**example, "id": f"{name}.1", "output": "[bold]w\x1b[31mrong", "failed": True}]}
        for i, name in enumerate(("M1", "M2"))
    ]
    modes[0]["examples"] += [{**example, "id": "M1.2", "output": "right", "failed": False}]
    concepts = planted().concepts.to_json()[:2]
    write_json(tmp_path / "data/x/summarize/landscape.json", landscape_file(modes, concepts=concepts))
    return tmp_path


def write_params(control: str = "none") -> None:
    repair = repair_params(feedback={"policy": "wait"}, restructure={"method": "planted", "control": control})
    audits = {"x": audit_params(task="rated_task:Learner")}
    Workspace(Path()).write_params({"audits": audits, "repairs": {"x": repair}})


def decided() -> decisions.RecordedDecision:
    [decision] = decisions.standing(load_params(), "x").decisions
    return decision


END = ("Ada", "", "y", "y")  # reviewer, reason, approve, write


def test_the_landscape_names_what_the_report_shows():
    task = planted(items=20)
    probes = uniform(task, 1500)
    both = pd.concat([probes, probes.assign(role="agent")])  # explorer and control have the same probes
    region = Region.from_json({"tilt": [2, 3, 4], "fog": [2, 3, 4]})
    mode = Mode("M7", region, Rate(0.5, 0.4, 0.6, 9), 9, 0.5, 3.0, 0.16, True)
    rows = pd.DataFrame([example.to_json() for example in pick_examples(task.concepts, mode, both, 0)])
    failing = int(rows["failed"].sum())
    assert rows["id"].tolist() == [f"M7.{n}" for n in range(1, len(rows) + 1)]
    assert rows["failed"].tolist() == [True] * failing + [False] * (len(rows) - failing)
    assert 4 < failing <= MOST_EXAMPLES and len(rows) - failing >= 4
    assert rows["item"].nunique() >= 4 and not rows[["item"]].assign(c=rows["cell"].map(tuple)).duplicated().any()
    for row in rows.itertuples():
        answer = task.probe([row.item], [row.cell])
        assert (row.output, row.failed) == (answer.outputs[0], answer.failed[0])
        assert row.discrepancy == answer.discrepancy[0]
    blamed = both.assign(valid=~both["item"].isin(rows["item"]))
    assert not {example.item for example in pick_examples(task.concepts, mode, blamed, 0)} & set(rows["item"])
    [named] = landscape_file([{"id": "M7", "region": {}, "text": "", "examples": rows.to_dict("records")}])["modes"]
    shown = exhibits(task, [ModeRecord.computed(named)], 4)["M7"]  # ids do not depend on how many are shown
    rows = rows.groupby("failed", sort=False).head(4)
    assert [one.failed for one in shown] == [True] * 4 + [False] * 4
    assert [one.id for one in shown] == rows["id"].tolist()
    assert [one.exhibit.caption for one in shown] == [f"{row.id} - {row.item}" for row in rows.itertuples()]
    assert [one.exhibit.text for one in shown] == [task.concepts.describe(cell) for cell in rows["cell"]]


def test_a_review_asks_about_examples_if_wanted(place, monkeypatch):
    said = ("repair", "high", "seen", "y", "11", "3", " it is right ", "9", "accept", "known", "y", "7")
    told = review(monkeypatch, *said, *END)
    assert [(e.id, e.rating, e.corrected) for e in decided().examples] == [
        ("M1.1", 3, "it is right"),
        ("M1.2", 9, None),  # it passes, so no correction is asked for
        ("M2.1", 7, None),  # accepted, so nothing learns from it, and no correction is asked for
    ]
    assert "M1.1  discover-0001, tilt 2, fog 3" in told and "M1.2  discover-0001" in told
    assert "[bold]w [31mrong" in told and "\x1b[31m" not in told
    assert told.count("select one of the available options") == 1
    assert told.count("the repair does not learn from these ratings") == 1


def plan_with_examples() -> None:
    """A plan that repairs M1 and accepts M2, with ratings of both."""
    modes = [{"id": m, "action": a, "reason": "seen"} for m, a in (("M1", "repair"), ("M2", "accept"))]
    examples = [{"id": "M1.1", "rating": 2, "corrected": "right"}, {"id": "M2.1", "rating": 9}]
    of = {"landscape": decisions.landscape_hash("x"), "reviewer": "Ada", "approve": True}
    decision = decisions.Decision.model_validate({**of, "modes": modes, "examples": examples})
    decisions.record_decision(load_params(), "x", decision, "terminal")
    collect_feedback.main("x")


def test_a_repair_is_given_the_examples_of_its_modes(place, capsys):
    write_params(control="clean")
    plan_with_examples()
    assert "2 example(s) rated or corrected" in capsys.readouterr().out
    assert read_json(place / "data/x/collect_feedback/metrics.json")["examples"] == 2
    restructure.main("x")
    for copy in ("repaired", "control"):
        given = json.loads((place / "data/x/restructure/models" / copy / "examples.json").read_text())
        assert given == [
            {"mode": "M1", "item": "discover-0001", "cell": [2, 3], "output": "[bold]w\x1b[31mrong"}
            | {"rating": 2, "corrected": "right", "bias": None}
        ]
    assert read_json(place / "data/x/restructure/metrics.json")["examples"] == 1
