"""The charts of both reports as plotly figures, and their colours and labels; fonts and grids are the page's own."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from stages.concepts import Concept
from stages.records.repair import Dose

RGB = tuple[int, int, int]
Scale = list[tuple[float, str]]  # (share, hexadecimal colour), from 0 to 1

# Plasma without its last, almost white part: perceptually uniform, safe for colour-blind readers, and visible on both
# white and black. Blue passes, orange fails.
RATE_SCALE: Scale = [
    (0.0, "#2d0594"), (0.17, "#6a00a8"), (0.33, "#9c179e"), (0.5, "#c5407e"),
    (0.67, "#e26561"), (0.83, "#f58b46"), (1.0, "#fdb42f"),
]  # fmt: skip
# Blue: fewer failures than before. Orange: more.
CHANGE_SCALE: Scale = [
    (0.0, "#0a4d8c"), (0.25, "#5fa2ce"), (0.5, "#f1f1ee"), (0.75, "#f1a35f"), (1.0, "#a63e00"),
]  # fmt: skip
# Cividis: a separate scale, because how often a policy looks somewhere is not a failure rate.
POLICY_SCALE: Scale = [
    (0.0, "#00224e"), (0.25, "#414d6b"), (0.5, "#7c7b78"), (0.75, "#bcae6c"), (1.0, "#fee838"),
]  # fmt: skip
# For values of an attribute that are not names of colours.
VALUE_COLOURS = ("#6a00a8", "#f58b46", "#2a7fbf", "#c5407e", "#0b6e4f", "#fdb42f", "#8a8f98", "#5fa2ce")
CSS_COLOURS = frozenset(
    (
        *("black", "silver", "gray", "grey", "white", "maroon", "red", "purple", "fuchsia", "magenta", "green", "lime"),
        *("olive", "yellow", "navy", "blue", "teal", "aqua", "cyan", "orange", "pink", "brown", "gold", "violet"),
        *("indigo", "turquoise", "crimson", "salmon", "khaki", "coral", "beige"),
    )
)
GREY = "#8a8f98"
BEFORE, AFTER, CONTROL = "#c5407e", "#2a7fbf", GREY
AGENT = BEFORE


def shade(rate: float, top: float) -> RGB:
    """Return the colour of RATE_SCALE for a rate, as red, green and blue."""
    return colour_at(RATE_SCALE, rate / top)


def colour_at(scale: Scale, share: float) -> RGB:
    """Interpolate a scale at a share, as red, green and blue; shares beyond its ends get the colour of the end."""
    share = min(1.0, max(0.0, share))
    upper = max(1, next(i for i, (at, _) in enumerate(scale) if at >= share))
    (a, first), (b, second) = scale[upper - 1], scale[upper]
    mix = (share - a) / (b - a)
    red, green, blue = (
        round(int(first[k : k + 2], 16) * (1 - mix) + int(second[k : k + 2], 16) * mix) for k in (1, 3, 5)
    )
    return red, green, blue


def ink_on(colour: RGB) -> str:
    """Return black or white, whichever is more readable on a colour; contrast is at least 4.58:1 (WCAG 2.2)."""
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "#000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


def value_colours(values: Sequence[str]) -> dict[str, str]:
    """Return a colour for each value of an attribute: itself if all values are CSS colours, else from the palette."""
    if all(value.lower() in CSS_COLOURS for value in values):
        return {value: value.lower() for value in values}
    return {value: VALUE_COLOURS[k % len(VALUE_COLOURS)] for k, value in enumerate(values)}


def nice_ceiling(values: pd.Series | np.ndarray, least: float = 0.1) -> float:
    """Return the next tenth above the largest value, as the end of a colour scale that several pictures share."""
    highest = float(np.nanmax(np.asarray(values, dtype=float), initial=0.0))
    return min(1.0, max(least, math.ceil(highest * 10 - 1e-9) / 10))


def short(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plotly_text(text: str, limit: int = 48) -> str:
    """Escape a user's text for plotly, which interprets pseudo-HTML, entities and %{templates} in every label."""
    return html.escape(short(text, limit), quote=False).replace("%{", "&#37;{")


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """Round numbers for the page, with None for gaps."""
    return [None if not math.isfinite(v) else round(float(v), digits) for v in np.asarray(values, dtype=float)]


ABOVE = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}  # a legend above the chart
WITH_LEGEND = {"showlegend": True, "legend": ABOVE, "margin": {"l": 56, "r": 16, "t": 36, "b": 48}}


def axis(concept: Concept, **more: Any) -> dict[str, Any]:
    """Return an axis with the levels of a concept, by which plotly replaces "%{x}" in texts on hovering."""
    labels = [plotly_text(concept.label(i), 24) for i in range(len(concept))]
    return {
        "title": {"text": plotly_text(concept.name), "standoff": 12},
        "tickvals": list(range(len(concept))),
        "ticktext": labels,
        **more,
    }


def bare_figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    """Return a figure without plotly's default template, which would add 7 kB to each."""
    empty = go.layout.Template()
    margin = layout.pop("margin", {"l": 56, "r": 16, "t": 16, "b": 48})
    return go.Figure(data=list(traces), layout={"template": empty, "margin": margin, "showlegend": False, **layout})


def whiskers(value: Any, low: Any, high: Any, colour: str = "", width: int = 4) -> dict[str, Any]:
    """Return plotly's error bars from a value and the ends of its interval."""
    value, low, high = (np.asarray(x, dtype=float) for x in (value, low, high))
    error = {"array": rounded(high - value), "arrayminus": rounded(value - low), "thickness": 1.5, "width": width}
    return {**error, "color": colour} if colour else error


def bounds(table: pd.DataFrame) -> list[list[float | None]]:
    """Return (low, high) of each row."""
    return [list(pair) for pair in zip(rounded(table["low"]), rounded(table["high"]), strict=True)]


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
    common = _levels(concept, rates, GREY)
    rate = np.array(common["y"], dtype=float)
    marker = {"color": rounded(rate), "colorscale": RATE_SCALE, "cmin": 0, "cmax": top}
    if concept.ordered:
        trace = go.Scatter(
            mode="lines+markers", line={"color": GREY, "width": 1.5}, marker={**marker, "size": 11}, **common
        )
    else:
        colours = [f"rgb{shade(r, top)}" for r in rate]
        trace = go.Bar(marker={"color": colours}, width=0.6, **common)
    traces = [trace.update(name="all items")]
    for (name, table), colour in zip(others.items(), cycle((AFTER, CONTROL, BEFORE)), strict=False):
        mode = "lines+markers" if concept.ordered else "markers"
        line = {"color": colour, "width": 2, "dash": "dot"}
        traces.append(go.Scatter(mode=mode, line=line, name=plotly_text(name), **_levels(concept, table, colour)))
    highs = [float(table[column].max()) for table in (rates, *others.values()) for column in ("rate", "high")]
    ceiling = min(1.0, float(np.nanmax([top, highest, *highs]))) * 1.05
    yaxis = {"tickformat": ".0%", "range": [0, ceiling], "title": {"text": "fails"}, "automargin": True}
    more = WITH_LEGEND if others else {}
    return bare_figure(traces, xaxis=axis(concept, automargin=True), yaxis=yaxis, **more)


def _levels(concept: Concept, rates: pd.DataFrame, colour: str) -> dict[str, Any]:
    """Return the points of a trace: the rates at the levels of a concept that are known, with their intervals."""
    rates = rates.reset_index(drop=True).astype(dict.fromkeys(("rate", "low", "high"), float)).dropna(subset=["rate"])
    return {
        "x": rates.index.tolist(),
        "y": rounded(rates["rate"]),
        "error_y": whiskers(rates["rate"], rates["low"], rates["high"], colour),
        "customdata": bounds(rates),
        "hovertemplate": "<b>%{y:.1%} fail</b><br>95% interval %{customdata[0]:.1%} – %{customdata[1]:.1%}"
        f"<br>{plotly_text(concept.name)} %{{x}}<extra></extra>",
    }


def level_shares(concept: Concept, before: Sequence[float], after: Sequence[float]) -> go.Figure:
    """Draw how often two policies choose each level of a concept, and the uniform share."""
    bars = [
        go.Bar(
            x=list(range(len(concept))),
            y=rounded(shares, 4),
            name=name,
            marker={"color": colour},
            hovertemplate=f"%{{y:.1%}} {name}<br>{plotly_text(concept.name)} %{{x}}<extra></extra>",
        )
        for name, colour, shares in (("before", BEFORE, before), ("after", AFTER, after))
    ]
    line = {"color": GREY, "dash": "dot", "width": 1}
    chance = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1 / len(concept), "y1": 1 / len(concept)}
    return bare_figure(
        bars,
        barmode="group",
        shapes=[{**chance, "line": line}],
        xaxis=axis(concept, automargin=True),
        yaxis={"tickformat": ".0%", "rangemode": "tozero", "automargin": True},
        **WITH_LEGEND,
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
                name=plotly_text(name),
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate="%{y:,} failures in %{x:,} probes<extra>" + plotly_text(name) + "</extra>",
            )
        )
    axes = {
        "xaxis": {"title": {"text": "unique probes"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "failures found"}, "rangemode": "tozero", "automargin": True},
    }
    return bare_figure(traces, **WITH_LEGEND, **axes)


def doses(lines: Mapping[str, Sequence[Dose]]) -> go.Figure:
    """Draw rates with their intervals against steps of training, by model: "repair" or "control"."""
    traces = []
    for (name, line), (colour, dash) in zip(lines.items(), ((AFTER, "solid"), (CONTROL, "dash")), strict=False):
        rates = pd.DataFrame([dose.rate.to_json() for dose in line])
        traces.append(
            go.Scatter(
                x=[dose.steps for dose in line],
                y=rounded(rates["value"], 4),
                error_y=whiskers(rates["value"], rates["low"], rates["high"], colour),
                mode="lines+markers",
                name=name,
                line={"color": colour, "dash": dash, "width": 2.5},
                hovertemplate="%{y:.1%} after %{x:,} steps<extra>" + name + "</extra>",
            )
        )
    return bare_figure(
        traces,
        **WITH_LEGEND,
        xaxis={"title": {"text": "training steps"}, "rangemode": "tozero"},
        yaxis={"tickformat": ".0%", "rangemode": "tozero", "automargin": True},
    )


def calibration(bins: pd.DataFrame) -> go.Figure:
    """Draw observed against estimated failure rates; columns estimated, observed, low, high, probes."""
    seen = go.Scatter(
        x=rounded(bins["estimated"]),
        y=rounded(bins["observed"]),
        error_y=whiskers(bins["observed"], bins["low"], bins["high"], GREY),
        mode="markers",
        marker={"size": 11, "color": rounded(bins["estimated"]), "colorscale": RATE_SCALE, "cmin": 0, "cmax": 1},
        customdata=bins["probes"].tolist(),
        hovertemplate="<b>%{y:.1%} of %{customdata:,} probes failed</b><br>estimated %{x:.1%}<extra></extra>",
    )
    diagonal = go.Scatter(
        x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot", "width": 1}, hoverinfo="skip"
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
    names = [plotly_text(row.name, 40) for row in rows]
    x: list[float | None] = []
    y: list[int | None] = []
    for i, row in enumerate(rows):
        x += [row.before, row.after, None]
        y += [i, i, None]
    traces = [go.Scatter(x=x, y=y, mode="lines", line={"color": GREY, "width": 3}, hoverinfo="skip", showlegend=False)]
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
    xaxis = {"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "fails"}}
    return bare_figure(
        traces,
        xaxis=xaxis,
        yaxis=yaxis,
        showlegend=True,
        legend=ABOVE,
        margin={"l": 16, "r": 16, "t": 36, "b": 48},
        meta={"short": [plotly_text(row.key, 20) for row in rows]},  # for narrow screens
    )
