"""Find candidate failure modes: readable regions such as "label is 9 and rotation >= 30°" with unusually many failures.

The search uses estimated rates of *cells*, which cover the grid however the probes were drawn, for all items
and for each kind of item, and tries every conjunction of ranges: sums over a table of rates by two or three concepts
give all boxes at once. Only for concepts with many categories it does not try all sets (see `_selectors`).
`stages.landscape.confirm` then queries the model in each candidate, and confirmed ones are failure modes.

Comparable libraries do not limit the overlap of regions, so the first six regions of pysubgroup or sliceline are six
times the same place.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from math import prod

import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Region
from stages.landscape.kinds import Kind, Rates, region_size
from stages.landscape.pairs import UNKNOWN
from stages.params import SummarizeConfig

MAX_BOXES = 4_000_000  # boxes in memory at once for one combination of concepts
MAX_OVERLAP = 0.5
SMALLEST = 0.001  # share of the cells that a region other than a peak must cover: below it, noise makes many regions
LEAST = 0.03  # share of all excess mass that a region's own cells must have, however small it is
STRICT = 0.75  # position of a region's level between the overall rate and that of the average failure's cell
MERGED_FILL, MERGED_RATE = 0.8, 0.88  # of the smallest box around two regions: share they must fill, rate it must keep
MAX_SUBSETS = 6  # largest number of categories for which all sets are tried
KEPT, SHARPER = 0.5, 1.5  # of a region's excess failures, and of its rate: minimum for a core of some items
MOSTLY = 0.9  # share of a region that lies within another one, for it to be nested there
PEAK, ALONE = 3.0, 0.5  # of the rate around it, and of everything that rises half as high: minimum for a peak
EARNS, ITEMS_EARN = 1.02, 1.1  # factor by which one more condition must raise the excess mass; if about some items


def find_regions(known: Rates, limits: SummarizeConfig) -> list[Region]:
    """Name regions with high rates one after another, each by what the earlier ones leave unexplained.

    The quality of a region is its excess mass over a level, the sum of (rate - level) over its cells not yet covered
    (Müller and Sawitzki 1991, "Excess Mass Estimates and Tests for Multimodality"), and small regions with almost no
    excess mass are left out. Regions found this way recur with other seeds more often than by the t-statistic of
    subgroup discovery, sqrt(cells) * (mean rate - overall rate), which is flat around its maximum (docs/method.md). A
    condition that does not raise the rate only removes cells, so regions are minimal. A region that overlaps the
    covered cells by more than half is rejected; regions that overlap or touch are merged if together they fill the
    smallest box around them and its rate is as high.

    If items have attributes, a region may be about those with one value, or with two values that fail together, and
    then has room for one or two conditions on concepts fewer. Each kind has its own level. A peak, within a region or
    in what all regions leave, is named however small it is and however many conditions it needs, see `_peak`; it
    replaces the last region at the maximum number.

    Args:
        limits: the number of regions, of their conditions, and their share of use; combinations of concepts with
            too many ranges are left out, see `skipped_combinations`.
    """
    least = LEAST * max(_mass(kind, known.use) for kind in known.kinds)
    regions: list[Region] = []
    seen: list[Region] = []  # including the parts of regions outside their cores
    while len(regions) < limits.modes:
        quality, region = _best_region(known, [*seen, *regions], limits)
        if region is None or quality < least:
            break
        core = _core(known, region, [], limits)
        other = _core(known, region, [core], limits)  # two kinds may each have half of the failures
        for one in [core, other] if other.items and other != region else [core]:
            regions = _merge(known, [*regions, one])
        regions = _not_nested(known, regions)
        seen.append(region)
    peak = _peak(known, known.free(known.kinds[0], [*seen, *regions]))
    if peak is None or known.share(peak) < limits.min_support:
        return regions[: limits.modes]
    return [*regions[: limits.modes - 1], peak]


def _level(kind: Kind, use: np.ndarray, free: np.ndarray | None = None) -> float:
    """Return the rate above which cells count for a region: most of the way from the mean to the average failure's.

    The average failure is in a cell of rate sum(rates^2) / sum(rates), which some cell always reaches. If items of one
    kind fail more often than others, the rate is higher for that kind. Judged by that rate, a region about all items
    would shrink, and its edges would be named as further regions of single kinds.

    Args:
        use: (cells,) share of use of each cell.
        free: (values, cells) share of the items in no region so far. With it the level is half-way to that of what is
            left, or one strong weakness would mask all others.
    """
    found = []
    for weights in (1.0, *(() if free is None else (free,))):
        weighted = kind.share[:, None] * use * weights
        if (total := float(weighted.sum())) <= 0:
            return 1.0
        mean, squares = (float((weighted * x).sum()) / total for x in (kind.rates, kind.rates**2))
        found.append(mean + STRICT * (squares / mean - mean) if mean else 0.0)
    return float(np.mean(found))


def _core(known: Rates, region: Region, seen: Sequence[Region], limits: SummarizeConfig) -> Region:
    """Return the part of a region that holds most of its excess failures: some items in some of its cells, or a peak.

    If one class fails in one corner and all classes fail slightly everywhere, the level is barely above that base rate,
    so the region includes everything around the corner. The level within the region separates the two.

    Args:
        seen: regions whose failures are not counted again.
        limits: as for `find_regions`.
    """
    some = known.within(region)
    share = float(some.use.sum() / known.use.sum())
    left = limits.model_copy(
        update={
            "max_conditions": limits.max_conditions - len(region.allowed),
            "min_support": limits.min_support / share,
        }
    )
    found = _best_region(some, seen, left)[1]
    if found is not None and found.items:
        core = Region({**region.allowed, **found.allowed}, found.items)
        mean = known.rate(Region({}))
        of_core, of_region = ((known.rate(one) - mean) * known.share(one) for one in (core, region))
        if of_core >= KEPT * of_region and known.rate(core) >= SHARPER * known.rate(region):
            return _core(known, core, seen, limits)
    peak = None if region.items else _peak(some, some.free(some.kinds[0], seen))
    core = Region({**region.allowed, **peak.allowed}) if peak else region
    return core if known.share(core) >= limits.min_support else region


def _peak(known: Rates, free: np.ndarray) -> Region | None:
    """Return the single place, possibly one cell, that rises far above everything else; None if there is none.

    Noise makes many peaks of similar height, each with little of what rises half as high. A peak that has most of it is
    not noise, so it may have any size and any number of conditions. A sample of the grid covers too few cells to decide
    this.

    Args:
        known: rates of cells, of which only the first kind counts.
        free: (values, cells) share of the items of each value that are in no region yet.
    """
    kind, cells = known.kinds[0], known.cells
    if len(cells) < prod(len(np.unique(levels)) for levels in cells.T):
        return None
    weights = free * kind.share[:, None]
    left = weights.sum(axis=0) > 1e-9
    if not left.any():
        return None
    rates = np.zeros(len(cells))
    rates[left] = np.average(kind.rates[:, left], axis=0, weights=weights[:, left])
    mean = float(np.average(rates[left], weights=known.use[left]))
    excess = rates - (mean + rates.max()) / 2
    peak = _grown(known, excess)
    inside = peak.in_box(known.space, cells)
    alone = excess[inside].sum() >= ALONE * np.clip(excess, 0, None).sum()
    return peak if alone and rates[inside].mean() > PEAK * mean else None


def _grown(known: Rates, excess: np.ndarray) -> Region:
    """Grow a box from the cell of the highest excess (cells,), level by level, while that increases the box's excess.

    This is the pasting of PRIM (Friedman and Fisher 1999, "Bump hunting in high-dimensional data").
    """
    concepts, columns = known.space.concepts, known.cells.T
    allowed = [np.arange(len(c)) == column[excess.argmax()] for c, column in zip(concepts, columns, strict=True)]
    while True:
        inside = np.stack([levels[column] for levels, column in zip(allowed, columns, strict=True)])
        gains = []
        for j, (concept, levels, column) in enumerate(zip(concepts, allowed, columns, strict=True)):
            added = np.bincount(column, excess * np.delete(inside, j, axis=0).all(axis=0), len(concept))
            beside = np.convolve(np.pad(levels, 1), [1, 1, 1], "valid") > 0 if concept.ordered else True
            gains.append(np.where(beside & ~levels, added, -np.inf))
        best = int(np.argmax([gain.max() for gain in gains]))
        if gains[best].max() <= 0:
            break
        allowed[best][gains[best].argmax()] = True
    chosen = zip(concepts, allowed, columns, strict=True)
    return Region({c.name: tuple(np.flatnonzero(x).tolist()) for c, x, column in chosen if not x[column].all()})


def _mass(kind: Kind, use: np.ndarray) -> float:
    """Return all excess mass, as a share of use."""
    return float(np.clip(kind.rates - _level(kind, use), 0, None) @ use @ kind.share)


def _merge(known: Rates, regions: Sequence[Region]) -> list[Region]:
    """Merge the last region with others while the smallest box around both describes the same; it stays last."""
    space, attributes = known.space, known.attributes
    *others, new = regions
    for k, old in enumerate(others):
        box = _around(space, old, new)
        filled = (
            region_size(space, old, attributes)
            + region_size(space, new, attributes)
            - shared(space, old, new, attributes)
        )
        alike = known.rate(box) >= MERGED_RATE * max(known.rate(old), known.rate(new))
        if filled >= MERGED_FILL * region_size(space, box, attributes) and alike:
            return _merge(known, [*others[:k], *others[k + 1 :], box])
    return [*others, new]


def _not_nested(known: Rates, regions: Sequence[Region]) -> list[Region]:
    """Leave out regions that lie within another one and fail hardly more often: they say nothing new."""

    def within(one: Region, other: Region) -> bool:
        common = shared(known.space, one, other, known.attributes)
        inside = common >= MOSTLY * region_size(known.space, one, known.attributes)
        return inside and known.rate(one) < SHARPER * known.rate(other)

    return [
        one
        for k, one in enumerate(regions)
        if not any(
            within(one, other) for j, other in enumerate(regions) if j != k and (j < k or not within(other, one))
        )
    ]


def _around(space: ConceptSpace, a: Region, b: Region) -> Region:
    """Return the smallest region that contains both."""
    allowed: dict[str, tuple[int, ...]] = {}
    for concept in space.concepts:
        if concept.name in a.allowed and concept.name in b.allowed:
            levels = sorted({*a.allowed[concept.name], *b.allowed[concept.name]})
            levels = list(range(levels[0], levels[-1] + 1)) if concept.ordered else levels
            if len(levels) < len(concept):
                allowed[concept.name] = tuple(levels)
    both = [name for name in a.items if name in b.items]
    return Region(allowed, {name: tuple(sorted({*a.items[name], *b.items[name]})) for name in both})


def shared(space: ConceptSpace, a: Region, b: Region, attributes: pd.DataFrame = UNKNOWN) -> float:
    """Share of use in the cells of both regions, times the number of items that both cover."""
    allowed: dict[str, tuple[int, ...]] = {}
    for name in {**a.allowed, **b.allowed}:
        both = set(a.allowed.get(name, b.allowed.get(name, ()))) & set(b.allowed.get(name, a.allowed.get(name, ())))
        if not both:
            return 0.0
        allowed[name] = tuple(sorted(both))
    return int((a.about(attributes) & b.about(attributes)).sum()) * Region(allowed).share(space)


def skipped_combinations(space: ConceptSpace, max_conditions: int) -> list[list[str]]:
    """Return the combinations of concepts with too many ranges to try: no mode has conditions on all of them."""
    return [
        [space.names[j] for j in concepts]
        for size in range(1, min(max_conditions, len(space)) + 1)
        for concepts in combinations(range(len(space)), size)
        if _boxes(space, concepts) > MAX_BOXES
    ]


def _boxes(space: ConceptSpace, concepts: Sequence[int]) -> int:
    """Number of boxes that the search would try over these concepts."""
    return prod(len(_selectors(space.concepts[j], np.zeros(space.sizes[j]))) for j in concepts)


def _best_region(known: Rates, regions: Sequence[Region], limits: SummarizeConfig) -> tuple[float, Region | None]:
    """Return the region of highest quality among all conjunctions, given the regions so far, and its quality.

    The region is None if none is above its level.
    """
    best, best_value, best_region = 1e-9, 1e-9, None
    common = None
    for kind in known.kinds:
        free = known.free(kind, regions)
        level = _level(kind, known.use, free)
        common = level if common is None else common
        quality, value, region = _best_of_kind(known, kind, free, level, common, limits)
        # A condition on items has to add enough, or noise in the estimate would add it.
        earns = ITEMS_EARN if best_region is not None and len(kind.attributes) > len(best_region.items) else 1.0
        if region is not None and value > best_value * earns:
            best, best_value, best_region = quality, value, region
    return best, best_region


def _best_of_kind(
    known: Rates, kind: Kind, free: np.ndarray, level: float, common: float, limits: SummarizeConfig
) -> tuple[float, float, Region | None]:
    """Return the region of highest quality about values of a kind, its quality, and that above a common level.

    Two attributes often explain the same failures. Above a common level the one that needs fewer other items is better.
    """
    best, value, best_region = 1e-9, 1e-9, None
    weights = np.stack([np.ones(free.shape), free, free * (kind.rates - level)])
    weights = weights * kind.share[:, None] * known.use / known.use.sum()
    conditions = limits.max_conditions - len(kind.attributes)
    for concepts, chosen in _conjunctions(known, weights[2].sum(axis=0), conditions, len(kind.values)):
        if not concepts and not kind.attributes:
            continue  # everything is not a region
        shares, new, quality = _box_sums(known, weights, concepts, chosen)
        allowed = (shares >= limits.min_support) & (shares >= SMALLEST) & (new > (1 - MAX_OVERLAP) * shares)
        quality = np.where(allowed, quality, -np.inf)
        top = np.unravel_index(int(quality.argmax()), quality.shape)
        # One more condition has to add enough, or noise in the estimate would add it.
        if quality[top] > best * (EARNS if best_region is not None else 1.0):
            best, (of_kind, *picks) = float(quality[top]), top
            value = best + (level - common) * float(new[top])
            picked = [np.flatnonzero(chosen[i][pick]) for i, pick in enumerate(picks)]
            best_region = Region(
                {known.space.names[j]: tuple(levels.tolist()) for j, levels in zip(concepts, picked, strict=True)},
                {name: (value,) for name, value in zip(kind.attributes, kind.values[int(of_kind)], strict=True)},
            )
    return best, value, best_region


def _conjunctions(
    known: Rates, excess: np.ndarray, conditions: int, values: int
) -> Iterator[tuple[tuple[int, ...], list[np.ndarray]]]:
    """Yield combinations of concepts with the sets of levels each may allow, except those with too many boxes."""
    space = known.space
    selectors = [_selectors(c, np.bincount(known.cells[:, j], excess, len(c))) for j, c in enumerate(space.concepts)]
    for number in range(min(conditions, len(space)) + 1):
        for concepts in combinations(range(len(space)), number):
            chosen = [selectors[j] for j in concepts]
            if 0 < values * prod(len(s) for s in chosen) <= MAX_BOXES:  # a concept with one level has no condition
                yield concepts, chosen


def _box_sums(known: Rates, weights: np.ndarray, concepts: Sequence[int], selectors: list[np.ndarray]) -> np.ndarray:
    """Sum weights (k, values, cells) in every box over some concepts: k, values, then one axis per concept."""
    if not concepts:
        return weights.sum(axis=2)
    sizes = [known.space.sizes[j] for j in concepts]
    index = np.ravel_multi_index(tuple(known.cells[:, j] for j in concepts), sizes)
    flat = weights.reshape(-1, len(known.cells))
    table = np.stack([np.bincount(index, w, prod(sizes)).reshape(sizes) for w in flat]).astype(np.float32)
    for selector in selectors:  # each pass replaces the first concept's axis by boxes and moves it to the back
        table = np.tensordot(table, selector, axes=(1, 1))
    return table.reshape(*weights.shape[:2], *table.shape[1:])


def _selectors(concept: Concept, excess: np.ndarray) -> np.ndarray:
    """Return the sets of levels a condition may allow, as rows (sets, levels) of 0 and 1, except the set of all levels.

    Ordered concepts: all ranges. Few categories: all sets. Many categories: prefixes of the marginal order, worst
    first, and each category alone. A prefix is the best set if the other conditions keep that order; otherwise a better
    set can be missed.
    """
    n = len(concept)
    if concept.ordered:
        rows = [(np.arange(n) >= a) & (np.arange(n) < b) for a, b in combinations(range(n + 1), 2) if b - a < n]
    elif n <= MAX_SUBSETS:
        rows = [(mask >> np.arange(n)) & 1 == 1 for mask in range(1, 2**n - 1)]
    else:
        worst = np.argsort(-excess, kind="stable")
        rows = [np.isin(np.arange(n), worst[:k]) for k in range(1, n)] + [np.arange(n) == k for k in range(n)]
    return np.unique(np.array(rows, dtype=np.float32).reshape(-1, n), axis=0)
