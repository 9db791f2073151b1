"""Failure modes: regions a person can read, "label is 9 and rotation >= 30°", in which the model fails unusually often.

The search looks at estimated rates of *cells*, which are uniform over the grid however the probes were drawn, for all
items and for those of each kind, and tries every conjunction of ranges: sums over a table of rates by two or three
concepts give all boxes at once. Only of many categories it does not try all sets (see `_selectors`). What it names are
candidates: `stages.landscape.confirm` asks the model about each of them again, and what holds is a failure mode.

Libraries that do alike know no limit to the overlap of regions, so that the first six of pysubgroup or sliceline name
the same place six times: `benchmarks/modes_libraries.py` compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import combinations
from math import prod

import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Region
from stages.landscape.kinds import Kind, Rates, size
from stages.landscape.pairs import UNKNOWN
from stages.params import SummarizeConfig

MAX_BOXES = 4_000_000  # boxes held at once for one combination of concepts
MAX_OVERLAP = 0.5
SMALLEST = 0.001  # share of all cells looked at that a region covers, but for a peak: of fewer, noise makes many
LEAST = 0.03  # of all excess mass in a region's own cells; however small a region is, it may hold much
STRICT = 0.75  # where between the overall rate and that of the average failure's cell the level of a region lies
MERGED_FILL, MERGED_RATE = 0.8, 0.88  # of the smallest box around two regions: share they fill, rate it keeps
MAX_SUBSETS = 6  # categories up to which all sets of them are tried
KEPT, SHARPER = 0.5, 1.5  # of the excess failures of a region and of its rate: what a core of some items has
PEAK, ALONE = 3.0, 0.5  # times the rate around a peak, and of all that rises half as high: what a peak has
EARNS, ITEMS_EARN = 1.02, 1.1  # times the excess mass, for one more condition; of a region about some items only


def find_regions(known: Rates, limits: SummarizeConfig) -> list[Region]:
    """Name regions of high rate, one after another, each by what the earlier ones leave unexplained.

    The quality of a region is its excess mass over a level, the sum of (rate - level) over its cells not yet covered
    (Müller and Sawitzki 1991, "Excess Mass Estimates and Tests for Multimodality"). Other seeds name the same regions
    again more often than by the t-statistic of subgroup discovery, sqrt(cells) * (mean rate - overall rate), which
    rises and falls slowly around its maximum, and where small regions that hold next to nothing of all excess mass are
    left out (docs/method.md). A condition that does not raise the rate only takes
    cells away, so regions come out minimal. A region that overlaps the covered cells by more than half is refused;
    regions that overlap or touch are merged if together they fill the smallest box around them and it is as bad.

    Where items are told apart a region may be about those of one value, and then has one concept less than it may have
    conditions. Each kind has a level of its own. A peak, within a region or in what all regions leave, is named however
    small it is and however many conditions that takes, see `_peak`; it takes the place of the last region where there
    are as many as there may be.

    Args:
        known: rates of cells.
        limits: how many regions, of how many conditions and which share of the grid; combinations of concepts with
            too many ranges are left out, see `skipped_combinations`.
    """
    least = LEAST * max(map(_mass, known.kinds))
    regions: list[Region] = []
    seen: list[Region] = []  # also what of a region its core leaves out
    while len(regions) < limits.modes:
        quality, region = _best_region(known, [*seen, *regions], limits)
        if region is None or quality < least:
            break
        core = _core(known, region, [], limits)
        other = _core(known, region, [core], limits)  # two kinds may have half of the failures each
        for one in [core, other] if other.items and other != region else [core]:
            regions = _merge(known, [*regions, one])
        seen.append(region)
    peak = _peak(known, known.free(known.kinds[0], [*seen, *regions]))
    if peak is None or known.share(peak) < limits.min_support:
        return regions[: limits.modes]
    return [*regions[: limits.modes - 1], peak]


def _level(kind: Kind) -> float:
    """The rate from which a cell speaks for a region: most of the way from the mean to that of the average failure.

    The average failure lies in a cell of rate sum(rates^2) / sum(rates), which no landscape has only cells below. Where
    items of one kind fail more often than others it lies higher, as that kind sees it; a region about all items is not
    judged by that, or its edges would move in and what is left be named as that of this kind and that.
    """
    mean, squares = (float(np.average(x.mean(axis=1), weights=kind.share)) for x in (kind.rates, kind.rates**2))
    return mean + STRICT * (squares / mean - mean) if mean else 0.0


def _core(known: Rates, region: Region, seen: Sequence[Region], limits: SummarizeConfig) -> Region:
    """What of a region holds most of its excess failures: some items' in some of its cells, or a peak.

    Where one class fails in one corner and all classes fail a little everywhere, the level hardly lies above that
    little, so that the corner comes with all that is around it. Within a region its own level tells the two apart.

    Args:
        known: rates of cells.
        region: where to look.
        seen: regions whose failures are not counted again.
        limits: as for `find_regions`.
    """
    some = known.within(region)
    share = len(some.cells) / len(known.cells)
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
    """The one place that rises far above all else, be it a single cell; None where there is no such place.

    Noise makes many peaks of about the same height, and each holds little of what rises half as high; one that holds
    most of it is none of these. So it may be of any size and have any number of conditions. Of a sample of a grid too
    few cells are known to tell.

    Args:
        known: rates of cells, of which the first kind counts.
        free: (values, cells) share of the items of each value that no region holds yet.
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
    mean = float(rates[left].mean())
    excess = rates - (mean + rates.max()) / 2
    peak = _grown(known, excess)
    inside = peak.in_box(known.space, cells)
    alone = excess[inside].sum() >= ALONE * np.clip(excess, 0, None).sum()
    return peak if alone and rates[inside].mean() > PEAK * mean else None


def _grown(known: Rates, excess: np.ndarray) -> Region:
    """A box that grows from the cell of the highest excess (cells,), level by level, as long as that adds to its own.

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


def _mass(kind: Kind) -> float:
    """All excess mass, as a share of the grid."""
    return float(np.clip(kind.rates - _level(kind), 0, None).mean(axis=1) @ kind.share)


def _merge(known: Rates, regions: Sequence[Region]) -> list[Region]:
    """Put the smallest box around two regions in the place of both, wherever it says the same; the last comes last."""
    space, attributes = known.space, known.attributes
    *others, new = regions
    for k, old in enumerate(others):
        box = _around(space, old, new)
        filled = size(space, old, attributes) + size(space, new, attributes) - shared(space, old, new, attributes)
        alike = known.rate(box) >= MERGED_RATE * max(known.rate(old), known.rate(new))
        if filled >= MERGED_FILL * size(space, box, attributes) and alike:
            return _merge(known, [*others[:k], *others[k + 1 :], box])
    return [*others, new]


def _around(space: ConceptSpace, a: Region, b: Region) -> Region:
    """The smallest region that holds both."""
    allowed: dict[str, tuple[int, ...]] = {}
    for concept in space.concepts:
        if concept.name in a.allowed and concept.name in b.allowed:
            levels = sorted({*a.allowed[concept.name], *b.allowed[concept.name]})
            levels = list(range(levels[0], levels[-1] + 1)) if concept.ordered else levels
            if len(levels) < len(concept):
                allowed[concept.name] = tuple(levels)
    both = [name for name in a.items if name in b.items]
    return Region(allowed, {name: tuple(sorted({*a.items[name], *b.items[name]})) for name in both})


def shared(space: ConceptSpace, a: Region, b: Region, attributes: pd.DataFrame = UNKNOWN) -> int:
    """Number of pairs of item and cell that lie in both regions."""
    levels = ((set(r.allowed.get(c.name, range(len(c)))) for r in (a, b)) for c in space.concepts)
    return int((a.about(attributes) & b.about(attributes)).sum()) * prod(len(one & other) for one, other in levels)


def skipped_combinations(space: ConceptSpace, max_conditions: int) -> list[list[str]]:
    """Combinations of concepts with too many ranges to try: no mode is sought that conditions on all of them."""
    return [
        [space.names[j] for j in concepts]
        for size in range(1, min(max_conditions, len(space)) + 1)
        for concepts in combinations(range(len(space)), size)
        if _boxes(space, concepts) > MAX_BOXES
    ]


def _boxes(space: ConceptSpace, concepts: Sequence[int]) -> int:
    """How many boxes the search would try over these concepts."""
    return prod(len(_selectors(space.concepts[j], np.zeros(space.sizes[j]))) for j in concepts)


def _best_region(known: Rates, regions: Sequence[Region], limits: SummarizeConfig) -> tuple[float, Region | None]:
    """The region of highest quality among all conjunctions, beside the regions there are, and its quality.

    None if no region is above its level.
    """
    best, best_region = 1e-9, None
    for kind in known.kinds:
        free = known.free(kind, regions)
        weights = np.stack([free, free * (kind.rates - _level(kind))]) * kind.share[:, None] / len(known.cells)
        conditions = limits.max_conditions - bool(kind.attribute)
        earns = ITEMS_EARN if kind.attribute else EARNS
        for concepts, chosen in _conjunctions(known, weights[1].sum(axis=0), conditions, len(kind.values)):
            if not concepts and not kind.attribute:
                continue  # everything is not a region
            new, quality = _box_sums(known, weights, concepts, chosen)
            # Cells are all of the grid or uniform, so boxes have their share of them.
            shares = reduce(np.multiply.outer, [s.mean(axis=1) for s in chosen], kind.share)
            allowed = (shares >= limits.min_support) & (shares >= SMALLEST) & (new > (1 - MAX_OVERLAP) * shares)
            quality = np.where(allowed, quality, -np.inf)
            top = np.unravel_index(int(quality.argmax()), quality.shape)
            # One more condition has to earn its place, or noise in the estimate adds it.
            if quality[top] > best * (earns if best_region is not None else 1.0):
                best, (value, *picks) = float(quality[top]), top
                picked = [np.flatnonzero(chosen[i][pick]) for i, pick in enumerate(picks)]
                best_region = Region(
                    {known.space.names[j]: tuple(levels.tolist()) for j, levels in zip(concepts, picked, strict=True)},
                    {kind.attribute: (kind.values[value],)} if kind.attribute else {},
                )
    return best, best_region


def _conjunctions(
    known: Rates, excess: np.ndarray, conditions: int, values: int
) -> Iterator[tuple[tuple[int, ...], list[np.ndarray]]]:
    """Combinations of concepts with the sets of levels that each may allow; too many boxes are left out."""
    space = known.space
    selectors = [_selectors(c, np.bincount(known.cells[:, j], excess, len(c))) for j, c in enumerate(space.concepts)]
    for number in range(min(conditions, len(space)) + 1):
        for concepts in combinations(range(len(space)), number):
            chosen = [selectors[j] for j in concepts]
            if 0 < values * prod(len(s) for s in chosen) <= MAX_BOXES:  # a concept of one level has no condition
                yield concepts, chosen


def _box_sums(known: Rates, weights: np.ndarray, concepts: Sequence[int], selectors: list[np.ndarray]) -> np.ndarray:
    """Sum weights (k, values, cells) in every box over some concepts: k, values, then an axis a concept."""
    if not concepts:
        return weights.sum(axis=2)
    sizes = [known.space.sizes[j] for j in concepts]
    index = np.ravel_multi_index(tuple(known.cells[:, j] for j in concepts), sizes)
    flat = weights.reshape(-1, len(known.cells))
    table = np.stack([np.bincount(index, w, prod(sizes)).reshape(sizes) for w in flat]).astype(np.float32)
    for selector in selectors:  # each pass turns the first concept's axis into boxes and moves it to the back
        table = np.tensordot(table, selector, axes=(1, 1))
    return table.reshape(*weights.shape[:2], *table.shape[1:])


def _selectors(concept: Concept, excess: np.ndarray) -> np.ndarray:
    """Sets of levels a condition may allow, as rows (sets, levels) of 0 and 1; all levels is not a condition.

    Ordered concepts: all ranges. Categories: all sets of a few; of many, prefixes of the marginal order, worst first,
    and each alone. A prefix is the best set where the other conditions leave that order as it is; where they change it,
    a better set can be missed.
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
