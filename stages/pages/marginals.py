"""Averages of a landscape over the concepts that a picture does not show."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from stages.concepts import ConceptSpace

MAX_CONCEPTS = 7  # 35 triples and 21 pairs; more would make the file large, and nobody would look at them

_ADDED = ("use", "probes", "failures", "policy_mean", "policy_std")


def marginal(table: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> pd.DataFrame:
    """Average a landscape over all concepts but the named ones, as they occur in use.

    Rates and bounds are averaged with the cells' shares of use; these shares, counts and the policy's probabilities are
    added up. The mean of the cells' bounds is at least as wide as the interval of the mean rate; a tighter interval
    would require the correlation of the cells' errors, which is unknown.

    Args:
        table: one row per cell, one column per concept (level index) besides the numbers, among them `use`.
        space: the concepts of the table.
        names: the concepts to keep.

    Returns:
        One row for each combination of levels in row-major order, NaN if none of its cells occurs in use.
    """
    numbers = table.drop(columns=space.names).select_dtypes(["number"])
    averaged = numbers.columns.difference(_ADDED, sort=False)
    keys = [table[name] for name in names]
    numbers[averaged] = numbers[averaged].mul(table["use"], axis=0)
    grouped = numbers.groupby(keys, sort=True).sum(min_count=1)
    grouped[averaged] = grouped[averaged].div(grouped["use"], axis=0)
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
