"""Items that belong together, like prompts of one template: intervals are for new groups like these."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stages.concepts.space import Concept, ConceptSpace
from stages.core.intervals import Resampler, share
from stages.explorers.prober import Prober
from stages.landscape.confirm import _known
from stages.landscape.estimate import estimate_landscape
from stages.landscape.pairs import half_of
from stages.landscape.slices import worse_values
from stages.tasks.contract import Items
from stages.tasks.text_to_image.items import FEWEST
from tests.planted import PlantedTask

RUNS, RATE, EFFECT = 200, 0.2, 0.12  # half of the groups fail at 32%, half at 8%


def coverage(groups: int, *, by_group: bool) -> float:
    """The share of simulated audits whose 95% interval contains the rate of all possible groups."""
    rng, held = np.random.default_rng(groups), 0
    items = np.repeat(np.arange(60), 5)  # five probes each
    of = items % groups
    for run in range(RUNS):
        rates = RATE + EFFECT * rng.choice([-1, 1], groups)
        failed = (rng.random(len(items)) < rates[of]).astype(float)
        found = Resampler(items, 300, run, of if by_group else None).mean(failed, np.ones(len(items)), (0, 1))
        held += found.low <= RATE <= found.high
    return held / RUNS


def test_intervals_hold_what_they_should_if_groups_are_resampled():
    assert coverage(FEWEST["test"], by_group=True) >= 0.93 and coverage(FEWEST["test"], by_group=False) < 0.88


def test_a_share_of_probes_resamples_groups_where_there_are_some():
    probes = pd.DataFrame({"item": [f"i{n}" for n in range(40)], "failed": np.repeat([True, False], [10, 30])})
    failed = probes["failed"].to_numpy()
    exact = stats.binomtest(10, 40).proportion_ci(0.95, method="exact")
    assert share(failed, probes)[:3] == (0.25, exact.low, exact.high)
    assert share(failed, probes, weights=np.ones(40))[:3] == pytest.approx((0.25, exact.low, exact.high), abs=0.01)
    again, failed_again = (np.tile(one, 2) for one in (probes["item"], failed))
    assert share(failed_again, pd.DataFrame({"item": again}))[:3] == pytest.approx((0.25, *exact), abs=0.01), (
        "a second probe of an item that answers as the first says nothing new"
    )
    grouped = share(failed, probes.assign(group=np.repeat(list("abcd"), 10)))
    assert grouped.value == 0.25 and grouped.high - grouped.low > 0.4
    failed = np.repeat([1.0, 0.0], 50)  # two groups are less certain than their many items, and one group is not
    alone, two, one = (
        Resampler(np.arange(100), 500, 0, groups).mean(failed, np.ones(100), (0, 1))
        for groups in (None, np.repeat(["a", "b"], 50), np.repeat("a", 100))
    )
    assert two.high - two.low > 3 * (alone.high - alone.low) and one == alone


def task(group: list[str] | None) -> PlantedTask:
    """Four items on a grid of six cells: the first two fail everywhere."""
    table = pd.DataFrame({"id": list("pqrs"), "split": "test", "label": ["x", "x", "y", "y"]})
    items = Items(table if group is None else table.assign(group=group))
    space = ConceptSpace((Concept("fog", (0, 1, 2)), Concept("rain", (0, 1))))
    return PlantedTask(items, space, {"regions": [{"label": ["x"]}], "noise": 0.0}, seed=0)


def whole(group: list[str] | None) -> pd.DataFrame:
    """All pairs of an item and a cell."""
    asked = task(group)
    prober = Prober(asked, list("pqrs"), 24)
    prober.ask(np.repeat(np.arange(4), 6), np.tile(asked.concepts.cells(), (4, 1)))
    return prober.table().assign(role="control")


def test_probes_say_to_which_group_their_item_belongs():
    assert whole(["g", "g", "h", "i"]).groupby("item")["group"].first().tolist() == ["g", "g", "h", "i"]
    assert "group" not in whole(None)


def test_an_enumerated_grid_is_as_certain_as_it_has_groups():
    def width(group):
        found = estimate_landscape(whole(group), list("pqrs"), np.eye(4), task(group).concepts, threshold=0.0, seed=0)
        rate = found.mean_rate()
        assert found.exact and rate.value == 0.5
        return rate.high - rate.low, float(found.table["high"][0] - found.table["low"][0])

    overall, cell = width(["g", "g", "h", "h"])
    assert overall == pytest.approx(cell, abs=0.01) and overall > width(None)[0]


@pytest.mark.slow
def test_halves_and_permutations_do_not_tear_groups_apart():
    ids = [f"i{n}" for n in range(40)]
    of = np.repeat([f"g{n}" for n in range(8)], 5)
    probes = pd.DataFrame({"item": ids, "group": of})
    first = half_of([*ids, "never-asked"], probes, np.random.default_rng(0))[:40]
    assert first.sum() == 20 and len(set(of[first]) & set(of[~first])) == 0
    assert half_of(ids, probes.assign(group="one"), np.random.default_rng(0)).sum() == 20

    # Groups of crops differ, labels do not: four crops of one failing photo are not evidence against its label.
    rng, worse = np.random.default_rng(1), []
    label, photo = np.repeat(np.arange(4), 50), np.repeat(np.arange(40), 5)
    for seed in range(100):
        failed = rng.random(200) < rng.choice([0.05, 0.8], 40)[photo]
        [by_item] = worse_values(failed, np.arange(200), [label], seed)
        [by_group] = worse_values(failed, np.arange(200), [label], seed, pd.Series(photo))
        worse.append((by_item.min() < 0.0125, by_group.min() < 0.0125))
    by_items, by_groups = np.mean(worse, axis=0)
    assert by_items > 0.2 and by_groups < 0.1


def test_what_differs_within_groups_is_dealt_out_by_items():
    failed, within = np.tile([True, False], 20), np.tile([0, 1], 20)
    [p_values] = worse_values(failed, np.arange(40), [within], 0, pd.Series(np.repeat(np.arange(20), 2)))
    assert p_values[0] < 0.001 and p_values[1] == 1.0
    [unasked] = worse_values(failed, np.arange(40), [np.append(within, 2)], 0, pd.Series(np.arange(40) // 2))
    assert len(unasked) == 3 and unasked[2] == 1.0


def test_a_region_about_some_items_is_known_by_its_groups_on_an_enumerated_grid():
    space, at = ConceptSpace((Concept("tilt", (0, 1, 2)),)), np.arange(36)
    ids = [f"i{n}" for n in range(12)]
    probes = pd.DataFrame({"item": np.repeat(ids, 3), "tilt": at % 3, "group": [f"g{n // 6}" for n in at]})
    probes = probes.assign(role="control", repeat=0, failed=probes["tilt"] == 2, discrepancy=0.0, valid=True)
    exact = estimate_landscape(probes, ids, np.zeros((12, 2)), space, threshold=0.0, seed=0)
    assert exact.exact and exact.groups is not None
    rate, failures = _known(exact, np.array([False, False, True]), np.arange(12) < 6)
    assert (rate.value, failures, rate.n) == (1.0, 6, 6)
