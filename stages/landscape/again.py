"""Measure reproducibility: which failure modes of one run another run also finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.landscape.confirm import Mode
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.landscape.kinds import rates_of, region_size
from stages.landscape.modes import find_regions, shared
from stages.landscape.pairs import UNKNOWN, half_of
from stages.params import SummarizeConfig
from stages.records.landscape import NamedAgain

ALIKE = 0.5  # smallest Jaccard index at which two regions count as the same mode


@dataclass(frozen=True)
class FoundAgain:
    """Which regions of one run another run also finds.

    Args:
        best: (regions,) the largest Jaccard index of each with a region of the other run.
        again: (regions,) whether that index makes them the same mode.
        weighted: share of the failures in the regions that is in those found again; NaN without regions.
    """

    best: np.ndarray
    again: np.ndarray
    weighted: float

    @property
    def share(self) -> float:
        """Share of the regions found again; NaN without regions."""
        return float(self.again.mean()) if len(self.again) else float("nan")


def jaccard(space: ConceptSpace, a: Region, b: Region, attributes: pd.DataFrame = UNKNOWN) -> float:
    """Share of use in both regions over that in either (Jaccard 1912): 1 if identical, 0 if disjoint."""
    both = shared(space, a, b, attributes)
    either = region_size(space, a, attributes) + region_size(space, b, attributes) - both
    return both / either if either else 0.0


def found_again(
    regions: Sequence[Region],
    others: Sequence[Region],
    space: ConceptSpace,
    *,
    rates: Sequence[float] | None = None,
    alike: float = ALIKE,
    attributes: pd.DataFrame = UNKNOWN,
) -> FoundAgain:
    """Find the regions of one run that another run, with another seed or other items, also names.

    A region is found again if its Jaccard index with a region of the other run is at least `alike`, as for the
    recurrence of clusters (Hennig 2007, "Cluster-wise assessment of cluster stability"). At 0.5 a range may be off by a
    level or two, but a region with one condition more or less, which at least halves it, is another mode.

    Args:
        regions: the regions of one run.
        others: the regions of the other.
        space: the grid, the same for both.
        rates: failure rate in each region, for the weighted share: regions weigh rate * share of use, or that share.
        alike: smallest Jaccard index of two regions that count as the same mode.
        attributes: attributes of the items, one row each.
    """
    best = np.array([max((jaccard(space, r, other, attributes) for other in others), default=0.0) for r in regions])
    again = best >= alike
    weights = np.array([region_size(space, region, attributes) for region in regions])
    if rates is not None:
        weights = weights * np.asarray(rates, dtype=float)
    total = float(weights.sum())
    return FoundAgain(best, again, float(weights[again].sum()) / total if total > 0 else float("nan"))


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
    found = [found_again([m.region for m in modes], half, space, attributes=attributes).again for half in halves]
    between = found_again(*halves, space, attributes=attributes)
    return NamedAgain(
        named=len(halves[0]),
        again=between.again.sum(),
        in_halves={mode.id: sum(int(again[k]) for again in found) for k, mode in enumerate(modes)},
    )
