"""Averages of a landscape over the concepts that a picture does not show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from stages.concepts import ConceptSpace

MAX_CONCEPTS = 7  # 35 triples and 21 pairs; more would make the file large, and nobody would look at them

_COUNTS = ("probes", "failures")


def marginal(table: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> pd.DataFrame:
    """Average a landscape over all concepts but the named ones.

    Rates and bounds are averaged with equal weight for each cell, counts are added up. The mean of the cells' bounds is
    at least as wide as the interval of the mean rate; a tighter interval would require the correlation of the cells'
    errors, which is unknown.

    Args:
        table: one row per cell, one column per concept (level index) besides the numbers.
        space: the concepts of the table.
        names: the concepts to keep.

    Returns:
        One row for each combination of levels in row-major order, NaN if the table has no cell of it.
    """
    numbers = table.drop(columns=space.names).select_dtypes(["number"])
    how = {column: "sum" if column in _COUNTS else "mean" for column in numbers.columns}
    grouped = numbers.groupby([table[name] for name in names], sort=True).agg(how)
    levels = [range(len(space.concepts[space.names.index(name)])) for name in names]
    if len(names) == 1:
        return grouped.reindex(pd.Index(levels[0], name=names[0])).reset_index()
    return grouped.reindex(pd.MultiIndex.from_product(levels, names=names)).reset_index()


def shown_concepts(table: pd.DataFrame, space: ConceptSpace, column: str = "rate") -> list[str]:
    """Return the concepts to show in pictures: all, or the MAX_CONCEPTS that change the rate most."""
    if len(space) <= MAX_CONCEPTS:
        return space.names

    def spread(name: str) -> float:
        rates = marginal(table, space, [name])[column]
        return float(rates.max() - rates.min())

    strongest = sorted(space.names, key=spread, reverse=True)[:MAX_CONCEPTS]
    return [name for name in space.names if name in strongest]


def views(names: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return all combinations of at most `size` concepts, the choices of a selector."""
    return list(combinations(names, min(size, len(names))))
