"""The landscape over two concepts at a time, averaged over the others, as maps."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from types import MappingProxyType

import numpy as np
import pandas as pd
from markupsafe import Markup

from stages.concepts import Concept, ConceptSpace, Region
from stages.pages.figures import (
    CHANGE_SCALE,
    POLICY_SCALE,
    RATE_SCALE,
    Scale,
    effect_view,
    levels_axis,
    nice_ceiling,
    tiles,
)
from stages.pages.page import Picture
from stages.pages.words import interval, number, percent, points, whole_points

MAX_CONCEPTS = 7  # 21 pairs; nobody would look at more

_ADDED = ("use", "probes", "failures", "policy_mean", "policy_std")


def marginal(table: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> pd.DataFrame:
    """Average a landscape over all concepts but the named ones, as they occur in use.

    Rates and bounds are averaged with the cells' shares of use; these shares, counts and the policy's probabilities are
    added up. The mean of the cells' bounds is at least as wide as the interval of the mean rate; a tighter interval
    would require the correlation of the cells' errors, which is unknown.

    Args:
        table: one row per cell, one column per concept (level index) besides the numbers, among them `use`.
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
    levels = [range(len(concept)) for concept in _concepts(space, names)]
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
    """Return all combinations of at most `size` concepts."""
    return list(combinations(names, min(size, len(names))))


def top_rate(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], columns: Sequence[str] = ("rate",)
) -> float:
    """Return the end of the colour scale shared by all pictures of a report: the highest rate in any of them."""
    shown = [marginal(landscape, space, view) for view in views(names, 2)] if len(landscape) else []
    values = [table[column].to_numpy() for table in shown for column in columns if column in table]
    return nice_ceiling(np.concatenate(values)) if values else 1.0


def _concepts(space: ConceptSpace, names: Sequence[str]) -> list[Concept]:
    return [space.concepts[space.names.index(name)] for name in names]


def _label_of(view: Sequence[str]) -> str:
    return " × ".join(view)


def rate_maps(
    landscape: pd.DataFrame,
    space: ConceptSpace,
    names: Sequence[str],
    top: float,
    sides: Mapping[str, str],
    modes: Mapping[str, Region],
) -> list[list[Picture]]:
    """Return the landscape over every two concepts (or the only one), the pair with the worst tile first.

    Args:
        landscape: one row per cell, with rate, low and high (each + suffix).
        names: the concepts to show.
        top: the end of the colour scale, from `top_rate`.
        sides: names of the pictures by the suffix of their columns: "" alone, or "_before" and "_after"; with these,
            a third picture shows the change.
        modes: regions by their names, to be outlined.

    Returns:
        The pictures of each pair; empty without rates.
    """
    columns = [f"rate{suffix}" for suffix in sides]
    if any(column not in landscape or landscape[column].isna().all() for column in columns):
        return []
    tables = {view: marginal(landscape, space, view) for view in views(names, 2)}
    moved = {"rate_before", "rate_after"} <= {*columns} and len(names) > 1
    changes = [rates["rate_after"] - rates["rate_before"] for rates in tables.values()] if moved else []
    largest = nice_ceiling(pd.concat([change.abs() for change in changes])) if moved else 0.0
    maps = []
    for view, rates in sorted(tables.items(), key=lambda table: -table[1][columns[0]].max()):
        pictures = []
        for suffix, side in sides.items():
            one = rates.rename(columns={f"{c}{suffix}": c for c in ("rate", "low", "high")})
            title = ", ".join(filter(None, (_label_of(view), side)))
            drawn = _rate_map(_concepts(space, view), one, top, modes)
            pictures.append(Picture(_seen(one, space, view), drawn, title))
        if moved:
            pictures.append(_change(rates, space, view, largest))
        pictures[0] = pictures[0]._replace(said=_about_view(view, modes))
        maps.append(pictures)
    return maps


def _change(rates: pd.DataFrame, space: ConceptSpace, view: Sequence[str], top: float) -> Picture:
    """Draw rate after minus rate before over two concepts, in points; `top` is the share at the scale's end."""
    change = rates["rate_after"] - rates["rate_before"]
    ends = f"{points(change.min())} to {points(change.max())} points"
    alt = f"Change of the failure rate over {_label_of(view)}: {ends}."
    said = [
        f"{points(after - before)} points, from {percent(before)} to {percent(after)}"
        for before, after in zip(rates["rate_before"], rates["rate_after"], strict=True)
    ]
    drawn = _map(_concepts(space, view), change, said, (CHANGE_SCALE, -top, top), whole_points)
    return Picture(alt, drawn, f"{_label_of(view)}, change")


def _about_view(view: Sequence[str], modes: Mapping[str, Region]) -> str:
    """State which modes have further conditions than a map shows, and which are not on it.

    A mode about items alone concerns every place of every map, so it is not mentioned.
    """
    modes = {name: region for name, region in modes.items() if region.allowed}
    away = [name for name, region in modes.items() if not set(view) & set(region.allowed)]
    more = [
        name for name, region in modes.items() if name not in away and (set(region.allowed) - set(view) or region.items)
    ]
    sentences = []
    if more:
        sentences.append(f"Dashed: {', '.join(more)} {'has' if len(more) == 1 else 'have'} further conditions.")
    if away:
        sentences.append(f"Not on this map: {', '.join(away)}.")
    return " ".join(sentences)


def _seen(rates: pd.DataFrame, space: ConceptSpace, view: Sequence[str]) -> str:
    """Describe a map for readers who cannot see it."""
    worst = rates.loc[rates["rate"].idxmax()]
    place = ConceptSpace(tuple(_concepts(space, view))).describe([int(worst[name]) for name in view])
    return (
        f"Estimated failure rate over {_label_of(view)}: from {percent(rates['rate'].min())} "
        f"to {percent(rates['rate'].max())}, highest at {place}."
    )


def _rate_map(concepts: Sequence[Concept], rates: pd.DataFrame, top: float, regions: Mapping[str, Region]) -> Markup:
    """Draw the failure rate over one or two concepts.

    Args:
        concepts: the one of the rows first.
        rates: as `marginal` returns it for these.
        top: the rate at the end of the colour scale.
        regions: outlined with their names if they have a condition on one of the two, dashed if they have others too.
    """
    if len(concepts) == 1:
        highest = max((float(rates[c].max()) for c in rates.columns if c.startswith("high_")), default=0.0)
        return effect_view(concepts[0], rates, top, highest)
    said = [
        f"{percent(rate)} fail ({interval(low, high)}, bounds averaged over cells)"
        for rate, low, high in rates[["rate", "low", "high"]].to_numpy(dtype=float).tolist()
    ]
    outlines = {name: boxes for name, region in regions.items() if (boxes := _outline(region, concepts))}
    return _map(concepts, rates["rate"], said, (RATE_SCALE, 0, top), partial(percent, digits=0), outlines)


def _outline(region: Region, concepts: Sequence[Concept]) -> list[tuple[int, int, int, int, bool]]:
    """Return a region on a map, as `tiles` draws it, by ranges of levels without gaps; empty if it is not on it."""
    names = {concept.name for concept in concepts}
    if not names & set(region.allowed):
        return []
    narrower = bool(region.items or set(region.allowed) - names)
    ranges = [_ranges(region.allowed.get(concept.name, range(len(concept)))) for concept in concepts]
    return [(*upright, *along, narrower) for upright in ranges[0] for along in ranges[1]]


def _ranges(levels: Iterable[int]) -> list[tuple[int, int]]:
    """Split levels into ranges without gaps, (first, last)."""
    ranges: list[tuple[int, int]] = []
    for level in sorted(levels):
        if ranges and ranges[-1][1] == level - 1:
            ranges[-1] = (ranges[-1][0], level)
        else:
            ranges.append((level, level))
    return ranges


def policy_maps(cells: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> list[list[Picture]]:
    """Draw where the agent looks; how much that depends on the item is said by each tile. Empty without a policy."""
    if cells["policy_mean"].isna().all() or len(names) < 2:
        return []
    maps = []
    for view in views(names, 2):
        alt = f"How often the policy probes each combination of {_label_of(view)}, relative to chance."
        drawn = _policy_map(_concepts(space, view), marginal(cells, space, view))
        maps.append([Picture(alt, drawn, _label_of(view))])
    return maps


def _policy_map(concepts: Sequence[Concept], policy: pd.DataFrame) -> Markup:
    """Draw how often the trained policy would probe each pair of levels, relative to its share of use (1)."""
    unit = policy["use"] * (policy["policy_mean"].sum() / policy["use"].sum())
    mean, spread = policy["policy_mean"] / unit, policy["policy_std"] / unit
    said = [
        f"{number(a)} times as often as in use; standard deviation over items {number(b)}"
        for a, b in zip(mean, spread, strict=True)
    ]
    top = max(2.0, math.ceil(float(np.nanmax(mean.to_numpy(dtype=float), initial=0.0))))
    return _map(concepts, mean, said, (POLICY_SCALE, 0, top), "{:.1f}".format)


def _map(
    concepts: Sequence[Concept],
    values: pd.Series,
    said: Sequence[str],
    colours: tuple[Scale, float, float],
    label: Callable[[float], str],
    outlines: Mapping[str, Sequence[tuple[int, int, int, int, bool]]] = MappingProxyType({}),
) -> Markup:
    row, column = concepts

    def all_said(i: int, j: int) -> str:
        return f"{row.name} {row.label(i)}, {column.name} {column.label(j)}: {said[i * len(column) + j]}"

    grid = values.to_numpy(dtype=float).reshape(len(row), len(column)).tolist()
    return tiles(levels_axis(row), levels_axis(column), grid, all_said, colours, label, outlines)
