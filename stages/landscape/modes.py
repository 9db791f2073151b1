"""Failure modes: regions a person can read, "rotation >= 30° and blur >= 2", in which the model fails unusually often.

The search looks at estimated rates of *cells*, which are uniform over the grid however the probes were drawn, and tries
every conjunction of ranges: sums over a table of rates by two or three concepts give all boxes at once. Only of many
categories it does not try all sets (see `_selectors`). What it names are candidates: `stages.landscape.confirm` asks
the model about each of them again, and what holds is a failure mode.

Libraries that do alike know no limit to the overlap of regions, so that the first six of pysubgroup or sliceline name
the same place six times: `benchmarks/modes_libraries.py` compares them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import combinations
from math import prod

import numpy as np

from stages.concepts import Concept, ConceptSpace, Region
from stages.params import SummarizeConfig

MAX_BOXES = 4_000_000  # boxes held at once for one combination of concepts
MAX_OVERLAP = 0.5
LEAST = 0.03  # of all excess mass in a region's own cells; however small a region is, it may hold much
STRICT = 0.75  # where between the overall rate and that of the average failure's cell the level of a region lies
MERGED_FILL, MERGED_RATE = 0.8, 0.9  # of the smallest box around two regions: share they fill, rate it keeps
MAX_SUBSETS = 6  # categories up to which all sets of them are tried


def find_regions(space: ConceptSpace, cells: np.ndarray, rates: np.ndarray, limits: SummarizeConfig) -> list[Region]:
    """Name regions of high rate, one after another, each by what the earlier ones leave unexplained.

    The quality of a region is its excess mass over a level, the sum of (rate - level) over its cells not yet covered
    (Müller and Sawitzki 1991, "Excess Mass Estimates and Tests for Multimodality"). Other seeds name the same regions
    again more often than by the t-statistic of subgroup discovery, sqrt(cells) * (mean rate - overall rate), which
    rises and falls slowly around its maximum, and where small regions that hold next to nothing of all excess mass are
    left out (docs/method.md). A condition that does not raise the rate only takes
    cells away, so regions come out minimal. A region that overlaps the covered cells by more than half is refused;
    regions that overlap or touch are merged if together they fill the smallest box around them and it is as bad.

    Args:
        space: the grid.
        cells: (n, concepts) level indices, all of the grid or a uniform sample.
        rates: (n,) failure rates.
        limits: how many regions, of how many conditions and which share of the grid; combinations of concepts with
            too many ranges are left out, see `skipped_combinations`.
    """
    excess = rates - _level(rates)
    least = LEAST * np.clip(excess, 0, None).sum()
    covered = np.zeros(len(cells), dtype=bool)
    regions: list[Region] = []
    while len(regions) < limits.modes and not covered.all():
        region = _best_region(space, cells, excess, covered, limits)
        if region is None or excess[region.contains(space, cells) & ~covered].sum() < least:
            break
        regions = _merge(space, [*regions, region], cells, rates)
        for region in regions:
            covered |= region.contains(space, cells)
    return regions


def _level(rates: np.ndarray) -> float:
    """The rate from which a cell speaks for a region: most of the way from the mean to that of the average failure.

    The average failure lies in a cell of rate sum(rates^2) / sum(rates), which no landscape has only cells below.
    """
    mean = float(rates.mean())
    return mean + STRICT * (float((rates**2).mean()) / mean - mean) if mean else 0.0


def _merge(space: ConceptSpace, regions: Sequence[Region], cells: np.ndarray, rates: np.ndarray) -> list[Region]:
    """Put the smallest box around two regions in the place of both, wherever it says the same; the last comes last."""

    def rate(region: Region) -> float:
        inside = region.contains(space, cells)
        return float(rates[inside].mean()) if inside.any() else 0.0

    *known, new = regions
    for k, old in enumerate(known):
        box = _around(space, old, new)
        filled = old.n_cells(space) + new.n_cells(space) - shared_cells(space, old, new)
        if filled >= MERGED_FILL * box.n_cells(space) and rate(box) >= MERGED_RATE * min(rate(old), rate(new)):
            return _merge(space, [*known[:k], *known[k + 1 :], box], cells, rates)
    return [*known, new]


def _around(space: ConceptSpace, a: Region, b: Region) -> Region:
    """The smallest region that holds both."""
    allowed: dict[str, tuple[int, ...]] = {}
    for concept in space.concepts:
        if concept.name in a.allowed and concept.name in b.allowed:
            levels = sorted({*a.allowed[concept.name], *b.allowed[concept.name]})
            levels = list(range(levels[0], levels[-1] + 1)) if concept.ordered else levels
            if len(levels) < len(concept):
                allowed[concept.name] = tuple(levels)
    return Region(allowed)


def shared_cells(space: ConceptSpace, a: Region, b: Region) -> int:
    """Number of cells that lie in both regions."""
    everywhere = {concept.name: range(len(concept)) for concept in space.concepts}
    return prod(
        len(set(a.allowed.get(name, levels)) & set(b.allowed.get(name, levels))) for name, levels in everywhere.items()
    )


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


def _best_region(
    space: ConceptSpace,
    cells: np.ndarray,
    excess: np.ndarray,
    covered: np.ndarray,
    limits: SummarizeConfig,
) -> Region | None:
    """The region of highest quality among all conjunctions, None if no region is above the level."""
    best, best_region = 1e-9, None
    smallest, weights = limits.min_support * len(cells), np.stack([~covered, np.where(covered, 0.0, excess)])
    selectors = [_selectors(c, np.bincount(cells[:, j], excess, len(c))) for j, c in enumerate(space.concepts)]
    for size in range(1, min(limits.max_conditions, len(space)) + 1):
        for concepts in combinations(range(len(space)), size):
            chosen = [selectors[j] for j in concepts]
            if not 0 < prod(len(s) for s in chosen) <= MAX_BOXES:
                continue  # a concept of one level has no condition; `skipped_combinations` tells which are too many
            new_cells, gain = _box_sums(space, cells, weights, concepts, chosen)
            shares = [s.mean(axis=1) for s in chosen]  # cells are all of the grid or uniform, so boxes have their share
            all_cells = len(cells) * reduce(np.multiply.outer, shares)
            allowed = (all_cells >= smallest) & (new_cells > (1 - MAX_OVERLAP) * all_cells)
            quality = np.where(allowed, gain, -np.inf)
            top = np.unravel_index(int(quality.argmax()), quality.shape)
            # One more condition has to earn its place, or noise in the estimate adds it.
            if quality[top] > best * (1.02 if best_region is not None else 1.0):
                best = float(quality[top])
                picked = {space.names[j]: chosen[i][top[i]] for i, j in enumerate(concepts)}
                best_region = Region({name: tuple(int(v) for v in np.flatnonzero(row)) for name, row in picked.items()})
    return best_region


def _box_sums(
    space: ConceptSpace, cells: np.ndarray, weights: np.ndarray, concepts: Sequence[int], selectors: list[np.ndarray]
) -> np.ndarray:
    """Sum weights (k, n) of cells in every box over some concepts: k, then an axis a concept, an entry a selector."""
    sizes = [space.sizes[j] for j in concepts]
    index = np.ravel_multi_index(tuple(cells[:, j] for j in concepts), sizes)
    table = np.stack([np.bincount(index, w, prod(sizes)).reshape(sizes) for w in weights]).astype(np.float32)
    for selector in selectors:  # each pass turns the first concept's axis into boxes and moves it to the back
        table = np.tensordot(table, selector, axes=(1, 1))
    return table


def _selectors(concept: Concept, excess: np.ndarray) -> np.ndarray:
    """Sets of levels a condition may allow, as rows (sets, levels) of 0 and 1; all levels is no condition.

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
