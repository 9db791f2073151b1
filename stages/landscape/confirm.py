"""Which regions are failure modes: the model is asked again inside each region, and only what holds is called one.

A region was chosen because its probes failed, so these say too much of it (the winner's curse). Fresh ones, drawn
uniformly inside and put to the model only now, do not; and however small a region is, there are enough of them. They
come out of the audit's budget (`discover.budget`), and in two parts: the first says which regions are failure modes,
the second, which had no say in that, how often these fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from stages.concepts import ConceptSpace, Region
from stages.intervals import CHANGE, LEVEL, Rate, Resampler, clopper_pearson, holm
from stages.landscape.estimate import RESAMPLES, Landscape

FEWEST = 10  # probes that test a region, or none: fewer confirm nothing, so where they are few the worst get them
TESTING = 2 / 3  # of the fresh probes: 22 of 200 for each of six regions see 60% against 20% in nine of ten cases
ENOUGH = 120  # probes that test a region, at most: they see 40% against 25% in nine of ten cases, and the rest measures

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
            cells would show, as the probes are uniform draws from just that. Of a failure mode those count that had no
            say in its being one. On an enumerated grid the rate is known; then the interval is for other items like
            these. NaN where nothing was asked.
        failures: how many of the probes behind the rate failed.
        estimate: mean estimated rate of the cells.
        lift: rate, or the estimate where there is none, over the overall rate.
        share: share of the grid.
        confirmed: it is a failure mode: it fails more often than the grid, by Holm's test over all regions tested, and
            by the interval of its rate. Never where nothing was asked.
    """

    id: str
    region: Region
    rate: Rate
    failures: int
    estimate: float
    lift: float
    share: float
    confirmed: bool


class Found(NamedTuple):
    """What was found of a region."""

    region: Region
    rate: Rate
    failures: int
    estimate: float
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


def confirm(
    space: ConceptSpace,
    regions: Sequence[Region],
    landscape: Landscape,
    control: pd.DataFrame,
    n_items: int,
    fresh: Fresh,
    seed: int,
) -> tuple[list[Mode], pd.DataFrame]:
    """Test each region on fresh probes inside it, and measure those that pass on others.

    Args:
        space: the grid.
        regions: what the search named, the most striking first.
        landscape: that it named them on.
        control: uniform probes of the whole grid, against which a region is held.
        n_items: items the probes are put about.
        fresh: the probes.
        seed: of their draws.

    Returns:
        Failure modes, then what is only suspected; and the fresh probes with the id of where they were drawn as `mode`
        and what they were for ("test" or "measure") as `role`.
    """
    cells, failed = landscape.cells(space), control["failed"].to_numpy(dtype=bool)
    overall = float(failed.mean()) if len(failed) else float(landscape.rates.mean())
    rng, first = np.random.default_rng([seed, 3]), round(TESTING * fresh.count)
    asked = [k for k in range(len(regions)) if k < first // FEWEST]
    first = min(first, ENOUGH * len(asked))
    tests = _ask(space, regions, asked, n_items, first, fresh.ask, rng)
    adjusted = holm(np.array([worse_probes(_failed(tests[k]), failed) for k in asked]))
    passed = [k for k, p_value in zip(asked, adjusted, strict=True) if p_value < 1 - LEVEL]
    measured = _ask(space, regions, passed, n_items, fresh.count - first, fresh.ask, rng)
    found, tables = [], []
    for k, region in enumerate(regions):
        inside = _failed(measured.get(k, tests.get(k)))
        rate = clopper_pearson(int(inside.sum()), len(inside))
        estimate = float(landscape.rates[region.contains(space, cells)].mean())
        found.append(Found(region, rate, int(inside.sum()), estimate, k in measured and rate.low > overall))
    modes = _ordered(space, found, overall)
    for role, answers in (("test", tests), ("measure", measured)):
        for k, table in answers.items():
            name = next(mode.id for mode in modes if mode.region == regions[k])
            tables.append(table.assign(role=role, explorer="uniform", mode=name))
    return modes, pd.concat([no_fresh(control), *tables], ignore_index=True)


def no_fresh(probes: pd.DataFrame) -> pd.DataFrame:
    """An empty table of fresh probes, from any other probes."""
    return probes.iloc[:0].assign(mode="")


def _ask(
    space: ConceptSpace,
    regions: Sequence[Region],
    which: Sequence[int],
    n_items: int,
    count: int,
    ask: Ask,
    rng: np.random.Generator,
) -> dict[int, pd.DataFrame]:
    """Divide so many fresh probes among some of the regions, and put them: number of the region -> answers."""
    return {k: ask(*draw_inside(space, regions[k], n_items, count // len(which), rng)) for k in which}


def _failed(answers: pd.DataFrame | None) -> np.ndarray:
    return np.zeros(0, dtype=bool) if answers is None else answers["failed"].to_numpy(dtype=bool)


def confirm_exactly(
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
    failed, items, overall = _failed(others), others["item"].to_numpy(dtype=str), float(landscape.rates.mean())
    adjusted = holm(np.array([worse_items(failed, r.contains(space, probed), items) for r in regions]))
    found = []
    for region, p_value in zip(regions, adjusted, strict=True):
        inside = region.contains(space, cells)
        rate, failures = _known(landscape, inside)
        estimate = float(named["rate"].to_numpy()[inside].mean())
        found.append(Found(region, rate, failures, estimate, rate.low > overall and p_value < 1 - LEVEL))
    return _ordered(space, found, overall)


def _ordered(space: ConceptSpace, found: Sequence[Found], overall: float) -> list[Mode]:
    """Failure modes by failures in excess, then what is only suspected likewise."""
    modes = []
    for one in found:
        lift = (one.rate.value if one.rate.n else one.estimate) / max(overall, 1e-9)
        share = one.region.n_cells(space) / space.n_cells
        modes.append(Mode("", one.region, one.rate, one.failures, one.estimate, lift, share, bool(one.confirmed)))
    modes.sort(key=lambda m: (-m.confirmed, -(m.lift - 1) * m.share))
    count = sum(m.confirmed for m in modes)
    ids = [f"M{i + 1}" if i < count else f"S{i + 1 - count}" for i in range(len(modes))]
    return [replace(mode, id=name) for mode, name in zip(modes, ids, strict=True)]


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
