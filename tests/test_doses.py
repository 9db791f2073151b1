"""Failures against steps: the conclusion on repairs that are, or are not, worth more steps than their control."""

import re

import numpy as np
import pandas as pd
import pytest

from stages.landscape.doses import _crossing, checkpoints, dose_curves, worth
from stages.landscape.gates import cheapest
from stages.pages.comparison_report import doses_view
from stages.params import Gates
from stages.records import Comparison
from stages.records.repair import DoseCurve

STEPS = {"before": {0.0: 0}, "repaired": {0.25: 25, 1.0: 100}, "control": {0.25: 25, 1.0: 100, 4.0: 400}}


def answers(rates, *, items=200, pairs=4, trainings=3, seed=0, part="targets", spread=0.0) -> pd.DataFrame:
    """Answers with these failure rates, {(copy, steps): rate}; which items are hard is the same for all models.

    `spread`: standard deviation of the rate between trainings.
    """
    rng = np.random.default_rng(seed)
    ids = np.repeat([f"i{k:03d}" for k in range(items)], pairs)
    hard = np.repeat(rng.normal(0, 0.15, items), pairs) + rng.normal(0, 0.1, items * pairs)
    place = (hard.argsort().argsort() + 0.5) / len(hard)  # uniform
    tables = []
    for copy, all_steps in STEPS.items():
        for dose, steps in all_steps.items():
            for training in range(trainings if copy != "before" else 1):
                noise = rng.random(len(hard)) < 0.1
                rate = rates[copy, steps] + (spread * rng.normal() if dose else 0.0)
                failed = np.where(noise, rng.random(len(hard)), place) < rate
                table = pd.DataFrame({"part": part, "item": ids, "value": failed.astype(float), "valid": True})
                tables.append(table.assign(weight=1.0, copy_of=copy, training=training, dose=dose, steps=steps))
    return pd.concat(tables, ignore_index=True)


def curve(rates, **how) -> DoseCurve:
    [found] = dose_curves(answers(rates, **how), resamples=300, seed=0)
    return found


def rates(repaired, control, before=0.4):
    return {("before", 0): before} | {
        (copy, steps): rate
        for copy, of in (("repaired", repaired), ("control", control))
        for steps, rate in zip(STEPS[copy].values(), of, strict=True)
    }


def test_a_repair_is_worth_as_many_steps_as_the_control_needs():
    found = curve(rates((0.25, 0.15), (0.32, 0.25, 0.15)))
    assert [dose.steps for dose in found.repaired] == [0, 25, 100]
    assert [dose.steps for dose in found.control] == [0, 25, 100, 400]
    assert found.repaired[0].rate == found.control[0].rate
    assert found.repaired[-1].rate.value == pytest.approx(0.15, abs=0.02)
    assert found.times.value is None or found.times.value == pytest.approx(4, abs=0.8)
    assert [dose.dose for dose in found.control] == [0, 0.25, 1, 4]
    assert 2 < found.times.low < 4
    assert len(found.differences) == 3 and all(d.high < 0 for d in found.differences)


def test_halfway_between_two_trainings_is_halfway_between_their_logarithms():
    shares, falling = np.array([0.25, 1.0, 4.0]), np.array([0.4, 0.3, 0.2])
    assert _crossing(shares, falling, 0.25) == pytest.approx(2.0)
    assert _crossing(shares, falling, 0.3) == pytest.approx(1.0)
    assert _crossing(shares, falling, 0.45) == 0.25
    assert _crossing(shares, falling, 0.1) == np.inf
    # A rise in between does not count as a step back: of 0.3, 0.4 and 0.2, the lowest so far counts.
    assert _crossing(shares, np.array([0.3, 0.4, 0.2]), 0.25) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("repaired", "control", "said"),
    [
        ((0.1, 0.02), (0.35, 0.3, 0.25), r"more than 4 times as many \(more than 4\)"),
        ((0.35, 0.3), (0.2, 0.1, 0.05), r"at most 0\.25 times as many \(at most 0\.25\)"),
        ((0.3, 0.2), (0.35, 0.25, 0.1), r"1\.\d times as many \(1\.\d to [12]\.\d\)"),
        ((0.3, 0.2), (0.35, 0.3, 0.203), r"more than 4 times as many \(\d\.\d to more than 4\)"),
    ],
)
def test_what_is_said_of_it(repaired, control, said):
    assert re.fullmatch(said, worth(curve(rates(repaired, control), items=400)))


@pytest.mark.slow
def test_a_repair_like_its_control_claims_nothing():
    """Of 100 repairs that are actually controls, hardly any is called better."""
    same = (0.3, 0.2)
    better = more = 0
    for seed in range(100):
        found = curve(rates(same, (*same, 0.12)), items=60, pairs=3, seed=seed, spread=0.01)
        better += all(d.high < 0 for d in found.differences)
        more += found.times.low is None or found.times.low > 1
    assert better <= 2, better
    assert more <= 9, more  # 2.5% are expected beyond one end; three trainings show little of their spread


def test_without_a_control_there_is_a_curve_and_no_claim():
    table = answers(rates((0.25, 0.15), (0.32, 0.25, 0.15)))
    [found] = dose_curves(table[table["copy_of"] != "control"], resamples=200, seed=0)
    assert found.control == [] and found.differences == [] and found.times is None
    assert worth(found) == ""
    view = doses_view(found)
    assert view.sentences == [] and [control for _, control in view.rates.values()] == [None] * 3
    assert dose_curves(table.head(0), resamples=200, seed=0) == []


def test_the_page_shows_each_training():
    view = doses_view(curve(rates((0.25, 0.15), (0.32, 0.25, 0.15))))
    assert view.title == "In the target modes"
    assert view.worth.startswith("To match 100 steps of the repair, the control needed ")
    assert view.sentences[0].startswith("Repair minus control after 100 steps, in each of 3 trainings: −")
    assert list(view.rates) == [0, 25, 100, 400] and view.rates[400][0] is None and view.rates[400][1] is not None
    assert "after 400" in view.picture.alt


GATES = {
    "target_failure_rate": {"change_max": -0.05},
    "other_failure_rate": {"change_max": 0.05},
    "newly_failing": {"max": 0.1},
    "clean_quality": {"change_min": -0.1},
}


def offered(elsewhere=0.1, clean=0.9, invalid=0.0, **gates):
    """The checkpoint offered after a quarter of the steps, with these rates elsewhere and this quality."""
    asked = {
        "targets": rates((0.2, 0.15), (0.3, 0.25, 0.2)),
        "others": rates((elsewhere, 0.1), (0.1, 0.1, 0.1), before=0.1),
        "clean": rates((clean, 0.9), (0.9, 0.9, 0.9), before=0.9),
    }
    table = pd.concat([answers(of, part=part, items=300) for part, of in asked.items()])
    fewer = (table["copy_of"] == "repaired") & (table["dose"] < 1)
    table["valid"] = ~(fewer & (np.arange(len(table)) % 100 < 100 * invalid))
    [found] = checkpoints(table, 0.2, resamples=300, seed=0)
    assert found.differences["target_failure_rate"].change == pytest.approx(-0.2, abs=0.03)
    assert found.differences["failure_rate"].after == pytest.approx(0.2 * 0.2 + 0.8 * elsewhere, abs=0.02)
    assert found.differences["clean_quality"].after == pytest.approx(clean, abs=0.03)
    return cheapest(Gates.model_validate(GATES | gates), Comparison.model_construct(checkpoints=[found]))


def test_the_checkpoint_is_offered_that_passes_all_gates_and_no_other():
    found = offered()
    assert (found.folder, found.steps) == ("trainings/repaired-0.25-0", 25)
    assert offered(elsewhere=0.2) is None  # other failure rate, and newly failing
    assert offered(elsewhere=0.2, other_failure_rate=None) is None
    assert offered(clean=0.7) is None
    assert offered(target_failure_rate={"max": 0.1}) is None
    assert offered(other_not_passing={"change_max": 0.05}) is not None
    assert offered(other_not_passing={"change_max": 0.05}, invalid=0.2) is None
    assert offered(bias={"max": 0.5}) is None  # not measured
    assert offered(slices={"label": {"max": 0.9}}) is None
    assert checkpoints(answers(rates((0.2, 0.1), (0.2, 0.2, 0.2))).head(0), 0.2, resamples=200, seed=0) == []


def test_common_pairs_count_for_more():
    """Rare pairs all fail and common ones pass after the repair, whose control is the other way round."""
    found = answers(rates((0.5, 0.5), (0.5, 0.5, 0.5)))
    common = np.arange(len(found)) % 2 == 0
    trained = (found["steps"] > 0).to_numpy()
    found["weight"] = np.where(common, 0.9, 0.1)
    found["value"] = np.where(trained, common == (found["copy_of"] == "control"), 1.0).astype(float)
    [curve] = dose_curves(found, resamples=300, seed=0)
    assert [dose.rate.value for dose in curve.repaired] == pytest.approx([1.0, 0.1, 0.1])
    assert [dose.rate.value for dose in curve.control] == pytest.approx([1.0, 0.9, 0.9, 0.9])
    assert [difference.value for difference in curve.differences] == pytest.approx([-0.8] * 3)
    assert curve.times.value is None, "no number of steps brings the control to 10%"
    [one] = checkpoints(found, 1.0, resamples=300, seed=0)
    assert one.differences["target_failure_rate"].after == pytest.approx(0.1)


def test_of_clean_quality_no_steps_are_said():
    found = curve(rates((0.98, 0.97), (0.98, 0.98, 0.97), before=0.98), part="clean")
    assert found.times is None and worth(found) == ""
    assert found.repaired[-1].rate.value == pytest.approx(0.97, abs=0.02)
