"""Confirm failure modes: the model is queried again inside each region, and only confirmed regions are failure modes.

A region was chosen because its probes failed, so these overestimate its failure rate (the winner's curse). Fresh
probes, drawn inside as they occur in use and answered only now, do not, and even a small region gets enough of them.
They are part of the audit's budget (`discover.budget`) and come in two parts: the first decides which regions are
failure modes, and the second, which is independent of that decision, measures their failure rates. A region about some
items only has to fail more often than the whole, and more often for them than for all other items, or its failures are
not theirs. Regions of a single concept are so few that the control's probes can test them all, corrected for their
number; then all of their fresh probes measure.

A region is tested against the rate of all of use, not that outside it: some of the control's probes named the region,
so the rest fails too rarely for the same reason that the region fails too often. Its interval has to lie above the rate
of the rest, which follows from the rate of the whole and that of the fresh probes: a region that is half of use could
hardly lie above the rate of the whole.

Whether they can be reproduced is measured, too: which failure modes of one run another run also finds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import pandas as pd
from scipy import stats

from stages.concepts import ConceptSpace, Region
from stages.core.intervals import CHANGE, LEVEL, RESAMPLES, Rate, Resampler, holm, share
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.landscape.kinds import Rates, rates_of, region_size
from stages.landscape.modes import find_regions, shared
from stages.landscape.pairs import UNKNOWN, half_of, use_of_pairs
from stages.landscape.rates import InUse, rate_in_use
from stages.landscape.slices import worse_values
from stages.params import SummarizeConfig
from stages.records.landscape import NamedAgain

FEWEST = 10  # probes that test a region: fewer confirm nothing, so if they are scarce, only the worst regions get them
TESTING = 2 / 3  # of the fresh probes: 22 of 200 for each of six regions detect 60% against 20% in nine of ten cases
ROUNDS = 20  # of drawing before a region counts as exhausted
MEASURED = 240  # most probes that measure a region which needed no test
ENOUGH = 120  # most probes that test a region: they detect 40% against 25% in nine of ten cases; the rest measure

Ask = Callable[[np.ndarray, np.ndarray], pd.DataFrame]
"""Queries the model with items (n,) by position and cells (n, concepts); returns rows as in probes.parquet."""


@dataclass(frozen=True)
class Fresh:
    """Probes kept back from the search: their number, and the function that queries the model."""

    count: int
    ask: Ask


@dataclass(frozen=True)
class Mode:
    """A region and the failure rate measured there.

    Args:
        id: M1, M2, ... for failure modes, worst first, and S1, S2, ... for suspected ones.
        rate: rate of fresh probes with an interval for other items like these. For a failure mode, only probes that did
            not decide that it is one count; on an enumerated grid, all pairs. NaN if the model was not queried.
        failures: number of failures among the probes of the rate.
        estimate: mean estimated rate of the cells.
        lift: rate, or the estimate if there is none, over the overall rate.
        share: share of use, over all items.
        confirmed: whether it is a failure mode. It must fail more often than the grid, by Holm's test over all regions
            tested, and than the rest, by the interval of its rate. If it is about some items only, it must
            also fail more often for them than for all others, by the same test. Never if the model was not queried.
    """

    id: str
    region: Region
    rate: Rate
    failures: int
    estimate: float
    lift: float
    share: float
    confirmed: bool


def draw_inside(
    space: ConceptSpace, region: Region, items: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw distinct pairs of item and cell in a region as they occur in use, at most all of them.

    Args:
        items: (items,) item numbers to draw from.

    Returns:
        Items (n,) and cells (n, concepts).
    """
    if space.usage is not None:
        return _draw_in_use(space, region, items, n, rng)
    levels = [np.asarray(region.allowed.get(c.name, range(len(c)))) for c in space.concepts]
    sizes = [len(items), *map(len, levels)]
    if prod(sizes) < 2**62:
        at = np.unravel_index(rng.choice(prod(sizes), min(n, prod(sizes)), replace=False), sizes)
    else:  # too many to number, so duplicates are negligible
        at = tuple(rng.integers(size, size=n) for size in sizes)
    return items[at[0]], np.stack([level[i] for level, i in zip(levels, at[1:], strict=True)], axis=1)


def _draw_in_use(
    space: ConceptSpace, region: Region, items: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw pairs in a region, items in turn and cells by use, until n are distinct or most draws repeat others."""
    numbers, drawn = np.zeros(0, dtype=np.int64), np.zeros((0, 2), dtype=np.int64)
    for _ in range(ROUNDS):
        cells = region.sample(space, n, rng)
        order = np.concatenate([rng.permutation(items) for _ in range(-(-n // len(items)))])[:n]
        drawn = np.vstack([drawn, np.column_stack([order, space.flat(cells)])])
        numbers = np.sort(np.unique(drawn, axis=0, return_index=True)[1])[:n]
        if len(numbers) == n:
            break
    return drawn[numbers, 0], space.cells(drawn[numbers, 1])


def confirm(
    rates: Rates, regions: Sequence[Region], control: pd.DataFrame, fresh: Fresh, seed: int
) -> tuple[list[Mode], pd.DataFrame]:
    """Test each region on fresh probes inside it, and measure those that pass on others.

    Args:
        rates: the rates by which the search named regions.
        regions: the regions it named, the most striking first.
        control: the control's probes, to compare regions with.

    Returns:
        Failure modes, then suspected ones; and the fresh probes with the id of their region as `mode` and their purpose
        as `role`: "test", "measure", or "others" for other items in the same cells.
    """
    space, attributes = rates.space, rates.attributes
    everywhere = rate_in_use(space, _failed(control), control) if len(control) else None
    overall = everywhere.rate.value if everywhere else rates.rate(Region({}))
    compared = everywhere.counts if everywhere else (0, 0)
    rng, about = np.random.default_rng([seed, 3]), [region.about(attributes) for region in regions]
    each = fresh.count // max(1, len(regions))
    seen = [k for k, region in enumerate(regions) if _seen_alone(rates, region, control, seed) < 1 - LEVEL]
    left = fresh.count - each * len(seen)
    first = round(TESTING * left)
    asked = [k for k in range(len(regions)) if k not in seen][: first // FEWEST]
    parts = sum(1 if about[k].all() else 2 for k in asked)  # one more for those compared with other items
    first = min(first, ENOUGH * parts)

    def ask(k: int, items: np.ndarray, n: int) -> pd.DataFrame:
        return fresh.ask(*draw_inside(space, regions[k], np.flatnonzero(items), n, rng))

    measured = {k: ask(k, about[k], min(each, MEASURED)) for k in seen} if each else {}
    tests: dict[int, pd.DataFrame] = {}
    others: dict[int, pd.DataFrame] = {}
    p_values = []
    for k in asked:
        everybody = bool(about[k].all())
        n = first // parts
        tests[k] = ask(k, about[k], n)
        p_values.append(worse_probes(rate_inside(space, regions[k], attributes, tests[k]).counts, compared))
        if not everybody:
            others[k] = ask(k, ~about[k], n)
            p_values[-1] = max(p_values[-1], worse_kind(tests[k], others[k], seed))
    passed = [k for k, p_value in zip(asked, holm(np.array(p_values)), strict=True) if p_value < 1 - LEVEL]
    measured |= {k: ask(k, about[k], (left - first) // len(passed)) for k in passed}
    found, tables = [], []
    for k, region in enumerate(regions):
        behind = measured.get(k, tests.get(k, no_fresh(control)))
        rate = rate_inside(space, region, attributes, behind).rate
        found.append(_mode(rates, region, about[k], rate, int(_failed(behind).sum()), overall, k in measured))
    modes = _ordered(found)
    for role, answers in (("test", tests), ("others", others), ("measure", measured)):
        for k, table in answers.items():
            name = next(mode.id for mode in modes if mode.region == regions[k])
            tables.append(table.assign(role=role, explorer="uniform", mode=name))
    return modes, pd.concat([no_fresh(control), *tables], ignore_index=True)


def _seen_alone(rates: Rates, region: Region, control: pd.DataFrame, seed: int) -> float:
    """P-value of a region with a condition on one concept, from the control's probes, corrected for all such regions.

    They helped to choose the region, but only among these, so the correction covers that. 1 for any other region.
    """
    space, attributes = rates.space, rates.attributes
    if len(region.allowed) != 1 or control.empty:
        return 1.0
    [(name, levels)] = region.allowed.items()
    concept, j = space.concepts[space.names.index(name)], space.names.index(name)
    cells, failed = control[space.names].to_numpy(dtype=np.int64), _failed(control)
    about = region.about(attributes.loc[control["item"]]) if region.items else np.ones(len(control), dtype=bool)
    inside = np.isin(cells[:, j], levels)
    if (inside & about).sum() < FEWEST:
        return 1.0
    changes = (cells != space.start).sum(axis=1) - (cells[:, j] != space.start[j])
    unchanged = cells[:, j] == space.start[j] if concept.neutral in concept.levels else ~inside
    p_value = worse_alone(failed[about], inside[about], (unchanged & ~inside)[about], changes[about])
    if not about.all():
        p_value = max(p_value, worse_kind(control[inside & about], control[inside & ~about], seed))
    kinds = sum(len(kind.values) for kind in rates.kinds)
    return min(1.0, p_value * kinds * sum(len(c) * (len(c) + 1) // 2 for c in space.concepts))


def worse_alone(failed: np.ndarray, inside: np.ndarray, outside: np.ndarray, stratum: np.ndarray) -> float:
    """One-sided p-value for levels of a concept that fail no more often than the unchanged one.

    The stratified test of Mantel and Haenszel (1959), with a continuity correction.

    Args:
        failed: (n,) whether each probe failed.
        inside: (n,) whether it is at these levels.
        outside: (n,) whether it is compared with them.
        stratum: (n,) how many other concepts change: given that, all else is drawn alike inside and outside.
    """
    excess = variance = 0.0
    for number in np.unique(stratum[inside]):
        one, other = inside & (stratum == number), outside & (stratum == number)
        n, m, k = int(one.sum()), int(other.sum()), int(failed[one | other].sum())
        if m and n + m > 1:
            excess += float(failed[one].sum()) - n * k / (n + m)
            variance += n * m * k * (n + m - k) / ((n + m) ** 2 * (n + m - 1))
    return float(stats.norm.sf((excess - 0.5) / np.sqrt(variance))) if variance > 0 else 1.0


def rate_inside(
    space: ConceptSpace,
    region: Region,
    attributes: pd.DataFrame,
    probes: pd.DataFrame,
    which: np.ndarray | None = None,
    level: float = LEVEL,
) -> InUse:
    """Return how often probes drawn in a region by `draw_inside` fail, or are `which` (n,).

    If a region has few pairs, its common ones are rarer among distinct pairs than in use, so pairs are weighted.
    """
    which = _failed(probes) if which is None else which
    if space.usage is None or probes.empty:
        return InUse(share(which, probes, level), float(len(probes)))
    cells, everything = probes[space.names].to_numpy(dtype=np.int64), np.ones(len(probes), dtype=bool)
    weights = use_of_pairs(space, [region], attributes, cells, everything, 0, in_turn=True)
    return InUse(share(which, probes, level, weights), float(weights.sum() ** 2 / (weights**2).sum()))


def no_fresh(probes: pd.DataFrame) -> pd.DataFrame:
    """Return an empty table of fresh probes with the columns of other probes."""
    return probes.iloc[:0].assign(mode="")


def _failed(answers: pd.DataFrame) -> np.ndarray:
    return answers["failed"].to_numpy(dtype=bool)


def confirm_exactly(
    rates: Rates, regions: Sequence[Region], landscape: CellRates, others: pd.DataFrame, attributes: pd.DataFrame
) -> list[Mode]:
    """Confirm regions of an enumerated grid on other items, because all cells were probed.

    Its probes are not independent draws: 12 items and 100 cells are 12 pieces of evidence, not 1,200. So items are
    resampled, all of them for the interval, and for the test those that did not name the regions.

    Args:
        rates: the rates by which the search named regions, of the items that named them.
        regions: the regions it named.
        others: probes of the items that did not name the regions.
        attributes: attributes of all items, indexed by id.
    """
    space, overall = rates.space, landscape.mean_rate().value
    adjusted = holm(np.array([_worse_exactly(space, r, others, attributes) for r in regions]))
    found = []
    for region, p_value in zip(regions, adjusted, strict=True):
        about = region.about(attributes)
        rate, failures = _known(landscape, region.in_box(space, landscape.cells(space)), about)
        found.append(_mode(rates, region, about, rate, failures, overall, p_value < 1 - LEVEL))
    return _ordered(found)


def _worse_exactly(space: ConceptSpace, region: Region, probes: pd.DataFrame, attributes: pd.DataFrame) -> float:
    """P-value of a region on an enumerated grid: its cells against others, and its items against others in them."""
    inside = region.in_box(space, probes[space.names].to_numpy(dtype=np.int64))
    about = region.about(attributes.loc[probes["item"]])
    p_values = []
    if region.allowed:
        some = probes[about]
        p_values.append(worse_items(_failed(some), inside[about], some["item"].to_numpy(dtype=str), some.get("group")))
    if not about.all():
        p_values.append(worse_kind(probes[inside & about], probes[inside & ~about], 0))
    return max(p_values, default=1.0)


def _mode(
    rates: Rates, region: Region, about: np.ndarray, rate: Rate, failures: int, overall: float, passed: bool
) -> Mode:
    """Return a region about some items (mask) as a mode, confirmed if it `passed` its test and fails above the rest."""
    estimate, share = rates.rate(region), float(about.mean()) * region.share(rates.space)
    lift = (rate.value if rate.n else estimate) / max(overall, 1e-9)
    rest = max(overall - share * rate.value, 0.0) / (1 - share) if share < 1 else overall
    return Mode("", region, rate, failures, estimate, lift, share, bool(passed and rate.low > rest))


def _ordered(found: Sequence[Mode]) -> list[Mode]:
    """Order failure modes by excess failures, then suspected ones in the same way, and number them."""
    modes = sorted(found, key=lambda m: (-m.confirmed, -(m.lift - 1) * m.share))
    count = sum(m.confirmed for m in modes)
    ids = [f"M{i + 1}" if i < count else f"S{i + 1 - count}" for i in range(len(modes))]
    return [replace(mode, id=name) for mode, name in zip(modes, ids, strict=True)]


def worse_probes(inside: tuple[int, int], others: tuple[int, int]) -> float:
    """One-sided p-value of a region that fails no more than other probes, from failures and passes (Fisher 1935)."""
    return float(stats.fisher_exact([list(inside), list(others)], alternative="greater").pvalue)


def worse_items(failed: np.ndarray, inside: np.ndarray, items: np.ndarray, groups: pd.Series | None = None) -> float:
    """The same for other items like these, from all probes (n,) of some: by each item's rate inside minus outside."""
    by_item = pd.Series(failed.astype(float)).groupby([items, inside]).mean().unstack()
    if by_item.shape[1] < 2:
        return 1.0  # no cell inside, or none outside
    change = (by_item[True] - by_item[False]).to_numpy()
    of = None if groups is None else pd.Series(groups.to_numpy(), items).groupby(level=0).first().loc[by_item.index]
    resampler = Resampler(by_item.index, RESAMPLES, 0, of)
    return resampler.p_value(change, np.ones(len(change)), above=0.0, lowest=CHANGE[0])


def worse_kind(inside: pd.DataFrame, others: pd.DataFrame, seed: int) -> float:
    """P-value for items (`inside`) that fail no more often than others in the same cells, permuting whole items."""
    probes = pd.concat([inside, others], ignore_index=True)
    items, ids = pd.factorize(probes["item"])
    kind = np.isin(np.arange(len(ids)), items[: len(inside)]).astype(np.int64)
    [p_values] = worse_values(_failed(probes), items, [kind], seed, probes.get("group"))
    return float(p_values[1]) if len(p_values) == 2 else 1.0


def _known(exact: CellRates, inside: np.ndarray, about: np.ndarray) -> tuple[Rate, int]:
    """Rate over cells (mask) of an enumerated grid for some items (mask), counted in pairs, and number of failures."""
    assert exact.answers is not None
    groups = None if exact.groups is None else exact.groups[about]
    rate = replace(exact, answers=exact.answers[about], groups=groups).mean_rate(inside)
    pairs = rate.n * int(about.sum())
    return rate._replace(n=pairs), round(rate.value * pairs)


ALIKE = 0.5  # smallest Jaccard index at which two regions count as the same mode


def jaccard(space: ConceptSpace, a: Region, b: Region, attributes: pd.DataFrame = UNKNOWN) -> float:
    """Share of use in both regions over that in either (Jaccard 1912): 1 if identical, 0 if disjoint."""
    both = shared(space, a, b, attributes)
    either = region_size(space, a, attributes) + region_size(space, b, attributes) - both
    return both / either if either else 0.0


def found_again(
    regions: Sequence[Region], others: Sequence[Region], space: ConceptSpace, attributes: pd.DataFrame = UNKNOWN
) -> np.ndarray:
    """Return which regions of one run another run, with another seed or other items, also names: (regions,) bool.

    A region is found again if its Jaccard index with a region of the other run is at least 0.5, as for the recurrence
    of clusters (Hennig 2007, "Cluster-wise assessment of cluster stability"). A range may then be off by a level or
    two, but a region with one condition more or less, which at least halves it, is another mode.
    """
    return np.array([any(jaccard(space, r, other, attributes) >= ALIKE for other in others) for r in regions], bool)


def name_in_halves(
    landscape: CellRates,
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    config: SummarizeConfig,
    *,
    threshold: float,
    seed: int,
    attributes: pd.DataFrame,
) -> tuple[list[Region], list[Region]]:
    """Name regions in each of two disjoint halves of the items, from its half of the probes.

    Arguments are those of `name_modes`. Both halves take estimator, hyperparameters and links from the landscape, so
    from all probes: they share no item or probe, but they share how to estimate.
    """
    first = half_of(item_ids, probes, np.random.default_rng(seed))
    halves: list[list[Region]] = []
    for rows in (np.flatnonzero(first), np.flatnonzero(~first)):
        ids = [item_ids[int(i)] for i in rows]
        some = probes[probes["item"].isin(ids)]
        if some.empty:
            halves.append([])
            continue
        half = estimate_landscape(
            some, ids, embeddings[rows], space, threshold=threshold, seed=seed, like=landscape, spread=False
        )
        halves.append(find_regions(rates_of(half, space, some, attributes.loc[ids]), config))
    return halves[0], halves[1]


def reproducibility(
    space: ConceptSpace,
    modes: Sequence[Mode],
    halves: tuple[list[Region], list[Region]],
    attributes: pd.DataFrame = UNKNOWN,
) -> NamedAgain:
    """Check whether independent halves of the evidence, see `name_in_halves`, name the same regions.

    Returns:
        `named` and `again`: the number of regions in one half, and how many of them the other names too; `in_halves`:
        for each mode by its id, how many of the two halves name it. Each half has half of the probes, so both
        understate how well modes from all probes are found again.
    """
    found = [found_again([m.region for m in modes], half, space, attributes) for half in halves]
    return NamedAgain(
        named=len(halves[0]),
        again=found_again(*halves, space, attributes).sum(),
        in_halves={mode.id: sum(int(again[k]) for again in found) for k, mode in enumerate(modes)},
    )
