"""Parts both reports are made of: the landscape over a choice of concepts, and heat maps of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.pages import figures
from stages.pages.marginals import MAX_CONCEPTS, marginal, views
from stages.pages.page import Picture
from stages.pages.scales import nice_ceiling
from stages.pages.words import percent


class LandscapePart(NamedTuple):
    """A picture of the landscape with its selector: `slider` is where its scale ends in percent, 0 without one."""

    picture: Picture
    labels: list[str]
    deep: bool
    mark: str
    slider: int
    note: str


class HeatTable(NamedTuple):
    """Rates over two concepts: `rows` are (label, rates)."""

    caption: str
    row: str
    column: str
    columns: list[str]
    rows: list[tuple[str, list[float]]]


class PairPart(NamedTuple):
    """Two concepts as a picture and as a table."""

    picture: Picture
    table: HeatTable


def top_rate(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], columns: Sequence[str] = ("rate",)
) -> float:
    """The end of the colour scale that all pictures of a report share: the highest rate any of them shows."""
    shown = [marginal(landscape, space, view) for view in views(names, 3)] if len(landscape) else []
    values = [table[column].to_numpy() for table in shown for column in columns if column in table]
    return nice_ceiling(np.concatenate(values)) if values else 1.0


def label_of(view: Sequence[str]) -> str:
    """A choice of concepts as the selector and the titles name it."""
    return " × ".join(view)


def space_of(space: ConceptSpace, names: Sequence[str]) -> ConceptSpace:
    """The space of the named concepts alone."""
    return ConceptSpace(tuple(space.concepts[space.names.index(name)] for name in names))


def landscape_part(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], top: float, suffix: str = "", title: str = ""
) -> LandscapePart | None:
    """The picture over any three concepts (or one or two, if there are no more) with its selector.

    Args:
        landscape: one row a cell, with rate, low and high (each + suffix).
        space: the concepts of the table.
        names: the concepts offered.
        top: the end of the colour scale, from `top_rate`.
        suffix: "_before" or "_after" where the table holds both.
        title: printed above the picture.
    """
    column = f"rate{suffix}"
    if column not in landscape or landscape[column].isna().all():
        return None
    choices = views(names, 3)
    variants = [(label_of(v), figures.landscape_view(landscape, space, v, top, suffix)) for v in choices]
    deep = len(names) >= 3
    rates = marginal(landscape, space, choices[0]).rename(columns={column: "rate"})
    where = space_of(space, choices[0])
    worst = rates.loc[rates["rate"].idxmax()]
    place = where.describe([int(worst[name]) for name in choices[0]])
    alt = (
        f"Estimated failure rate over {label_of(choices[0])}: from {percent(rates['rate'].min())} "
        f"to {percent(rates['rate'].max())}, highest at {place}."
    )
    left_out = len(space) - len(names)
    offered = f"Offered are the {MAX_CONCEPTS} concepts that move the rate most, of {len(space)}."
    return LandscapePart(
        picture=Picture(alt, variants, 600 if deep and not suffix else 420, title, "landscape-view"),
        labels=[label for label, _ in variants],
        deep=deep,
        mark="point" if deep else "bar or point" if len(names) == 1 else "field",
        slider=round(100 * top) if deep else 0,
        note=offered if left_out else "",
    )


def pair_part(landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], top: float) -> list[PairPart]:
    """A heat map and a table for each pair of concepts; none where the landscape itself is one."""
    if len(names) < 2 or "rate" not in landscape or landscape["rate"].isna().all():
        return []
    parts = []
    for view in views(names, 2):
        row, column = space_of(space, view).concepts
        rates = marginal(landscape, space, view)
        title = label_of(view)
        ends = f"{percent(rates['rate'].min())} to {percent(rates['rate'].max())}"
        alt = f"Heat map of the failure rate over {title}, {ends}; the numbers are in the table below."
        grid = rates["rate"].to_numpy().reshape(len(row), len(column))
        table = HeatTable(
            caption=f"Failure rate by {title}",
            row=row.name,
            column=column.name,
            columns=[column.label(j) for j in range(len(column))],
            rows=[(row.label(i), grid[i].tolist()) for i in range(len(row))],
        )
        picture = Picture(alt, [(title, figures.heat_map(row, column, rates, top))], 330, title)
        parts.append(PairPart(picture, table))
    return parts
