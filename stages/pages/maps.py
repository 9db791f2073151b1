"""The landscape over the concepts that a picture shows, averaged over the others: maps, points in space, and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stages.concepts import Concept, ConceptSpace, Region
from stages.pages.figures import (
    CHANGE_SCALE,
    POLICY_SCALE,
    RATE_SCALE,
    Scale,
    axis,
    bare_figure,
    bounds,
    colour_at,
    effect_view,
    ink_on,
    nice_ceiling,
    plotly_text,
    rounded,
    short,
)
from stages.pages.page import Picture
from stages.pages.words import percent, whole_points

_BOUNDS = "%{customdata[0]:.1%} – %{customdata[1]:.1%} (bounds averaged over cells)"
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


View = tuple[str, ...]


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


def subspace(space: ConceptSpace, names: Sequence[str]) -> ConceptSpace:
    """Return the space of the named concepts only."""
    return ConceptSpace(tuple(space.concepts[space.names.index(name)] for name in names))


def pair_of(space: ConceptSpace, view: View) -> tuple[Concept, Concept]:
    """Return the concepts of the rows and of the columns of a map."""
    row, column = subspace(space, view).concepts
    return row, column


def worst_first(landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], column: str) -> list[View]:
    """Return all pairs of concepts (or the only concept), starting with the pair that has the worst field."""
    choices = views(names, 2)
    worst = max(choices, key=lambda view: _highest(marginal(landscape, space, view)[column]))
    return [worst, *(view for view in choices if view != worst)]


def _highest(rates: pd.Series) -> float:
    return -1.0 if rates.isna().all() else float(rates.max())


def rate_maps(
    landscape: pd.DataFrame,
    space: ConceptSpace,
    names: Sequence[str],
    top: float,
    sides: Mapping[str, str],
    modes: Mapping[str, Region],
    selector: str = "landscape-view",
) -> list[Picture]:
    """Return the landscape over any two concepts (or the only one), with the modes outlined; empty without rates.

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
        return []
    choices = worst_first(landscape, space, names, columns[0])
    pictures = [
        _picture(landscape, space, choices, top, suffix, modes, 420, title, selector) for suffix, title in sides.items()
    ]
    for view, (_, figure) in zip(choices, pictures[0].variants, strict=True):
        figure.update_layout(meta={"said": _about_view(space, view, modes)})
    return pictures


def rate_spaces(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str], top: float, sides: Mapping[str, str]
) -> list[Picture]:
    """Return the landscape over any three concepts as points in space; empty if there are fewer. See `rate_maps`."""
    if len(names) < 3:
        return []
    choices = views(names, 3)
    return [
        _picture(landscape, space, choices, top, suffix, {}, 420 if suffix else 600, title, "space-view")
        for suffix, title in sides.items()
    ]


def _picture(
    landscape: pd.DataFrame,
    space: ConceptSpace,
    choices: Sequence[View],
    top: float,
    suffix: str,
    modes: Mapping[str, Region],
    height: int,
    title: str,
    selector: str,
) -> Picture:
    variants = [(label_of(view), landscape_view(landscape, space, view, top, suffix, modes)) for view in choices]
    return Picture(_seen(landscape, space, choices[0], suffix), variants, height, title, selector)


def _about_view(space: ConceptSpace, view: View, modes: Mapping[str, Region]) -> str:
    """State what a map averages over, which modes have further conditions, and which are not on it."""
    others = [name for name in space.names if name not in view]
    sentences = (
        [f"Averaged over {', '.join(others)}{', as they occur in use' if space.usage else ''}."] if others else []
    )
    away = [name for name, region in modes.items() if not set(view) & set(region.allowed)]
    more = [
        name for name, region in modes.items() if name not in away and (set(region.allowed) - set(view) or region.items)
    ]
    if more:
        sentences.append(f"Dashed: {', '.join(more)} {'has' if len(more) == 1 else 'have'} further conditions.")
    if away:
        sentences.append(f"Not on this map: {', '.join(away)}.")
    return " ".join(sentences)


def _seen(landscape: pd.DataFrame, space: ConceptSpace, view: View, suffix: str) -> str:
    """Describe a view for readers who cannot see it."""
    rates = marginal(landscape, space, view).rename(columns={f"rate{suffix}": "rate"})
    worst = rates.loc[rates["rate"].idxmax()]
    place = subspace(space, view).describe([int(worst[name]) for name in view])
    return (
        f"Estimated failure rate over {label_of(view)}: from {percent(rates['rate'].min())} "
        f"to {percent(rates['rate'].max())}, highest at {place}."
    )


def heat_tables(
    landscape: pd.DataFrame, space: ConceptSpace, names: Sequence[str]
) -> list[tuple[Concept, Concept, list[list[float]]]]:
    """Return the numbers of the maps of two concepts: the concept of the rows, that of the columns, and the rates."""
    if len(names) < 2 or "rate" not in landscape or landscape["rate"].isna().all():
        return []
    tables = []
    for view in worst_first(landscape, space, names, "rate"):
        row, column = pair_of(space, view)
        rates = marginal(landscape, space, view)["rate"].to_numpy().reshape(len(row), len(column))
        tables.append((row, column, rates.tolist()))
    return tables


def _scene_axis(concept: Concept) -> dict[str, Any]:
    """Return an axis of a 3D scene; WebGL text supports tags but no entities, so tags are disabled by replacing "<"."""

    def drawn(text: str, limit: int) -> str:
        return short(text, limit).replace("<", "‹")

    labels = [drawn(concept.label(i), 24) for i in range(len(concept))]
    return {"title": {"text": drawn(concept.name, 48)}, "tickvals": list(range(len(concept))), "ticktext": labels}


def _colorbar(**more: Any) -> dict[str, Any]:
    return {"tickformat": ".0%", "thickness": 12, "outlinewidth": 0, "len": 0.9, **more}


def landscape_view(
    table: pd.DataFrame,
    space: ConceptSpace,
    names: Sequence[str],
    top: float,
    suffix: str = "",
    regions: Mapping[str, Region] = MappingProxyType({}),
) -> go.Figure:
    """Draw the landscape over one to three concepts, averaged over the others: bars, a heat map or points in space.

    Args:
        table: one row per cell with rate, low and high (each + suffix).
        space: the concepts of the table.
        names: one, two or three concepts.
        top: the rate at the end of the colour scale.
        suffix: "_before" or "_after" if the table contains both.
        regions: outlined on a heat map.
    """
    rates = marginal(table, space, names)
    highest = max((float(rates[c].max()) for c in rates.columns if c.startswith("high_")), default=0.0)
    rates = rates.rename(columns={f"{c}{suffix}": c for c in ("rate", "low", "high")})
    concepts = [space.concepts[space.names.index(name)] for name in names]
    if len(names) == 1:
        return effect_view(concepts[0], rates, top, highest)
    if len(names) == 2:
        return heat_map(concepts[0], concepts[1], rates, top, regions)
    rates = rates.dropna(subset=["rate"])
    level = {
        name: [plotly_text(c.label(int(i)), 24) for i in rates[name]] for name, c in zip(names, concepts, strict=True)
    }
    hover = "".join(f"{plotly_text(name)} %{{customdata[{k + 2}]}}<br>" for k, name in enumerate(names))
    custom = [[*bounds, *labels] for bounds, *labels in zip(bounds(rates), *level.values(), strict=True)]
    rate = rates["rate"].to_numpy(dtype=float)
    points = go.Scatter3d(
        x=rates[names[0]].tolist(),
        y=rates[names[1]].tolist(),
        z=rates[names[2]].tolist(),
        mode="markers",
        marker={
            "color": rounded(rate),
            # The area of a point, not its radius, grows with the rate; a small point remains if nothing fails.
            "size": rounded(3 + 19 * np.sqrt(np.clip(np.nan_to_num(rate) / top, 0, 1)), 1),
            "opacity": 0.85,
            "colorscale": RATE_SCALE,
            "cmin": 0,
            "cmax": top,
            "colorbar": _colorbar(title={"text": "fails"}),
            "line": {"width": 0},
        },
        customdata=custom,
        hovertemplate=f"<b>%{{marker.color:.1%}} fail</b><br>{_BOUNDS}<br>{hover}<extra></extra>",
    )
    scene = {axis: _scene_axis(concept) for axis, concept in zip(("xaxis", "yaxis", "zaxis"), concepts, strict=True)}
    camera = {"eye": {"x": 1.35, "y": -1.6, "z": 0.75}, "center": {"x": 0, "y": 0, "z": -0.12}}
    return bare_figure(
        [points],
        scene={**scene, "aspectmode": "cube", "camera": camera, "dragmode": "orbit"},
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        annotations=_averaged(space, names),
    )


def _averaged(space: ConceptSpace, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a line below a picture that names the concepts it averages over."""
    others = [plotly_text(name, 24) for name in space.names if name not in names]
    if not others:
        return []
    lines = [", ".join(others[k : k + 4]) for k in range(0, len(others), 4)]
    place = {"x": 0, "y": 0, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    text = "averaged over " + ",<br>".join(lines) + (" as in use" if space.usage else "")
    return [{"text": text, "showarrow": False, "align": "left", **place}]


def heat_map(
    row: Concept, column: Concept, rates: pd.DataFrame, top: float, regions: Mapping[str, Region] = MappingProxyType({})
) -> go.Figure:
    """Draw the failure rate over two concepts.

    Args:
        row: the concept whose levels are rows.
        column: the concept whose levels are columns.
        rates: as `marginal` returns it for both.
        top: the rate at the end of the colour scale.
        regions: outlined with their names if they have a condition on one of the two, dashed if they have others too.
    """
    shape = (len(row), len(column))
    grid = np.array(rounded(rates["rate"]), dtype=object).reshape(shape)
    custom = np.array(bounds(rates), dtype=object).reshape(*shape, 2)
    hover = f"<b>%{{z:.1%}} fail</b><br>{_BOUNDS}{_place(row, column)}"
    figure = _grid(
        row, column, grid, hover, RATE_SCALE, (0, top), labels=partial(percent, digits=0), customdata=custom.tolist()
    )
    for name, region in regions.items():
        _outline(figure, name, region, row, column)
    return figure


def _outline(figure: go.Figure, name: str, region: Region, row: Concept, column: Concept) -> None:
    """Outline a region on a map of two concepts: one rectangle per range of levels without gaps."""
    if not {row.name, column.name} & set(region.allowed):
        return
    (left, right), *more_columns = _ranges(region.allowed.get(column.name, range(len(column))))
    (bottom, upper), *more_rows = _ranges(region.allowed.get(row.name, range(len(row))))
    narrower = region.items or set(region.allowed) - {row.name, column.name}
    for y0, y1 in ((bottom, upper), *more_rows):
        for x0, x1 in ((left, right), *more_columns):
            for colour, width, dash in (("#fff", 7, "solid"), ("#000", 3, "dash" if narrower else "solid")):
                line = {"color": colour, "width": width, "dash": dash}
                figure.add_shape(type="rect", x0=x0 - 0.5, x1=x1 + 0.5, y0=y0 - 0.5, y1=y1 + 0.5, line=line)
    taken = sum((note.x, note.y) == (left - 0.5, upper + 0.5) for note in figure.layout.annotations)
    figure.add_annotation(
        x=left - 0.5, y=upper + 0.5, xanchor="left", yanchor="middle", xshift=4 + 30 * taken, text=plotly_text(name),
        showarrow=False, bgcolor="#000", bordercolor="#fff", borderpad=2, font={"color": "#fff", "size": 11},
    )  # fmt: skip


def _ranges(levels: Iterable[int]) -> list[tuple[int, int]]:
    """Split levels into ranges without gaps, (first, last)."""
    ranges: list[tuple[int, int]] = []
    for level in sorted(levels):
        if ranges and ranges[-1][1] == level - 1:
            ranges[-1] = (ranges[-1][0], level)
        else:
            ranges.append((level, level))
    return ranges


def change_map(row: Concept, column: Concept, rates: pd.DataFrame, top: float) -> go.Figure:
    """Draw rate after minus rate before over two concepts, in points; `top` is the share at the scale's end."""
    shape = (len(row), len(column))
    grid = np.array(rounded(100 * (rates["rate_after"] - rates["rate_before"]), 2), dtype=object).reshape(shape)
    both = zip(rounded(rates["rate_before"]), rounded(rates["rate_after"]), strict=True)
    custom = np.array([list(pair) for pair in both], dtype=object).reshape(*shape, 2)
    hover = (
        "<b>%{z:+.0f} percentage points</b><br>%{customdata[0]:.1%} before, %{customdata[1]:.1%} after"
        f"{_place(row, column)}"
    )
    ends = (-100 * top, 100 * top)
    labels: Callable[[float], str] = lambda value: whole_points(value / 100)  # noqa: E731
    return _grid(row, column, grid, hover, CHANGE_SCALE, ends, labels=labels, form="+.0f", customdata=custom.tolist())


def policy_map(row: Concept, column: Concept, policy: pd.DataFrame, what: str = "policy_mean") -> go.Figure:
    """Draw how often the trained policy would probe each pair of levels, relative to its share of use (1).

    Args:
        row: the concept whose levels are rows.
        column: the concept whose levels are columns.
        policy: one row per pair of levels, in row-major order.
        what: the mean over items, or "policy_std", the standard deviation over them in the same unit.
    """
    relative = policy[what] / policy["use"] * (policy["use"].sum() / policy["policy_mean"].sum())
    grid = np.array(rounded(relative, 3), dtype=object).reshape(len(row), len(column))
    top = max(2.0, math.ceil(float(np.nanmax(relative.to_numpy(dtype=float), initial=0.0))))
    hover = f"<b>%{{z:.2f}} × as often as in use</b>{_place(row, column)}"
    return _grid(row, column, grid, hover, POLICY_SCALE, (0, top), labels="{:.1f}".format, form=".1f")


def _place(row: Concept, column: Concept) -> str:
    return f"<br>{plotly_text(row.name)} %{{y}}<br>{plotly_text(column.name)} %{{x}}<extra></extra>"


def _grid(
    row: Concept,
    column: Concept,
    grid: np.ndarray,
    hover: str,
    scale: Scale,
    ends: tuple[float, float],
    *,
    labels: Callable[[float], str],
    form: str = ".0%",
    **more: Any,
) -> go.Figure:
    """Draw fields of two concepts, each with its number in black or white, or with a colour bar if they are many."""
    readable = len(row) <= 12 and len(column) <= 9
    cells = go.Heatmap(
        z=grid.tolist(),
        zmin=ends[0],
        zmax=ends[1],
        colorscale=scale,
        showscale=not readable,
        hovertemplate=hover,
        xgap=2,
        ygap=2,
        **({} if readable else {"colorbar": _colorbar(tickformat=form)}),
        **more,
    )
    axes = {
        "xaxis": axis(column, automargin=True, range=[-0.5, len(column) - 0.5], zeroline=False, showgrid=False),
        "yaxis": axis(row, automargin=True, range=[-0.5, len(row) - 0.5], zeroline=False, showgrid=False),
    }
    fields = [(i, j, value) for i, line in enumerate(grid.tolist()) for j, value in enumerate(line)]
    known = [field for field in fields if readable and field[2] is not None]
    shares = [(value - ends[0]) / (ends[1] - ends[0]) for _, _, value in known]
    numbers = go.Scatter(
        x=[j for _, j, _ in known],
        y=[i for i, _, _ in known],
        mode="text",
        text=[labels(value) for *_, value in known],
        textfont={"color": [ink_on(colour_at(scale, share)) for share in shares]},
        hoverinfo="skip",
    )
    return bare_figure([cells, numbers] if known else [cells], **axes)
