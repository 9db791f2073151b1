"""How often cells occur in use is a distribution, and rates in use are right from probes that are drawn evenly."""

import json
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.usage_coverage import GRID, SCENARIOS, Scenario, coverage, simulations, unshown_coverage
from stages.code import Code
from stages.concepts import Concept, ConceptSpace, Region
from stages.concepts.usage import Usage, chance_at_random, chance_in_turn
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.landscape.compare import PairedAnswers
from stages.landscape.confirm import draw_inside, no_fresh
from stages.landscape.describe import shares_of_failures
from stages.landscape.pairs import draw_pairs, inside_any, use_of_pairs
from stages.landscape.rates import rate_in_use
from stages.landscape.unshown import ShownMode, bound_unshown
from stages.params import AuditConfig
from stages.params.usage import CombinationConfig, UsageConfig, in_use
from stages.provenance import run_key
from stages.records.landscape import UsageRecord, usage_record
from tests import landscapes
from tests.landscapes import planted
from tests.workspace import audit_params

A, B, C = (Concept(name, (0, 1, 2), neutral=0) for name in "abc")
FONT = Concept("font", ("serif", "mono"), ordered=False)
MIDDLE = Concept("light", (-1, 0, 1), neutral=0)
THREE = ConceptSpace((A, B, C))
MIXED = ConceptSpace((A, FONT, MIDDLE, C))
SKEW = UsageConfig(changes=[0.5, 0.3, 0.2], levels={"a": {1: 90, 2: 9}, "c": {1: 1, 2: 3}})
TWO = [CombinationConfig(share=0.1, levels={"a": 2, "c": 1}), CombinationConfig(share=0.05, levels={"a": 1})]
COMBINED = UsageConfig(changes=[0.6, 0.4], levels={"a": {1: 9, 2: 1}}, combinations=TWO)
INDEPENDENT = UsageConfig(levels={"a": {0: 0.7, 1: 0.2, 2: 0.1}, "c": {0: 0.5, 2: 0.5}})
WORDS = ConceptSpace((FONT, Concept("case", ("lower", "upper", "title"), ordered=False)))
GRIDS = [
    *product((THREE, MIXED), (UsageConfig(), SKEW, COMBINED, INDEPENDENT)),
    (THREE, UsageConfig(levels={"b": {1: 1}})),
    (WORDS, UsageConfig()),
]


def usage_of(space: ConceptSpace, config: UsageConfig) -> Usage:
    usage = in_use(space, config).usage
    assert usage is not None
    return usage


@pytest.fixture(params=range(len(GRIDS)), ids=str)
def case(request: pytest.FixtureRequest) -> tuple[ConceptSpace, Usage]:
    space, config = GRIDS[request.param]
    return space, usage_of(space, config)


def regions(space: ConceptSpace) -> list[dict[int, tuple[int, ...]]]:
    """Regions of any levels of the first and the last concept, and everywhere."""
    first, last = 0, len(space) - 1
    return [{}, *({first: one, last: other} for one, other in product([(0,), (1,), (0, 1)], [(1,), (0, 1)]))]


def within(cells: np.ndarray, allowed: Mapping[int, tuple[int, ...]]) -> np.ndarray:
    inside = np.ones(len(cells), dtype=bool)
    for j, levels in allowed.items():
        inside &= np.isin(cells[:, j], levels)
    return inside


def test_densities_sum_to_one_and_shares_are_sums_of_them(case: tuple[ConceptSpace, Usage]) -> None:
    space, usage = case
    cells = space.cells()
    density, changes = usage.density(cells), usage.number_of_changes(cells)
    assert density.min() >= 0 and density.sum() == pytest.approx(1)
    for allowed in regions(space):
        inside = within(cells, allowed)
        summed = np.bincount(changes[inside], density[inside], len(space) + 1)
        np.testing.assert_allclose(usage.by_changes(allowed), summed, atol=1e-12)
        assert usage.share(allowed) == pytest.approx(density[inside].sum(), abs=1e-12)


def test_cells_and_counts_are_those_that_occur(case: tuple[ConceptSpace, Usage]) -> None:
    space, usage = case
    every = space.cells()
    occurs = usage.density(every) > 0
    np.testing.assert_array_equal(usage.cells(), every[occurs])
    assert usage.count() == occurs.sum()
    for allowed in regions(space):
        here = every[occurs & within(every, allowed)]
        counted = np.bincount(usage.number_of_changes(here), minlength=len(space) + 1)
        np.testing.assert_array_equal(usage.pairs(allowed), counted)


def test_draws_follow_the_density_also_within_a_region(case: tuple[ConceptSpace, Usage]) -> None:
    space, usage = case
    every = space.cells()
    for number, allowed in enumerate(regions(space)):
        expected = usage.density(every) * within(every, allowed)
        if expected.sum() == 0:
            with pytest.raises(ValueError, match="never occur in use"):
                usage.sample(1, np.random.default_rng(0), allowed)
            continue
        n = 20_000
        found = np.bincount(space.flat(usage.sample(n, np.random.default_rng(number), allowed)), minlength=len(every))
        expected = expected / expected.sum()
        assert found[expected == 0].sum() == 0
        # Five standard deviations: no cell of some hundreds is that far off by chance.
        assert (np.abs(found / n - expected) <= 5 * np.sqrt(expected * (1 - expected) / n)).all()


def test_assumed_shares_of_changes_and_equal_shares_of_concepts_and_levels() -> None:
    usage = usage_of(THREE, UsageConfig())
    np.testing.assert_allclose(usage.by_changes(), [0.3, 0.4, 0.2, 0.1])
    assert usage.mean_changes == pytest.approx(1.1)
    only_a = [usage.density(np.array([[level, 0, 0]]))[0] for level in (1, 2)]
    assert only_a == pytest.approx([0.4 / 3 / 2] * 2)
    two = usage_of(ConceptSpace((A, B)), UsageConfig())
    assert two.by_changes() == pytest.approx([0.3, 0.4, 0.3]), "more changes than concepts change all of them"
    always = usage_of(MIXED, UsageConfig())
    assert always.share({1: (1,)}) == pytest.approx(0.5), "a concept without a neutral level does not count as changed"
    np.testing.assert_allclose(always.by_changes(), [0.3, 0.4, 0.2, 0.1, 0])


def test_stated_weights_are_those_among_changes_or_independent_where_they_name_the_unchanged() -> None:
    skew = usage_of(THREE, SKEW)
    np.testing.assert_allclose(skew.by_changes(), [0.5, 0.3, 0.2, 0])
    assert skew.share({0: (1,)}) / skew.share({0: (2,)}) == pytest.approx(10)
    assert skew.share({2: (2,)}) / skew.share({2: (1,)}) == pytest.approx(3)
    usage = usage_of(THREE, INDEPENDENT)
    assert [usage.share({0: (level,)}) for level in range(3)] == pytest.approx([0.7, 0.2, 0.1])
    assert usage.share({2: (0,)}) == pytest.approx(0.5) and usage.share({2: (1,)}) == 0
    assert usage.share({0: (1,), 2: (2,)}) == pytest.approx(0.2 * 0.5)
    assert usage.share({1: (0,)}) == pytest.approx(1 - 1.1 / 3), "not stated: one of three, of 1.1 changes on average"
    both = usage_of(THREE, INDEPENDENT.model_copy(update={"changes": [0.5, 0.5]}))
    assert both.by_changes() == pytest.approx([0.5, 0.5, 0, 0]), "stated numbers of changes hold"


def test_named_combinations_have_their_share_beside_the_others() -> None:
    usage = usage_of(THREE, COMBINED)
    cells = np.array([[2, 0, 1], [1, 0, 0]])
    assert usage.density(cells) == pytest.approx([0.1, 0.05 + 0.85 * 0.4 / 3 * 0.9])
    open_font = usage_of(MIXED, COMBINED)
    assert open_font.density(np.array([[2, 0, 1, 1], [2, 1, 1, 1]])) == pytest.approx([0.05, 0.05])


def test_even_draws_go_by_the_root_of_each_number_of_changes_and_by_no_weight() -> None:
    even = usage_of(THREE, SKEW).even()
    roots = np.sqrt([0.5, 0.3, 0.2])
    np.testing.assert_allclose(even.by_changes()[:3], roots / roots.sum())
    assert even.share({0: (1,)}) == pytest.approx(even.share({0: (2,)}))
    other = usage_of(THREE, SKEW.model_copy(update={"levels": {"a": {1: 1, 2: 999}, "c": {1: 5, 2: 5}}}))
    cells = THREE.cells()
    np.testing.assert_allclose(other.even().density(cells), even.density(cells))
    for space, config in GRIDS:
        own = usage_of(space, config)
        np.testing.assert_array_equal(own.even().density(space.cells()) > 0, own.density(space.cells()) > 0)


@pytest.mark.parametrize(("factor", "mean"), [(0.5, 0.55), (2, 2.05), (1, 1.1)])
def test_more_or_less_changes_with_all_else_alike(factor: float, mean: float) -> None:
    usage = usage_of(THREE, UsageConfig())
    other = usage.times(factor)
    assert other.mean_changes == pytest.approx(mean), "twice as much would be 2.2: at most half of the way to all three"
    cells = THREE.cells()
    k, one, two = usage.number_of_changes(cells), usage.density(cells), other.density(cells)
    for number in range(4):
        ratio = two[k == number] / one[k == number]
        np.testing.assert_allclose(ratio, ratio[0])
    odds = other.by_changes() / usage.by_changes()
    np.testing.assert_allclose(odds[1:] / odds[:-1], odds[1] / odds[0])


@pytest.mark.parametrize(("space", "config"), GRIDS)
def test_a_record_gives_the_same_densities(space: ConceptSpace, config: UsageConfig) -> None:
    used = in_use(space, config)
    record = usage_record(used, config)
    assert record is not None and record.stated == config.stated
    read = UsageRecord.from_json(json.loads(json.dumps(record.to_json())), "a sample")
    cells = space.cells()
    np.testing.assert_allclose(read.on(space).density(cells), used.density(cells))
    np.testing.assert_array_equal(read.on(space).even.density(cells) > 0, used.density(cells) > 0)
    assert usage_record(in_use(space, "uniform"), "uniform") is None


def test_uniform_is_the_grid_as_it_was() -> None:
    space = in_use(THREE, "uniform")
    assert space.usage is None and space.even is space and space.n_used == 27
    np.testing.assert_allclose(space.density(space.cells()), 1 / 27)
    assert Region({"a": (1, 2)}).share(space) == pytest.approx(2 / 3)


def probes_of(space: ConceptSpace, items: np.ndarray, cells: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(cells, columns=space.names).assign(item=items.astype(str), role="control")


def every_pair(space: ConceptSpace, items: int) -> pd.DataFrame:
    cells, _ = space.used(space.n_used, np.random.default_rng(0))
    return probes_of(space, np.repeat(np.arange(items), len(cells)), np.tile(cells, (items, 1)))


def test_weights_are_one_per_pair_where_all_were_probed() -> None:
    space = in_use(THREE, SKEW)
    probes = every_pair(space, 5)
    cells = probes[space.names].to_numpy()
    np.testing.assert_array_equal(space.chances(cells, 5), 1.0)
    np.testing.assert_allclose(space.weights(cells, 5), space.density(cells) / 5)
    failed = cells[:, 0] > 0
    rate = rate_in_use(space, failed, probes).rate
    assert rate.value == pytest.approx(space.usage.share({0: (1, 2)}) if space.usage else 0)
    parts = shares_of_failures(space, probes.assign(failed=failed), [Region({"c": (0,)}), Region({})], pd.DataFrame())
    expected = Region({"a": (1, 2), "c": (0,)}).share(space) / Region({"a": (1, 2)}).share(space)
    assert parts == pytest.approx([expected, 1 - expected])


def test_more_probes_of_the_same_items_do_not_make_up_for_more_items() -> None:
    """A third of the items fail always: which items were drawn is all that is left to chance."""
    space = in_use(THREE, SKEW)
    cells, _ = space.used(space.n_used, np.random.default_rng(0))
    widths = []
    for items, each in ((40, 9), (40, len(cells)), (400, 9)):
        of = np.repeat(np.arange(items), each)
        probes = probes_of(space, of, np.tile(cells[:: len(cells) // each][:each], (items, 1)))
        rate = rate_in_use(space, of % 3 == 0, probes).rate
        widths.append(rate.high - rate.low)
    some_pairs, all_pairs, more_items = widths
    assert all_pairs > 0.9 * some_pairs and more_items < 0.4 * some_pairs


@pytest.mark.parametrize("n", [5, 29, 200])
def test_failures_alone_are_as_uncertain_as_no_failure(n: int) -> None:
    space = in_use(THREE, SKEW)
    cells, _ = space.used(space.n_used, np.random.default_rng(0))
    rng = np.random.default_rng(1)
    probes = probes_of(space, rng.integers(0, 40, n), cells[rng.integers(0, len(cells), n)])
    all_fail = rate_in_use(space, np.ones(n, dtype=bool), probes).rate
    none_fail = rate_in_use(space, np.zeros(n, dtype=bool), probes).rate
    assert (all_fail.value, none_fail.value) == (pytest.approx(1), 0) and all_fail.low < 1 - 1 / n
    assert 1 - all_fail.low == pytest.approx(none_fail.high)


def test_a_number_of_changes_without_a_probe_may_have_any_rate() -> None:
    space = in_use(THREE, UsageConfig(changes=[0.5, 0.3, 0.2]))
    probes = every_pair(space, 400)
    few = probes[(probes[space.names] > 0).sum(axis=1) < 2].reset_index(drop=True)
    rate = rate_in_use(space, np.zeros(len(few), dtype=bool), few).rate
    assert (rate.value, rate.low) == (0, 0) and 0.2 < rate.high < 0.21
    rate = rate_in_use(space, np.ones(len(few), dtype=bool), few).rate
    assert (rate.value, rate.high) == (1, 1) and 0.79 < rate.low < 0.8
    none = rate_in_use(space, np.zeros(0, dtype=bool), probes[:0])
    assert none.rate.n == 0 and none.counts == (0, 0)


def test_what_another_usage_has_in_levels_that_were_never_drawn_may_have_any_rate() -> None:
    space = in_use(THREE, UsageConfig(changes=[0.5, 0.5], levels={"a": {1: 1}}))
    probes = every_pair(space, 400)
    other = usage_of(THREE, UsageConfig(changes=[0.5, 0.4, 0.1], levels={"a": {1: 1, 2: 3}}))
    rate = rate_in_use(space, np.zeros(len(probes), dtype=bool), probes, usage=other).rate
    missing = other.by_changes()[2] + other.density(np.array([[2, 0, 0]]))[0]
    assert missing == pytest.approx(0.1 + 0.4 / 3 * 3 / 4)
    assert (rate.value, rate.low) == (0, 0) and missing < rate.high < missing + 0.01
    failed = probes["a"].to_numpy() == 1
    rate = rate_in_use(space, failed, probes, usage=other).rate
    a_1 = other.density(np.array([[1, 0, 0]]))[0]
    assert (rate.value, rate.low) == (pytest.approx(a_1 / (1 - missing)), pytest.approx(a_1, abs=0.01))


def test_rates_of_another_usage_than_the_one_drawn_for_are_unbiased() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "one strong concept")
    space = in_use(GRID, UsageConfig())
    assert space.usage is not None
    weighted = usage_of(GRID, UsageConfig(levels={"rotation": {10: 1, 20: 1, 80: 8}}))
    others = [weighted, space.usage.times(0.5), space.usage.times(2)]
    off: list[list[float]] = [[] for _ in others]
    for drawn in simulations(scenario, 36):
        failed = drawn.probes["failed"].to_numpy(dtype=bool)
        for errors, usage in zip(off, others, strict=True):
            errors.append(rate_in_use(drawn.space, failed, drawn.probes, usage=usage).rate.value - drawn.rate(usage))
    for errors in off:
        assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(len(errors)) and np.std(errors) < 0.04


def test_common_pairs_of_models_stand_for_use_however_few_the_items() -> None:
    """1,000 pairs outside the targets are a third unchanged, and 60 items have only 60 unchanged pairs."""
    space = in_use(GRID, UsageConfig())
    cells, neutral = space.cells(), space.neutral
    assert neutral is not None
    rates = np.where(cells[:, 0] >= 4, 0.7, np.where(cells[:, 3] == 1, 0.4, 0.02)) * (cells != neutral).any(axis=1)
    items = pd.DataFrame({"label": ["0", "1"] * 30})
    targets = [Region({"rotation": (5, 6, 7, 8)}), Region({"fog": (4, 5), "noise": (3,)}, {"label": ("1",)})]
    density, half = space.density(cells), [region.in_box(space, cells) for region in targets]
    covered = 0.5 * half[0] + 0.5 * (half[0] | half[1])
    plain, off = [], []
    for seed in range(8):
        of, drawn = draw_pairs(space, items, targets, 1000, seed)
        inside = inside_any(space, targets, drawn, items.iloc[of])
        use, found = use_of_pairs(space, targets, items, drawn, inside, 0), rates[space.flat(drawn)]
        answers, share = {"before": found}, float(covered @ density)
        paired = PairedAnswers(of, drawn, inside, share, answers, None, use, resamples=2, seed=0)
        rate, rate_inside = paired.rate("before").value, paired.rate("before", inside).value
        unchanged = paired.weight[(drawn == neutral).all(axis=1)].sum()
        wanted = (density * covered) @ rates / (density @ covered)
        off.append([rate - density @ rates, rate_inside - wanted, unchanged - 0.3])
        plain.append(found[~inside].mean() - (density * (1 - covered)) @ rates / (density @ (1 - covered)))
    assert np.mean(plain) > 0.03, "without weights this would not test anything"
    assert (np.abs(np.mean(off, axis=0)) < 0.005).all()


def test_fresh_probes_of_a_small_region_stand_for_use() -> None:
    """240 of 40 items with `grey`: a third of them would have to be grey alone, but there are 40 such pairs."""
    space, region = in_use(GRID, UsageConfig()), Region({"grey": (1,)})
    cells = np.array(space.cells())
    alone = region.in_box(space, cells) & (cells[:, :3] == 0).all(axis=1)
    plain, weighted = [], []
    for seed in range(10):
        _, drawn = draw_inside(space, region, np.arange(40), 240, np.random.default_rng(seed))
        everything, items = np.ones(len(drawn), dtype=bool), pd.DataFrame(index=range(40))
        use = use_of_pairs(space, [region], items, drawn, everything, 0, in_turn=True)
        found = alone[space.flat(drawn)]
        plain.append(found.mean())
        weighted.append(np.average(found, weights=use))
    share = space.density(cells)[alone].sum() / region.share(space)
    assert np.mean(plain) < share - 0.1, "without weights this would not test anything"
    assert np.mean(weighted) == pytest.approx(share, abs=0.01)


# Left to the benchmark: what differs from another one only in its rates.
KINDS = [SCENARIOS[k] for k in range(len(SCENARIOS)) if k not in (0, 2, 5, 14)]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", KINDS, ids=lambda scenario: scenario.name)
def test_intervals_contain_the_rate_in_use(scenario: Scenario) -> None:
    """150 simulations of 95% are below 90.6% in one of 100 cases; `benchmarks/usage_coverage.py` makes 2,000.

    Where items are few, pairs run out and the bias to be seen is small, so 300 are made.
    """
    count = 300 if scenario.items == 20 else 150
    one, twice = coverage(scenario, count)
    assert one.coverage >= 0.906 and twice.coverage >= 0.906
    assert abs(one.bias) < 4 * one.deviation / np.sqrt(count)


CORNER = Region({"rotation": (4, 5, 6, 7, 8), "fog": (3, 4, 5), "noise": (2, 3)})


def bound(drawn: Any, modes: list[tuple[Region, float]], *, role: str = "measure", exact: bool = False) -> float | None:
    """The bound on what fails outside of these modes, each with 200 fresh probes that fail at a rate."""
    space, ids = drawn.space, drawn.probes["item"].unique()
    found, fresh = [], [no_fresh(drawn.probes)]
    for k, (region, rate) in enumerate(modes):
        items, cells = draw_inside(space, region, np.arange(len(ids)), 200, np.random.default_rng(k))
        table = pd.DataFrame(cells, columns=space.names).assign(item=ids[items], mode=f"M{k}", role=role)
        fresh.append(table.assign(failed=np.arange(len(table)) < rate * len(table)))
        found.append(ShownMode(f"M{k}", region, region.share(space)))
    known = pd.DataFrame(index=ids)
    said = bound_unshown(space, drawn.probes, pd.concat(fresh), found, known, exact=exact, seed=0)
    return said and said.at_most


def test_without_modes_the_bound_on_what_was_not_shown_is_that_of_the_rate() -> None:
    [drawn] = simulations(SCENARIOS[0], 1)
    failed = drawn.probes["failed"].to_numpy(dtype=bool)
    upper = rate_in_use(drawn.space, failed, drawn.probes, level=0.9).rate.high
    assert upper <= (bound(drawn, []) or 1) < 1.02 * upper
    none = drawn._replace(probes=drawn.probes.assign(failed=False))
    assert 2 / 200 < (bound(none, []) or 0) < 5 / 200, "about the rule of three, for 200 items"
    assert bound(drawn._replace(probes=drawn.probes.assign(role="agent")), []) is None


def test_what_fresh_probes_show_is_subtracted_and_never_more_than_the_control_saw_elsewhere() -> None:
    [drawn] = simulations(next(one for one in SCENARIOS if one.name == "three concepts together"), 1)
    all_of_it, some, too_much = (bound(drawn, [(CORNER, rate)] if rate else []) for rate in (0.0, 0.5, 1.0))
    assert all_of_it and some and too_much and all_of_it > some > too_much
    outside = ~CORNER.in_box(drawn.space, drawn.probes[drawn.space.names].to_numpy())
    failed = drawn.probes["failed"].to_numpy(dtype=bool)
    assert too_much >= rate_in_use(drawn.space, failed & outside, drawn.probes, level=0.9).rate.high
    twice = bound(drawn, [(CORNER, 0.5), (CORNER, 1.0)])
    assert twice == pytest.approx(some), "what two modes share was shown once"


def test_the_items_that_named_no_mode_bound_what_an_enumerated_grid_did_not_show() -> None:
    task = planted([{"tilt": [2]}], noise=0.1, items=200, levels=3)
    space, probes, corner = task.concepts, landscapes.every_pair(task), Region({"tilt": (2,)})
    mode = ShownMode("M1", corner, corner.share(space))
    known = pd.DataFrame(index=task.items.table["id"])
    given = (space, probes, no_fresh(probes))
    whole, rest = (bound_unshown(*given, modes, known, exact=True, seed=0) for modes in ([], [mode]))
    outside = probes["failed"] & (probes["tilt"] < 2)
    assert whole and rest and probes["failed"].mean() < whole.at_most < probes["failed"].mean() + 0.05
    assert outside.mean() < rest.at_most < outside.mean() + 0.05
    assert (whole.probes, rest.probes) == (len(probes), len(probes) / 2)


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "modes"), [(SCENARIOS[0], 2), (SCENARIOS[1], 0), (SCENARIOS[-1], 2)])
def test_the_bound_on_what_was_not_shown_holds_for_the_worst_choice_of_modes(scenario: Scenario, modes: int) -> None:
    """150 simulations of 95% are below 90.6% in one of 100 cases; `benchmarks/usage_coverage.py` makes more."""
    holds, mean, true = unshown_coverage(scenario, 150, modes)
    assert holds >= 0.906 and mean < true + 0.04


CODE = Code()


def audit(**usage: Any) -> AuditConfig:
    return AuditConfig.model_validate(audit_params(usage=usage))


def written(config: AuditConfig) -> dict[str, Any]:
    found = json.loads(CODE.written(config))
    assert isinstance(found, dict)
    return found


def test_other_weights_of_levels_need_no_new_search() -> None:
    changes = [0.4, 0.6]
    one, other = (audit(changes=changes, levels={"tilt": {1: w, 2: 1}}) for w in (1, 9))
    first, second = written(one), written(other)
    assert first["usage"] != second["usage"] and first["drawn"] == second["drawn"]
    assert {k: v for k, v in first.items() if k != "usage"} == {k: v for k, v in second.items() if k != "usage"}
    assert run_key(one, []) == run_key(other, []) == run_key(audit(), [])
    for changed in (
        audit(changes=changes, levels={"tilt": {1: 1, 3: 1}}),
        audit(changes=[0.5, 0.5], levels={"tilt": {1: 1, 2: 1}}),
        audit(levels={"tilt": {1: 1, 2: 1}}),
    ):
        assert written(changed)["drawn"] != first["drawn"]
    independent = [written(audit(levels={"tilt": {0: w, 1: 1}})) for w in (1, 9)]
    assert independent[0]["drawn"] != independent[1]["drawn"], "numbers of changes follow from these weights"


def test_rates_among_some_probes_leave_out_the_use_of_the_others() -> None:
    """Whatever changes three concepts fails; for half of the items that is not valid, so half of 10% is left out."""
    rates, inside = [], 0
    for drawn in simulations(SCENARIOS[0], 40):
        assert drawn.space.usage is not None
        failed = drawn.space.usage.number_of_changes(drawn.probes[drawn.space.names].to_numpy(dtype=np.int64)) == 3
        valid = ~failed | drawn.probes["item"].str[1:].astype(int).mod(2).eq(0).to_numpy()
        rate = rate_in_use(drawn.space, failed, drawn.probes, among=valid).rate
        inside += rate.low <= 0.05 / 0.95 <= rate.high
        rates.append(rate.value)
        assert rate.n == valid.sum()
    assert np.mean(rates) == pytest.approx(0.05 / 0.95, abs=0.002) and inside >= 0.93 * len(rates)


def test_conditions_whose_pairs_run_out_keep_their_share() -> None:
    """`grey` has one level, so 20 items are soon all probed with it, and it counts no less for that."""
    scenario = next(scenario for scenario in SCENARIOS if scenario.items == 20)
    plain, rates = [], []
    for drawn in simulations(scenario, 20):
        failed, cells = drawn.probes["failed"].to_numpy(dtype=bool), drawn.probes[drawn.space.names].to_numpy()
        naive = drawn.space.density(cells) / drawn.space.even.density(cells)
        plain.append(float(np.average(failed, weights=naive)) - drawn.rate())
        rates.append(rate_in_use(drawn.space, failed, drawn.probes).rate.value - drawn.rate())
    assert abs(np.mean(plain)) > 0.03, "without a correction this would not test anything"
    assert abs(np.mean(rates)) < 0.005


@pytest.mark.parametrize("chance", [chance_in_turn, chance_at_random])
def test_chances_of_draws_of_tiny_shares(chance: Callable[[np.ndarray, float], np.ndarray]) -> None:
    shares = np.array([1e-30, 1e-17, 0.3, 1.0])
    for turns in (0.5, 3.0, 1e3):
        found = chance(shares, turns)
        assert found[:2] == pytest.approx(shares[:2] * turns) and (found <= 1).all() and (np.diff(found) >= 0).all()
    assert chance_in_turn(shares, 2.5)[2] == pytest.approx(1 - 0.7**2 * 0.85)


def test_a_region_is_measured_by_the_probes_within_it() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "three concepts together")
    region = Region({"rotation": (4, 5, 6, 7, 8), "noise": (2, 3)})
    off = []
    for drawn in simulations(scenario, 49):
        inside = region.in_box(drawn.space, drawn.probes[drawn.space.names].to_numpy())
        some = drawn.probes[inside].reset_index(drop=True)
        rate = rate_in_use(drawn.space, some["failed"].to_numpy(dtype=bool), some, within=region).rate
        cells = drawn.space.cells()
        use = drawn.space.density(cells) * region.in_box(drawn.space, cells)
        off.append(rate.value - float(drawn.answers.mean(axis=0) @ use / use.sum()))
        assert rate.n == inside.sum()
    assert abs(np.mean(off)) < 4 * np.std(off) / 7


@pytest.mark.parametrize("explorer", ["random", pytest.param("model_based", marks=pytest.mark.slow)])
def test_a_search_draws_the_same_for_other_weights_of_levels(explorer: str) -> None:
    asked = []
    for weight in (1, 9):
        task = planted(items=10, levels=3)
        usage = UsageConfig(changes=[0.4, 0.4, 0.2], levels={task.concepts.names[0]: {1: weight, 2: 1}})
        task.concepts = in_use(task.concepts, usage)
        prober = Prober(task, task.items.table["id"].tolist(), 100)
        make_explorer(explorer, {}).explore(prober, 0)
        asked.append(prober.table()[["item", *task.concepts.names]])
    pd.testing.assert_frame_equal(*asked)
