"""The pictures of both reports, as plotly figures. Colours, fonts and grids come from the page's own theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stages.concepts import Concept, ConceptSpace, Region
from stages.pages.marginals import marginal
from stages.pages.scales import (
    AFTER,
    BEFORE,
    CHANGE_SCALE,
    CONTROL,
    POLICY_SCALE,
    RATE_SCALE,
    Scale,
    colour_at,
    ink_on,
    plain,
    rounded,
    shade,
    short,
)
from stages.pages.words import percent, whole_points
from stages.records.repair import Dose

# plotly replaces "%{x}" by the tick's label, which is the level as text.
_INTERVAL_HOVER = "%{customdata[0]:.1%} – %{customdata[1]:.1%} (bounds averaged over cells)"


def _axis(concept: Concept, **more: Any) -> dict[str, Any]:
    labels = [plain(concept.label(i), 24) for i in range(len(concept))]
    return {
        "title": {"text": plain(concept.name), "standoff": 12},
        "tickvals": list(range(len(concept))),
        "ticktext": labels,
        **more,
    }


def _scene_axis(concept: Concept) -> dict[str, Any]:
    """Return an axis of a 3D scene; WebGL text supports tags but no entities, so tags are disabled by replacing "<"."""

    def drawn(text: str, limit: int) -> str:
        return short(text, limit).replace("<", "‹")

    labels = [drawn(concept.label(i), 24) for i in range(len(concept))]
    return {"title": {"text": drawn(concept.name, 48)}, "tickvals": list(range(len(concept))), "ticktext": labels}


def _colorbar(**more: Any) -> dict[str, Any]:
    return {"tickformat": ".0%", "thickness": 12, "outlinewidth": 0, "len": 0.9, **more}


def bare_figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """Return a figure without plotly's default template, which would add 7 kB to each."""
    empty = go.layout.Template()
    margin = layout.pop("margin", {"l": 56, "r": 16, "t": 16, "b": 48})
    return go.Figure(data=list(traces), layout={"template": empty, "margin": margin, "showlegend": False, **layout})


def _bounds(table: pd.DataFrame, names: tuple[str, str]) -> list[list[float | None]]:
    if not set(names) <= set(table.columns):
        return [[None, None]] * len(table)
    return [list(pair) for pair in zip(rounded(table[names[0]]), rounded(table[names[1]]), strict=True)]


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
    level = {name: [plain(c.label(int(i)), 24) for i in rates[name]] for name, c in zip(names, concepts, strict=True)}
    hover = "".join(f"{plain(name)} %{{customdata[{k + 2}]}}<br>" for k, name in enumerate(names))
    custom = [
        [*bounds, *labels] for bounds, *labels in zip(_bounds(rates, ("low", "high")), *level.values(), strict=True)
    ]
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
        hovertemplate=f"<b>%{{marker.color:.1%}} fail</b><br>{_INTERVAL_HOVER}<br>{hover}<extra></extra>",
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
    others = [plain(name, 24) for name in space.names if name not in names]
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
    custom = np.array(_bounds(rates, ("low", "high")), dtype=object).reshape(*shape, 2)
    hover = f"<b>%{{z:.1%}} fail</b><br>{_INTERVAL_HOVER}{_place(row, column)}"
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
        x=left - 0.5, y=upper + 0.5, xanchor="left", yanchor="middle", xshift=4 + 30 * taken, text=plain(name),
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
    return f"<br>{plain(row.name)} %{{y}}<br>{plain(column.name)} %{{x}}<extra></extra>"


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
        "xaxis": _axis(column, automargin=True, range=[-0.5, len(column) - 0.5], zeroline=False, showgrid=False),
        "yaxis": _axis(row, automargin=True, range=[-0.5, len(row) - 0.5], zeroline=False, showgrid=False),
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


def effect_view(
    concept: Concept,
    rates: pd.DataFrame,
    top: float,
    highest: float = 0.0,
    others: Mapping[str, pd.DataFrame] = MappingProxyType({}),
) -> go.Figure:
    """Draw the failure rate of each level of one concept with its interval: a line if levels are ordered, else bars.

    Args:
        concept: the concept whose levels are shown.
        rates: one row per level, with rate, low and high.
        top: the rate at the end of the colour scale.
        highest: minimum end of the axis, so that two pictures are comparable.
        others: the same for some of the items, by their name; drawn as lines.
    """
    common = _levels(concept, rates, "#8a8f98")
    rate = np.array(common["y"], dtype=float)
    marker = {"color": rounded(rate), "colorscale": RATE_SCALE, "cmin": 0, "cmax": top}
    if concept.ordered:
        trace = go.Scatter(
            mode="lines+markers", line={"color": "#8a8f98", "width": 1.5}, marker={**marker, "size": 11}, **common
        )
    else:
        colours = [f"rgb{shade(r, top)}" for r in rate]
        trace = go.Bar(marker={"color": colours}, width=0.6, **common)
    traces = [trace.update(name="all items")]
    for (name, table), colour in zip(others.items(), cycle((AFTER, CONTROL, BEFORE)), strict=False):
        mode = "lines+markers" if concept.ordered else "markers"
        line = {"color": colour, "width": 2, "dash": "dot"}
        traces.append(go.Scatter(mode=mode, line=line, name=plain(name), **_levels(concept, table, colour)))
    highs = [float(table[column].max()) for table in (rates, *others.values()) for column in ("rate", "high")]
    ceiling = min(1.0, float(np.nanmax([top, highest, *highs]))) * 1.05
    yaxis = {"tickformat": ".0%", "range": [0, ceiling], "title": {"text": "fails"}, "automargin": True}
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    more = {"showlegend": True, "legend": legend, "margin": {"l": 56, "r": 16, "t": 36, "b": 48}} if others else {}
    return bare_figure(traces, xaxis=_axis(concept, automargin=True), yaxis=yaxis, **more)


def _levels(concept: Concept, rates: pd.DataFrame, colour: str) -> dict[str, Any]:
    """Return the points of a trace: the rates at the levels of a concept that are known, with their intervals."""
    rates = rates.reset_index(drop=True).astype(dict.fromkeys(("rate", "low", "high"), float)).dropna(subset=["rate"])
    whiskers = {
        "array": rounded(rates["high"] - rates["rate"]),
        "arrayminus": rounded(rates["rate"] - rates["low"]),
        "thickness": 1.5,
        "width": 4,
        "color": colour,
    }
    return {
        "x": rates.index.tolist(),
        "y": rounded(rates["rate"]),
        "error_y": whiskers,
        "customdata": _bounds(rates, ("low", "high")),
        "hovertemplate": "<b>%{y:.1%} fail</b><br>95% interval %{customdata[0]:.1%} – %{customdata[1]:.1%}"
        f"<br>{plain(concept.name)} %{{x}}<extra></extra>",
    }


def level_shares(concept: Concept, before: Sequence[float], after: Sequence[float]) -> go.Figure:
    """Draw how often two policies choose each level of a concept, and the uniform share."""
    bars = [
        go.Bar(
            x=list(range(len(concept))),
            y=rounded(shares, 4),
            name=name,
            marker={"color": colour},
            hovertemplate=f"%{{y:.1%}} {name}<br>{plain(concept.name)} %{{x}}<extra></extra>",
        )
        for name, colour, shares in (("before", BEFORE, before), ("after", AFTER, after))
    ]
    line = {"color": "#8a8f98", "dash": "dot", "width": 1}
    chance = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1 / len(concept), "y1": 1 / len(concept)}
    return bare_figure(
        bars,
        barmode="group",
        shapes=[{**chance, "line": line}],
        xaxis=_axis(concept, automargin=True),
        yaxis={"tickformat": ".0%", "rangemode": "tozero", "automargin": True},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
    )


def curves(lines: Sequence[tuple[str, str, str, pd.DataFrame]]) -> go.Figure:
    """Draw failures found against unique probes: one (name, colour, dash, table of probes and failures) per search."""
    traces = []
    for name, colour, dash, table in lines:
        step = max(1, len(table) // 250)
        rows = sorted({*range(0, len(table), step), len(table) - 1}) if len(table) else []
        part = table.iloc[rows]
        traces.append(
            go.Scatter(
                x=part["probes"].tolist(),
                y=part["failures"].tolist(),
                mode="lines",
                name=plain(name),
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate="%{y:,} failures in %{x:,} probes<extra>" + plain(name) + "</extra>",
            )
        )
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    axes = {
        "xaxis": {"title": {"text": "unique probes"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "failures found"}, "rangemode": "tozero", "automargin": True},
    }
    return bare_figure(traces, showlegend=True, legend=legend, margin={"l": 56, "r": 16, "t": 36, "b": 48}, **axes)


def doses(lines: Mapping[str, Sequence[Dose]]) -> go.Figure:
    """Draw rates with their intervals against steps of training, by model: "repair" or "control"."""
    traces = []
    for (name, line), (colour, dash) in zip(lines.items(), ((AFTER, "solid"), (CONTROL, "dash")), strict=False):
        rates = pd.DataFrame([dose.rate.to_json() for dose in line])
        error = {
            "array": rounded(rates["high"] - rates["value"], 4),
            "arrayminus": rounded(rates["value"] - rates["low"], 4),
            "thickness": 1.5,
            "width": 4,
        }
        traces.append(
            go.Scatter(
                x=[dose.steps for dose in line],
                y=rounded(rates["value"], 4),
                error_y={**error, "color": colour},
                mode="lines+markers",
                name=name,
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate="%{y:.1%} after %{x:,} steps<extra>" + name + "</extra>",
            )
        )
    return bare_figure(
        traces,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
        xaxis={"title": {"text": "training steps"}, "rangemode": "tozero"},
        yaxis={"tickformat": ".0%", "rangemode": "tozero", "automargin": True},
    )


def calibration(bins: pd.DataFrame) -> go.Figure:
    """Draw observed against estimated failure rates; columns estimated, observed, low, high, probes."""
    error = {
        "array": rounded(bins["high"] - bins["observed"]),
        "arrayminus": rounded(bins["observed"] - bins["low"]),
        "thickness": 1.5,
        "width": 4,
        "color": "#8a8f98",
    }
    seen = go.Scatter(
        x=rounded(bins["estimated"]),
        y=rounded(bins["observed"]),
        error_y=error,
        mode="markers",
        marker={"size": 11, "color": rounded(bins["estimated"]), "colorscale": RATE_SCALE, "cmin": 0, "cmax": 1},
        customdata=bins["probes"].tolist(),
        hovertemplate="<b>%{y:.1%} of %{customdata:,} probes failed</b><br>estimated %{x:.1%}<extra></extra>",
    )
    diagonal = go.Scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": "#8a8f98", "dash": "dot", "width": 1}, hoverinfo="skip"
    )
    axis = {"tickformat": ".0%", "range": [-0.03, 1.03], "automargin": True}
    return bare_figure(
        [diagonal, seen],
        xaxis={**axis, "title": {"text": "estimated rate of the cell"}},
        yaxis={**axis, "title": {"text": "probes that failed"}},
    )


class Dumbbell(NamedTuple):
    """Failure rates before and after, and of the control if there is one; `key` is a shorter name."""

    key: str
    name: str
    before: float | None
    after: float | None
    control: float | None


def dumbbells(rows: Sequence[Dumbbell]) -> go.Figure:
    """Draw failure rates before and after, joined by a line."""
    names = [plain(row.name, 40) for row in rows]
    x: list[float | None] = []
    y: list[int | None] = []
    for i, row in enumerate(rows):
        x += [row.before, row.after, None]
        y += [i, i, None]
    traces = [
        go.Scatter(x=x, y=y, mode="lines", line={"color": "#8a8f98", "width": 3}, hoverinfo="skip", showlegend=False)
    ]
    series = (("before", BEFORE, "circle"), ("after", AFTER, "diamond"), ("control", CONTROL, "x"))
    for key, colour, symbol in series:
        values = [getattr(row, key) for row in rows]
        if any(value is not None for value in values):
            marker = {"color": colour, "size": 12, "symbol": symbol}
            traces.append(
                go.Scatter(
                    x=values,
                    y=list(range(len(rows))),
                    mode="markers",
                    name=key,
                    marker=marker,
                    hovertemplate=f"%{{x:.1%}} fail {key}<extra></extra>",
                )
            )
    yaxis = {
        "tickvals": list(range(len(rows))),
        "ticktext": names,
        "range": [len(rows) - 0.5, -0.5],
        "automargin": True,
    }
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    xaxis = {"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "fails"}}
    return bare_figure(
        traces,
        xaxis=xaxis,
        yaxis=yaxis,
        showlegend=True,
        legend=legend,
        margin={"l": 16, "r": 16, "t": 36, "b": 48},
        meta={"short": [plain(row.key, 20) for row in rows]},  # for narrow screens
    )
