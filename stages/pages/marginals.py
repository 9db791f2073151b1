"""Averages of a landscape over the concepts a picture does not show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from stages.concepts import ConceptSpace

MAX_CONCEPTS = 7  # 35 triples and 21 pairs: more make the file large and nobody looks at them

_COUNTS = ("probes", "failures")


def marginal(table: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> pd.DataFrame:
    """Average a landscape over all concepts but the named ones.

    Rates and bounds are averaged with equal weight for each cell, counts are added up. The mean of the cells'
    bounds is wider than the interval of their mean would be, never narrower: it is what we can say without
    knowing how the cells' errors hang together.

    Args:
        table: one row a cell, one column per concept (level index) beside the numbers.
        space: the concepts of the table.
        names: the concepts to keep.

    Returns:
        One row for each combination of levels in row-major order, NaN where the table holds no cell of it.
    """
    numbers = table.drop(columns=space.names).select_dtypes(["number"])
    how = {column: "sum" if column in _COUNTS else "mean" for column in numbers.columns}
    grouped = numbers.groupby([table[name] for name in names], sort=True).agg(how)
    levels = [range(len(space.concepts[space.names.index(name)])) for name in names]
    if len(names) == 1:
        return grouped.reindex(pd.Index(levels[0], name=names[0])).reset_index()
    return grouped.reindex(pd.MultiIndex.from_product(levels, names=names)).reset_index()


def shown_concepts(table: pd.DataFrame, space: ConceptSpace, column: str = "rate") -> list[str]:
    """The concepts pictures are made of: all, or the MAX_CONCEPTS that move the rate most."""
    if len(space) <= MAX_CONCEPTS:
        return space.names

    def spread(name: str) -> float:
        rates = marginal(table, space, [name])[column]
        return float(rates.max() - rates.min())

    strongest = sorted(space.names, key=spread, reverse=True)[:MAX_CONCEPTS]
    return [name for name in space.names if name in strongest]


def views(names: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """All combinations of at most `size` concepts: what a selector offers."""
    return list(combinations(names, min(size, len(names))))
