"""Measure reproducibility: which failure modes of one run another run also finds."""

from __future__ import annotations

from collections.abc import Sequence

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
