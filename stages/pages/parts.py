"""Parts of both reports that show the landscape: maps of two concepts, points over three, and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.pages import figures
from stages.pages.marginals import MAX_CONCEPTS, marginal, views
from stages.pages.page import Picture
from stages.pages.scales import nice_ceiling
from stages.pages.words import percent

View = tuple[str, ...]


class MapPart(NamedTuple):
    """Maps of a landscape with one common selector; `note` names concepts that are not offered."""

    pictures: list[Picture]
    labels: list[str]
    mark: str
    note: str


class SpacePart(NamedTuple):
    """The landscape over three concepts, as points in space; `slider` is the end of its scale, in percent."""

    pictures: list[Picture]
    labels: list[str]
    slider: int


class HeatTable(NamedTuple):
    """Rates over two concepts: `rows` are (label, rates)."""

    title: str
    row: str
    column: str
    columns: list[str]
    rows: list[tuple[str, list[float]]]


def top_rate(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], columns: Sequence[str] = ("rate",)
) -> float:
    """Return the end of the colour scale shared by all pictures of a report: the highest rate in any of them."""
    shown = [marginal(landscape, space, view) for view in views(names, 3)] if len(landscape) else []
    values = [table[column].to_numpy() for table in shown for column in columns if column in table]
    return nice_ceiling(np.concatenate(values)) if values else 1.0


def label_of(view: Sequence[str]) -> str:
    """Return the label of a choice of concepts in selectors and titles."""
    return " × ".join(view)


def space_of(space: ConceptSpace, names: Sequence[str]) -> ConceptSpace:
    """Return the space of the named concepts only."""
    return ConceptSpace(tuple(space.concepts[space.names.index(name)] for name in names))


def worst_first(landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], column: str) -> list[View]:
    """Return all pairs of concepts (or the only concept), starting with the pair that has the worst field."""
    choices = views(names, 2)
    worst = max(choices, key=lambda view: _highest(marginal(landscape, space, view)[column]))
    return [worst, *(view for view in choices if view != worst)]


def _highest(rates: pd.Series) -> float:
    return -1.0 if rates.isna().all() else float(rates.max())


def map_part(
    landscape: pd.DataFrame,
    space: ConceptSpace,
    names: Sequence[str],
    top: float,
    sides: Mapping[str, str],
    modes: Mapping[str, Region],
    selector: str = "landscape-view",
) -> MapPart | None:
    """Return the landscape over any two concepts (or the only one), with the modes outlined.

    Args:
        landscape: one row per cell, with rate, low and high (each + suffix).
        space: the concepts of the table.
        names: the concepts offered.
        top: the end of the colour scale, from `top_rate`.
        sides: titles of the pictures by the suffix of their columns: "" alone, or "_before" and "_after".
        modes: regions by their names.
        selector: name of the selector that switches them.
    """
    columns = [f"rate{suffix}" for suffix in sides]
    if any(column not in landscape or landscape[column].isna().all() for column in columns):
        return None
    choices = worst_first(landscape, space, names, columns[0])
    pictures = [_map(landscape, space, choices, top, suffix, title, modes, selector) for suffix, title in sides.items()]
    for view, (_, figure) in zip(choices, pictures[0].variants, strict=True):
        figure.update_layout(meta={"said": _said(space, view, modes)})
    offered = f"The list offers the {MAX_CONCEPTS} concepts, of {len(space)}, that change the rate most."
    return MapPart(
        pictures=pictures,
        labels=[label_of(view) for view in choices],
        mark="bar or point" if len(names) == 1 else "tile",
        note=offered if len(space) > len(names) else "",
    )


def _map(
    landscape: pd.DataFrame,
    space: ConceptSpace,
    choices: Sequence[View],
    top: float,
    suffix: str,
    title: str,
    modes: Mapping[str, Region],
    selector: str,
) -> Picture:
    variants = []
    for view in choices:
        figure = figures.landscape_view(landscape, space, view, top, suffix, modes)
        variants.append((label_of(view), figure))
    return Picture(_seen(landscape, space, choices[0], suffix), variants, 420, title, selector)


def _said(space: ConceptSpace, view: View, modes: Mapping[str, Region]) -> str:
    """State what a map averages over, which modes have further conditions, and which are not on it."""
    others = [name for name in space.names if name not in view]
    said = [f"Averaged over {', '.join(others)}{', as they occur in use' if space.usage else ''}."] if others else []
    away = [name for name, region in modes.items() if not set(view) & set(region.allowed)]
    more = [
        name for name, region in modes.items() if name not in away and (set(region.allowed) - set(view) or region.items)
    ]
    if more:
        said.append(f"Dashed: {', '.join(more)} {'has' if len(more) == 1 else 'have'} further conditions.")
    if away:
        said.append(f"Not on this map: {', '.join(away)}.")
    return " ".join(said)


def _seen(landscape: pd.DataFrame, space: ConceptSpace, view: View, suffix: str) -> str:
    """Describe a view for readers who cannot see it."""
    rates = marginal(landscape, space, view).rename(columns={f"rate{suffix}": "rate"})
    worst = rates.loc[rates["rate"].idxmax()]
    place = space_of(space, view).describe([int(worst[name]) for name in view])
    return (
        f"Estimated failure rate over {label_of(view)}: from {percent(rates['rate'].min())} "
        f"to {percent(rates['rate'].max())}, highest at {place}."
    )


def space_part(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], top: float, sides: Mapping[str, str]
) -> SpacePart | None:
    """Return the landscape over any three concepts as points in space; None if there are fewer. See `map_part`."""
    if len(names) < 3:
        return None
    choices = views(names, 3)
    pictures = []
    for suffix, title in sides.items():
        variants = [(label_of(v), figures.landscape_view(landscape, space, v, top, suffix)) for v in choices]
        alt = _seen(landscape, space, choices[0], suffix)
        pictures.append(Picture(alt, variants, 420 if suffix else 600, title, "space-view"))
    return SpacePart(pictures, [label_of(view) for view in choices], round(100 * top))


def heat_tables(landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str]) -> list[HeatTable]:
    """Return the numbers of the maps of two concepts."""
    if len(names) < 2 or "rate" not in landscape or landscape["rate"].isna().all():
        return []
    tables = []
    for view in worst_first(landscape, space, names, "rate"):
        row, column = space_of(space, view).concepts
        grid = marginal(landscape, space, view)["rate"].to_numpy().reshape(len(row), len(column))
        tables.append(
            HeatTable(
                title=label_of(view),
                row=row.name,
                column=column.name,
                columns=[column.label(j) for j in range(len(column))],
                rows=[(row.label(i), grid[i].tolist()) for i in range(len(row))],
            )
        )
    return tables
