"""What summarize shows beside the landscape: the policy's view and examples of each mode."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Region
from stages.errors import UsageError
from stages.landscape import Mode, Rate, estimate
from stages.microscopic import measure_robustness
from stages.params import DiscoverConfig, MicroscopicConfig
from stages.summarize import _estimator, _measured, _read_probes, galleries, nearest_failures, policy_view
from tests.landscapes import planted, uniform

REGION = {"tilt": [3, 4], "fog": [3, 4]}


@pytest.fixture(scope="module")
def probed():
    task = planted(items=20)
    return task, uniform(task, 800)


def mode() -> Mode:
    return Mode("M1", Region.from_json(REGION), Rate(1, 0.9, 1, 9), 9, 1.0, 3.0, 0.16, True)


def test_examples_lie_in_the_mode_and_are_of_different_items(probed):
    task, probes = probed
    gallery = galleries(task, [mode()], probes, 4, seed=0)["M1"]
    assert len(gallery.failing) == 4
    assert gallery.passing == [], "a planted region always fails"
    captions = [exhibit.caption for exhibit in gallery.failing]
    assert len(set(captions)) == 4
    for exhibit in gallery.failing:
        assert "tilt 3" in exhibit.text or "tilt 4" in exhibit.text


def test_a_mode_that_was_not_measured_is_not_given_a_number():
    known = {**vars(mode()), "rate": Rate(np.nan, np.nan, np.nan, 0), "confirmed": False, "estimate": 0.4}
    said = _measured(Mode(**known))
    assert "not measured" in said
    assert "nan" not in said
    assert _measured(mode()) == "100% fail, 95% interval 90%-100%, 9 probes"


def test_no_examples_if_none_are_asked_for(probed):
    task, probes = probed
    assert galleries(task, [mode()], probes, 0, seed=0)["M1"] == ([], [], [])


def test_the_smallest_changes_are_told_in_steps(probed):
    task, _ = probed
    config = DiscoverConfig(budget=10, microscopic=MicroscopicConfig(method="exact", items=3, budget=2000))
    walked = measure_robustness(task, task.items.table["id"].tolist(), config, seed=0).table
    shown = nearest_failures(task, walked, 2)
    assert [said.caption.split(":")[0] for said in shown] == [
        f"{n} step{'s' if n > 1 else ''}" for n in sorted(walked["radius"].dropna())[:2]
    ]
    assert nearest_failures(task, walked.iloc[:0], 2) == nearest_failures(task, walked, 0) == []


def test_an_enumerated_grid_is_not_said_to_be_estimated(probed):
    task, probes = probed
    ids = task.items.table["id"].tolist()
    asked = pd.DataFrame(np.tile(task.concepts.cells(), (len(ids), 1)), columns=task.concepts.names)
    asked["item"] = np.repeat(ids, task.concepts.n_cells)
    answers = task.probe(asked["item"].tolist(), asked[task.concepts.names].to_numpy())
    asked = asked.assign(role="control", repeat=0, uniform=True, discrepancy=answers.discrepancy, failed=answers.failed)
    exact, estimated = (
        _estimator(estimate(some, ids, task.embed(ids), task.concepts, threshold=0.0, seed=0), some)
        for some in (asked, probes)
    )
    assert (exact["name"], exact["probes_control"]) == ("exact enumeration", len(asked))
    assert estimated["name"] not in ("exact enumeration", None)


class Peaked:
    """A policy that chooses the first cell for every item but the first."""

    def cell_probabilities(self, embedding: np.ndarray, cells: np.ndarray) -> np.ndarray:
        first = (cells.sum(axis=1) == 0).astype(np.float32)
        return np.vstack([1 - first, np.tile(first, (len(embedding) - 1, 1))])


def test_the_policy_is_averaged_over_items(probed):
    task, probes = probed
    ids = task.items.table["id"].tolist()
    landscape = estimate(probes, ids, task.embed(ids), task.concepts, threshold=0.0, seed=0)
    view = policy_view(Peaked(), task.embed(ids), landscape, task.concepts)
    assert view["policy_mean"][0] == pytest.approx(19 / 20)
    assert view["policy_std"][1] == pytest.approx(np.sqrt(19) / 20)
    assert np.isnan(policy_view(None, task.embed(ids), landscape, task.concepts)["policy_mean"]).all()


def test_probes_that_lack_a_column_are_refused(probed, tmp_path):
    task, probes = probed
    path = tmp_path / "probes.parquet"
    probes.drop(columns="discrepancy").to_parquet(path)
    with pytest.raises(UsageError, match="discrepancy"):
        _read_probes(path, task.concepts)
    probes.iloc[:0].to_parquet(path)
    with pytest.raises(UsageError, match="no probes"):
        _read_probes(path, task.concepts)
    with pytest.raises(UsageError, match="missing"):
        _read_probes(tmp_path / "none.parquet", task.concepts)
