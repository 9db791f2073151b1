"""The failure rate in use, from how common conditions are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Region
from stages.concepts.space import Level
from stages.params.usage import Weights

FEWEST = 50  # minimum effective number of cells behind a weighted mean over a sample of the grid


class Usage(NamedTuple):
    """How common conditions are in use, with concepts assumed to be independent.

    Args:
        shares: share of each level, by concept, summing to 1. Levels of other concepts are equally common.
        rate: the failure rate in use; None if the landscape contains too few of the cells that are common in use.
    """

    shares: Mapping[str, np.ndarray]
    rate: float | None

    def share(self, region: Region, of_grid: float) -> float:
        """Share of use in a region, given its share of the grid."""
        for name, shares in self.shares.items():
            if (levels := region.allowed.get(name)) is not None:
                of_grid *= shares[list(levels)].sum() * len(shares) / len(levels)
        return of_grid


def in_use(space: ConceptSpace, usage: Weights, cells: pd.DataFrame, *, sampled: bool) -> Usage:
    """Compute the shares that `usage:` sets, and the failure rate in use.

    Args:
        space: the grid.
        usage: weights by concept and level, at least one.
        cells: the landscape, one row per cell, with `rate`.
        sampled: whether these are a uniform sample of the grid.
    """
    shares = {name: _shares(space.concepts[space.names.index(name)], given) for name, given in usage.items()}
    weights = np.prod([of[cells[name].to_numpy(dtype=np.int64)] for name, of in shares.items()], axis=0)
    enough = not sampled or weights.sum() ** 2 >= FEWEST * (weights**2).sum() > 0
    return Usage(shares, float(np.average(cells["rate"].to_numpy(dtype=float), weights=weights)) if enough else None)


def _shares(concept: Concept, given: Mapping[Level, float]) -> np.ndarray:
    weights = np.array([given.get(level, 0.0) for level in concept.levels])
    return weights / weights.sum()
