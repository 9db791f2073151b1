"""Failure modes have to name what was planted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from stages.concepts import Concept, ConceptSpace, Region
from stages.landscape.again import found_again, jaccard, name_in_halves, reproducibility
from stages.landscape.describe import name_modes
from stages.landscape.estimate import estimate
from stages.landscape.modes import Mode, confirm, find_regions, skipped_combinations, worse_items, worse_probes
from stages.params import SummarizeConfig
from stages.records.landscape import Minimal
from tests.landscapes import CORNERS, adaptive, ask, inside, planted, uniform

NOTHING = Minimal(reached=0, of=0, median_radius=None)


@pytest.fixture(scope="module")
def named():
    task = planted(noise=0.05)
    probes = pd.concat([uniform(task, 1500), adaptive(task, 1000)], ignore_index=True)
    ids = task.items.table["id"].tolist()
    arguments = (probes, ids, task.embed(ids), task.concepts)
    landscape = estimate(*arguments, threshold=0.0, seed=0)
    modes = name_modes(landscape, *arguments, SummarizeConfig(modes=5), threshold=0.0, seed=0)
    return task, probes, modes, landscape


def test_modes_name_the_planted_regions(named):
    task, _, modes, _ = named
    found = inside(task, [m.region.to_json() for m in modes if m.confirmed])
    true = inside(task, CORNERS)
    assert (found & true).sum() / found.sum() >= 0.9, "precision"
    assert (found & true).sum() / true.sum() >= 0.9, "recall"


def test_modes_are_minimal_and_readable(named):
    task, _, modes, _ = named
    said = {m.region.describe(task.concepts) for m in modes if m.confirmed}
    assert {"tilt >= 3 and fog >= 3", "dust <= 1 and rain = 4"} <= said


def test_modes_are_numbered_worst_first(named):
    modes = [m for m in named[2] if m.confirmed]
    assert [m.id for m in modes] == [f"M{i + 1}" for i in range(len(modes))]
    excess = [(m.lift - 1) * m.share for m in modes]
    assert excess == sorted(excess, reverse=True)


def test_rates_come_from_unseen_uniform_probes(named):
    task, probes, modes, _ = named
    control = probes[probes["role"] == "control"]
    for mode in modes:
        held = mode.region.contains(task.concepts, control[task.concepts.names].to_numpy()).sum()
        assert 0 < mode.rate.n < 0.7 * held
        assert mode.failures == round(mode.rate.value * mode.rate.n)


def test_an_entry_is_plain_and_complete(named):
    entry = named[2][0].record(named[0].concepts, NOTHING, None, []).to_json()
    assert {"id", "region", "text", "rate", "low", "high", "probes", "failures", "lift", "share", "confirmed"} <= set(
        entry
    )
    assert Region.from_json(entry["region"]) == named[2][0].region


def test_modes_are_sought_without_the_probes_that_measure_them(named, monkeypatch):
    task, probes, _, landscape = named
    ids, keys = task.items.table["id"].tolist(), ["item", *task.concepts.names]
    given = []

    def noted(seen, *arguments, **keywords):
        given.append((seen, arguments[0]))
        return estimate(seen, *arguments, **keywords)

    monkeypatch.setattr("stages.landscape.describe.estimate", noted)
    arguments = (probes, ids, task.embed(ids), task.concepts, SummarizeConfig(modes=1))
    name_modes(landscape, *arguments, threshold=0.0, seed=0)
    (seen, _), control = given.pop(), probes[probes["role"] == "control"]
    unseen = control[~control.index.isin(seen.index)]
    assert len(unseen) >= len(control) // 2
    assert unseen[keys].merge(seen[keys]).empty, "the agent asked some of them, too"

    cells = task.concepts.cells()
    every = ask(task, np.repeat(np.arange(8), len(cells)), np.tile(cells, (8, 1)), "control")
    few = (every, ids[:8], task.embed(ids[:8]), task.concepts)
    exact = estimate(*few, threshold=0.0, seed=0)
    name_modes(exact, *few, SummarizeConfig(modes=1), threshold=0.0, seed=0)
    ((seen, kept),) = given
    assert len(kept) == 4 and set(seen["item"]) == set(kept)


def test_regions_are_not_merged_where_the_box_around_them_fails_less():
    space = ConceptSpace(tuple(Concept(name, tuple(range(10))) for name in "ab"))
    cells = space.cells()
    tall = (cells[:, 0] <= 3) & (cells[:, 1] <= 2)
    wide = (cells[:, 0] <= 1) & (cells[:, 1] >= 3) & (cells[:, 1] <= 4)
    limits = {"modes": 2, "max_conditions": 2, "min_support": 0.01}
    # The two fill 16 of the 20 cells of the box around them; whether that says the same depends on the other four.
    apart = find_regions(space, cells, np.where(tall | wide, 1.0, 0.0), **limits)
    assert sorted(region.n_cells(space) for region in apart) == [4, 12]
    corner = (cells[:, 0] <= 3) & (cells[:, 1] <= 4) & ~(tall | wide)
    (together,) = find_regions(space, cells, np.where(tall | wide, 1.0, np.where(corner, 0.6, 0.0)), **limits)
    assert together.n_cells(space) == 20


def unseen_probes(rates: list[tuple[int, int]]) -> tuple[ConceptSpace, pd.DataFrame]:
    """A concept with a level for each (probes, failures), and these probes, all of different items."""
    space = ConceptSpace((Concept("a", tuple(range(len(rates)))),))
    level = np.repeat(range(len(rates)), [n for n, _ in rates])
    failed = np.concatenate([np.arange(n) < k for n, k in rates])
    return space, pd.DataFrame({"item": [f"i{i}" for i in range(len(level))], "a": level, "failed": failed})


def test_a_mode_whose_interval_reaches_down_to_the_overall_rate_is_not_confirmed():
    for failures, is_confirmed in ((11, False), (16, True)):
        space, probes = unseen_probes([(24, failures), (100, 25)])
        assert worse_probes(probes["failed"].to_numpy(), probes["a"].to_numpy() == 0) < 0.05
        rates = np.array([failures / 24, 0.25])
        (mode,) = confirm(space, [Region({"a": (0,)})], space.cells(), rates, probes)
        assert mode.confirmed is is_confirmed


def test_of_several_modes_each_has_to_be_less_likely_by_chance():
    space, probes = unseen_probes([(40, 17), (40, 11), (40, 11), (400, 100)])
    regions = [Region({"a": (level,)}) for level in range(3)]
    rates = np.array([0.425, 0.275, 0.275, 0.25])
    (alone,) = confirm(space, regions[:1], space.cells(), rates, probes)
    assert alone.confirmed
    assert not any(mode.confirmed for mode in confirm(space, regions, space.cells(), rates, probes))


def test_nothing_is_confirmed_where_all_cells_are_alike():
    """Noise alone makes regions look bad; on unseen probes they do not hold."""
    task = planted(regions=[], noise=0.3)
    space, rng = task.concepts, np.random.default_rng(0)
    cells = space.cells()
    rates = np.clip(0.3 + rng.normal(0, 0.1, len(cells)), 0, 1)
    regions = find_regions(space, cells, rates, modes=6, max_conditions=3, min_support=0.02)
    assert regions
    confirmed = [m for m in confirm(space, regions, cells, rates, uniform(task, 3000)) if m.confirmed]
    assert len(confirmed) <= 1


class Half:
    """A model that fails for the first half of the items, everywhere in one region, and nowhere else."""

    threshold = 0.0
    region = Region({"tilt": (3, 4)})

    def __init__(self, items: int) -> None:
        self.concepts = ConceptSpace((Concept("tilt", tuple(range(5))), Concept("fog", tuple(range(5)))))
        self.ids = [f"i{k:02d}" for k in range(items)]
        cells = self.concepts.cells()
        item, cell = np.repeat(np.arange(items), len(cells)), np.tile(cells, (items, 1))
        failed = self.region.contains(self.concepts, cell) & (item % 2 == 0)
        self.probes = pd.DataFrame(cell, columns=self.concepts.names).assign(
            role="control",
            item=[self.ids[i] for i in item],
            repeat=0,
            discrepancy=np.where(failed, 0.5, -0.5),
            failed=failed,
        )

    def named(self) -> list[Mode]:
        arguments = (self.probes, self.ids, np.eye(len(self.ids)), self.concepts)
        landscape = estimate(*arguments, threshold=0.0, seed=0)
        assert landscape.exact
        return name_modes(landscape, *arguments, SummarizeConfig(modes=3), threshold=0.0, seed=0)


def test_modes_of_an_enumerated_grid_rest_on_items_not_on_probes():
    task = Half(32)
    mode = next(m for m in task.named() if m.region == task.region)
    assert mode.rate.value == 0.5, "every pair was asked: nothing is left to chance"
    assert (mode.rate.n, mode.failures) == (320, 160)
    exact = stats.binomtest(16, 32).proportion_ci(0.95, method="exact")
    assert (mode.rate.low, mode.rate.high) == pytest.approx((exact.low, exact.high), abs=0.02)
    assert mode.confirmed


@pytest.mark.parametrize("items", [4, 12])
def test_few_items_confirm_nothing(items):
    """Each answers 10 probes of the region alike; independent, these would have been beyond doubt."""
    assert not any(mode.confirmed for mode in Half(items).named())


def test_the_rate_of_the_rest_is_not_taken_as_known():
    """Without any difference, 200 probes may call a region worse in one of twenty cases."""
    rng = np.random.default_rng(0)
    p_values = [worse_probes(rng.random(200) < 0.3, rng.random(200) < 0.3) for _ in range(2000)]
    assert 0.01 < np.mean(np.array(p_values) < 0.05) < 0.055
    failed, inside = np.arange(20) < 6, np.arange(20) < 5
    assert worse_probes(failed, inside) == pytest.approx(stats.hypergeom.sf(4, 20, 6, 5))
    assert worse_probes(failed, np.zeros(20, dtype=bool)) == worse_probes(failed, np.ones(20, dtype=bool)) == 1.0


def test_items_are_compared_with_themselves():
    """Of items that fail anywhere, some more inside and some less: the sign test says how much that is worth."""
    items, inside = np.repeat(np.arange(8).astype(str), 2), np.tile([True, False], 8)
    worse = np.ravel([(True, False)] * 5 + [(True, True)] * 3)
    assert worse_items(worse, inside, items) == pytest.approx(0.5**5, abs=0.012)
    mixed = np.ravel([(True, False)] * 3 + [(False, True)] * 2 + [(True, True)] * 3)
    assert worse_items(mixed, inside, items) > 0.3
    assert worse_items(worse, np.ones(16, dtype=bool), items) == 1.0


def test_an_agent_that_asks_the_controls_failures_again_leaves_rates_unbiased():
    """Removing what the agent asked too from the unseen half would take failures first."""
    task = planted(noise=0.25, regions=[], items=20)
    control = uniform(task, 2000)
    again = control[control["failed"]].assign(role="agent", explorer="agent")
    probes = pd.concat([again, control], ignore_index=True)
    ids = task.items.table["id"].tolist()
    arguments = (probes, ids, task.embed(ids), task.concepts)
    landscape = estimate(*arguments, threshold=0.0, seed=0)
    modes = name_modes(landscape, *arguments, SummarizeConfig(modes=4, min_support=0.2), threshold=0.0, seed=0)
    assert modes
    for mode in modes:
        inside = mode.region.contains(task.concepts, control[task.concepts.names].to_numpy())
        assert mode.rate.n > 0.35 * inside.sum(), "the unseen half of the control is whole"
        assert mode.rate.value == pytest.approx(0.25, abs=0.1)


def test_a_region_no_unseen_probe_fell_into_is_not_measured():
    task = planted()
    cells = task.concepts.cells()
    region = Region({"tilt": (4,), "fog": (4,)})
    rates = region.contains(task.concepts, cells).astype(float)
    unseen = uniform(task, 500)
    unseen = unseen[~region.contains(task.concepts, unseen[task.concepts.names].to_numpy())]
    (mode,) = confirm(task.concepts, [region], cells, rates, unseen)
    entry = mode.record(task.concepts, NOTHING, None, [])
    assert (entry.rate, entry.low, entry.high, entry.probes) == (None, None, None, 0)
    assert not mode.confirmed
    assert mode.estimate == 1.0


def test_combinations_with_too_many_ranges_are_told(monkeypatch):
    space = ConceptSpace(tuple(Concept(n, tuple(range(5))) for n in "abc"))
    assert skipped_combinations(space, 3) == []
    monkeypatch.setattr("stages.landscape.modes.MAX_BOXES", 14 * 14)
    assert skipped_combinations(space, 3) == [["a", "b", "c"]]
    assert skipped_combinations(space, 2) == []


def test_a_condition_that_does_not_raise_the_rate_is_dropped():
    space = ConceptSpace(tuple(Concept(n, tuple(range(5))) for n in "abc"))
    cells = space.cells()
    rates = np.where(cells[:, 0] >= 3, 0.8, 0.1) + np.random.default_rng(0).normal(0, 0.02, len(cells))
    first = find_regions(space, cells, rates, modes=1, max_conditions=3, min_support=0.02)[0]
    assert first == Region({"a": (3, 4)})


def test_a_condition_has_to_raise_the_quality_by_more_than_noise_does():
    """Two levels at the same rate but for a percent: with the condition it fails a little more, and says no more."""
    space = ConceptSpace(tuple(Concept(n, tuple(range(5))) for n in "ab"))
    cells = space.cells()
    rates = np.where(cells[:, 0] >= 3, np.where(cells[:, 1] == 4, 0.55, 0.8), 0.1)
    first = find_regions(space, cells, rates, modes=1, max_conditions=2, min_support=0.02)[0]
    assert first == Region({"a": (3, 4)})


def test_a_region_that_overlaps_by_more_than_half_is_no_other_one():
    space = ConceptSpace((Concept("a", tuple(range(10))), Concept("b", tuple(range(4)))))
    cells = space.cells()
    rates = np.where(cells[:, 0] >= 5, 0.9, 0.0) + np.where((cells[:, 0] == 4) & (cells[:, 1] == 3), 0.5, 0.0)
    found = find_regions(space, cells, rates, modes=4, max_conditions=2, min_support=0.15)
    assert found == [Region({"a": (5, 6, 7, 8, 9)})]


@pytest.mark.parametrize("categories", [4, 9])
def test_categories_are_named_as_sets(categories):
    people = Concept("profession", tuple(f"p{k}" for k in range(categories)), ordered=False)
    space = ConceptSpace((people, Concept("age", tuple(range(4)))))
    cells = space.cells()
    rates = np.where(np.isin(cells[:, 0], [0, 2]) & (cells[:, 1] >= 2), 0.9, 0.1)
    first = find_regions(space, cells, rates, modes=3, max_conditions=2, min_support=0.02)[0]
    assert first == Region({"profession": (0, 2), "age": (2, 3)})
    assert first.describe(space) == "profession is p0 or p2 and age >= 2"


def test_a_concept_of_one_level_takes_no_part():
    space = ConceptSpace((Concept("lens", ("wide",)), Concept("fog", tuple(range(5)))))
    cells = space.cells()
    limits = {"modes": 2, "max_conditions": 2, "min_support": 0.02}
    assert find_regions(space, cells, np.where(cells[:, 1] >= 3, 0.9, 0.1), **limits) == [Region({"fog": (3, 4)})]
    assert skipped_combinations(space, 2) == []
    alone = ConceptSpace((Concept("lens", ("wide",), ordered=False),))
    assert find_regions(alone, alone.cells(), np.array([0.4]), **limits) == []


def test_support_and_number_are_limits():
    task = planted()
    cells = task.concepts.cells()
    rates = inside(task, CORNERS).astype(float)
    wide = find_regions(task.concepts, cells, rates, modes=1, max_conditions=3, min_support=0.3)
    assert len(wide) == 1
    assert wide[0].n_cells(task.concepts) >= 0.3 * len(cells)
    assert (
        find_regions(task.concepts, cells, np.full(len(cells), 0.2), modes=3, max_conditions=2, min_support=0.02) == []
    )


def space_of_three() -> ConceptSpace:
    return ConceptSpace(tuple(Concept(name, tuple(range(6))) for name in ("tilt", "fog", "dust")))


def test_regions_that_together_say_the_same_are_merged():
    """Found one after the other, the worse level first; people read one range."""
    space = space_of_three()
    cells = space.cells()
    rates = np.where(cells[:, 0] == 5, 0.9, np.where((cells[:, 0] == 4) & (cells[:, 1] > 0), 0.82, 0.1))
    apart = np.where((cells[:, 0] == 5) & (cells[:, 1] == 5), 0.9, np.where(cells[:, 2] == 0, 0.5, 0.1))
    merged = find_regions(space, cells, rates, modes=3, max_conditions=2, min_support=0.02)
    assert merged[0] == Region({"tilt": (4, 5)})
    assert len(merged) == 1
    assert len(find_regions(space, cells, apart, modes=3, max_conditions=2, min_support=0.02)) == 2


def test_jaccard_counts_cells():
    space = space_of_three()
    region, cells = Region({"tilt": (3, 4, 5), "fog": (0, 1)}), space.cells()
    for other in (region, Region({"tilt": (4, 5)}), Region({"dust": (0,)}), Region({"fog": (5,)}), Region({})):
        a, b = region.contains(space, cells), other.contains(space, cells)
        assert jaccard(space, region, other) == pytest.approx((a & b).sum() / (a | b).sum())


def test_found_again_is_the_share_another_run_names_alike():
    space = space_of_three()
    named = [Region({"tilt": (4, 5)}), Region({"fog": (0,), "dust": (0, 1)})]
    other = [Region({"tilt": (3, 4, 5)}), Region({"fog": (0,)})]
    result = found_again(named, other, space, rates=[0.9, 0.6])
    assert result.again.tolist() == [True, False]
    assert result.best.tolist() == pytest.approx([2 / 3, 1 / 3])
    assert result.share == 0.5
    assert result.weighted == pytest.approx(0.9 * 72 / (0.9 * 72 + 0.6 * 12))
    assert found_again(named, [], space).share == 0.0
    assert np.isnan(found_again([], named, space).share)


def test_independent_halves_of_the_items_name_planted_modes_and_disagree_on_noise(named):
    task, probes, modes, landscape = named
    ids = task.items.table["id"].tolist()
    arguments = (probes, ids, task.embed(ids), task.concepts)
    halves = name_in_halves(landscape, *arguments, SummarizeConfig(modes=2), threshold=0.0, seed=0)
    planted_modes = [Region.from_json({k: tuple(v) for k, v in corner.items()}) for corner in CORNERS]
    assert found_again(planted_modes, halves[0], task.concepts).share == 1.0
    assert found_again(planted_modes, halves[1], task.concepts).share == 1.0
    story = reproducibility(task.concepts, modes, halves)
    assert story.named == story.again == 2
    assert [story.in_halves[mode.id] for mode in modes[:2]] == [2, 2]
    rng = np.random.default_rng(0)
    cells = task.concepts.cells()
    noise = [
        find_regions(task.concepts, cells, rng.random(len(cells)), modes=4, max_conditions=3, min_support=0.02)
        for _ in range(2)
    ]
    assert found_again(*noise, task.concepts).share < 0.5


def test_conjunctions_of_four_are_found_on_a_sample_of_a_large_grid():
    space = ConceptSpace(tuple(Concept(f"c{j}", tuple(range(7))) for j in range(8)))
    cells = space.cells(np.sort(np.random.default_rng(0).choice(space.n_cells, 20_000, replace=False)))
    wanted = Region({"c0": (5, 6), "c2": (2, 3, 4), "c5": (0, 1), "c7": (4, 5, 6)})
    rates = np.where(wanted.contains(space, cells), 0.9, 0.15)
    (first, *_) = find_regions(space, cells, rates, modes=1, max_conditions=4, min_support=0.005)
    assert jaccard(space, first, wanted) > 0.7
