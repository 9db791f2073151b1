"""Which regions are failure modes: the model is asked again inside each region, and only what holds is called one.

A region was chosen because its probes failed, so these say too much of it (the winner's curse). Fresh ones, drawn
uniformly inside and put to the model only now, do not; and however small a region is, there are enough of them. They
come out of the audit's budget (`discover.budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import pandas as pd
from scipy import stats

from stages.concepts import ConceptSpace, Region
from stages.intervals import CHANGE, Rate, Resampler, clopper_pearson, holm
from stages.landscape.estimate import RESAMPLES, Landscape

FEWEST = 16  # fresh probes a region gets, or none: fewer confirm nothing, so where they are few the worst get them

Ask = Callable[[np.ndarray, np.ndarray], pd.DataFrame]
"""Puts n questions, items (n,) by position and cells (n, concepts): their answers as rows of probes.parquet."""


@dataclass(frozen=True)
class Fresh:
    """Probes kept back from the search: how many, and who answers."""

    count: int
    ask: Ask


@dataclass(frozen=True)
class Mode:
    """A region, and the failure rate measured there.

    Args:
        id: M1, M2, ... of the failure modes, worst first, and S1, S2, ... of what is only suspected.
        region: the cells.
        rate: of fresh probes with Clopper and Pearson's interval: for what asking *these* items in all of the region's
            cells would show, as the probes are uniform draws from just that. On an enumerated grid that is known; then
            the interval is for other items like these. NaN where nothing was asked.
        failures: how many of the probes behind the rate failed.
        estimate: mean estimated rate of the cells.
        lift: rate, or the estimate where there is none, over the overall rate.
        share: share of the grid.
        confirmed: the rate is above the overall rate: both the interval and Holm's test over all candidates say so.
            Never where nothing was measured.
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
    space: ConceptSpace, region: Region, n_items: int, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw different pairs of item and cell uniformly in a region: items (n,) and cells (n, concepts), or all pairs."""
    levels = [np.asarray(region.allowed.get(c.name, range(len(c)))) for c in space.concepts]
    sizes = [n_items, *map(len, levels)]
    if prod(sizes) < 2**62:
        at = np.unravel_index(rng.choice(prod(sizes), min(n, prod(sizes)), replace=False), sizes)
    else:  # too many to be numbered, and none comes twice
        at = tuple(rng.integers(size, size=n) for size in sizes)
    return at[0], np.stack([level[i] for level, i in zip(levels, at[1:], strict=True)], axis=1)


def ask_again(
    space: ConceptSpace, regions: Sequence[Region], n_items: int, fresh: Fresh | None, seed: int
) -> list[pd.DataFrame]:
    """Divide the fresh probes among the regions, the first ones where there are few, and put them.

    Returns:
        The answers of each region that got any.
    """
    asked = regions[: fresh.count // FEWEST] if fresh else []
    rng = np.random.default_rng([seed, 3])
    return [
        fresh.ask(*draw_inside(space, region, n_items, fresh.count // len(asked), rng)) for region in asked if fresh
    ]


def measure(
    space: ConceptSpace,
    regions: Sequence[Region],
    landscape: Landscape,
    control: pd.DataFrame,
    answers: Sequence[pd.DataFrame],
) -> list[Mode]:
    """Measure each region on probes of its own, and order them by excess failures.

    Args:
        space: the grid.
        regions: what the search named.
        landscape: that it named them on.
        control: uniform probes of the whole grid, against which a region is held.
        answers: fresh probes inside each of the first regions.
    """
    cells, failed = landscape.cells(space), control["failed"].to_numpy(dtype=bool)
    overall = float(failed.mean()) if len(failed) else float(landscape.rates.mean())
    found = []
    for k, region in enumerate(regions):
        inside = answers[k]["failed"].to_numpy(dtype=bool) if k < len(answers) else np.zeros(0, dtype=bool)
        estimate = float(landscape.rates[region.contains(space, cells)].mean())
        rate, p_value = clopper_pearson(int(inside.sum()), len(inside)), worse_probes(inside, failed)
        found.append((region, rate, int(inside.sum()), estimate, p_value))
    return _ordered(space, found, overall)


def measure_exactly(
    space: ConceptSpace, regions: Sequence[Region], landscape: Landscape, named: pd.DataFrame, others: pd.DataFrame
) -> list[Mode]:
    """The same of an enumerated grid, where all was asked: nothing is left to draw, but other items are.

    Its probes are no draws: with 12 items and 100 cells there are 12 pieces of evidence, not 1,200. So items are
    resampled, for the interval all, for the test those that did not name the regions.

    Args:
        space: the grid.
        regions: what the search named.
        landscape: of all items.
        named: one row a cell with the `rate` of those items that named the regions.
        others: probes of the other items.
    """
    probed, cells = others[space.names].to_numpy(dtype=np.int64), landscape.cells(space)
    failed, items = others["failed"].to_numpy(dtype=bool), others["item"].to_numpy(dtype=str)
    found = []
    for region in regions:
        inside = region.contains(space, cells)
        rate, failures = _known(landscape, inside)
        estimate = float(named["rate"].to_numpy()[inside].mean())
        found.append((region, rate, failures, estimate, worse_items(failed, region.contains(space, probed), items)))
    return _ordered(space, found, float(landscape.rates.mean()))


def _ordered(
    space: ConceptSpace, found: Sequence[tuple[Region, Rate, int, float, float]], overall: float
) -> list[Mode]:
    """Regions with rate, failures, estimate and p-value as modes: confirmed ones first, by failures in excess."""
    adjusted, modes = holm(np.array([p for *_, p in found])), []
    for (region, rate, failures, estimate, _), p_value in zip(found, adjusted, strict=True):
        lift = (rate.value if rate.n else estimate) / max(overall, 1e-9)
        share = region.n_cells(space) / space.n_cells
        confirmed = bool(rate.n and rate.low > overall and p_value < 0.05)
        modes.append(Mode("", region, rate, failures, estimate, lift, share, confirmed))
    modes.sort(key=lambda m: (-m.confirmed, -(m.lift - 1) * m.share))
    count = sum(m.confirmed for m in modes)
    ids = [f"M{i + 1}" if i < count else f"S{i + 1 - count}" for i in range(len(modes))]
    return [Mode(**{**vars(m), "id": name}) for m, name in zip(modes, ids, strict=True)]


def worse_probes(inside: np.ndarray, others: np.ndarray) -> float:
    """One-sided p-value of a region that fails no more often than others, both seen by draws alone (Fisher 1935).

    Args:
        inside: (n,) which of the probes inside the region failed.
        others: (m,) which of those it is held against did.
    """
    counts = [[int(side.sum()), int((~side).sum())] for side in (inside, others)]
    return float(stats.fisher_exact(counts, alternative="greater").pvalue)


def worse_items(failed: np.ndarray, inside: np.ndarray, items: np.ndarray) -> float:
    """The same for other items like these, from (n,) all probes of some: by each one's rate inside minus outside."""
    by_item = pd.Series(failed.astype(float)).groupby([items, inside]).mean().unstack()
    if by_item.shape[1] < 2:
        return 1.0  # nothing inside or nothing outside
    change = (by_item[True] - by_item[False]).to_numpy()
    resampler = Resampler(by_item.index.to_numpy(dtype=str), RESAMPLES, 0)
    return resampler.p_value(change, np.ones(len(change)), above=0.0, lowest=CHANGE[0])


def _known(exact: Landscape, inside: np.ndarray) -> tuple[Rate, int]:
    """Rate over cells (mask) of an enumerated grid, counted in (item, cell) pairs, and how many of these failed."""
    rate = exact.mean_rate(inside)
    pairs = rate.n * (0 if exact.answers is None else len(exact.answers))
    return rate._replace(n=pairs), round(rate.value * pairs)
