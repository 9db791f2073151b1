"""Chart of tallies: the shares of each subject, and their distance from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from stages.pages.figures import bare_figure
from stages.pages.scales import BEFORE, plain, rounded


class Row(NamedTuple):
    """A bar of shares by value, and their distance from the expected ones.

    Args:
        subject: what was requested.
        what: name of the bar (a model, a guidance); empty if the subject has only one.
        marked: whether the distance is beyond chance.
        shares: by value, in the order of the bar's pieces.
        bounds: of the shares, formatted.
        expected: shares by value.
        bias: total variation, corrected for chance, with its interval.
        chance: total variation that 95 of 100 tallies do not exceed by chance alone.
    """

    subject: str
    what: str
    marked: bool
    shares: Mapping[str, float]
    bounds: Mapping[str, str]
    expected: Mapping[str, float]
    bias: tuple[float, float, float]
    chance: float


def bias_bars(groups: Sequence[Sequence[Row]], colours: Mapping[str, str], mark: str) -> go.Figure:
    """Draw shares by value as stacked bars with marks at the reference, and beside them the distance from it.

    Args:
        groups: the rows of each subject, from the top.
        colours: by value.
        mark: appended to the names of rows that are beyond chance.
    """
    rows = [row for group in groups for row in group]
    at = [i + 0.4 * k for i, k in enumerate(k for k, group in enumerate(groups) for _ in group)]
    traces: list[Any] = []
    for value, colour in colours.items():
        share = [row.shares.get(value, 0.0) for row in rows]
        traces.append(
            go.Bar(
                x=rounded(share),
                y=rounded(at, 1),
                orientation="h",
                width=0.8,
                name=plain(value),
                marker={"color": colour, "line": {"color": "#8a8f98", "width": 1}},
                customdata=[[row.bounds.get(value, "–"), row.expected.get(value, 0.0)] for row in rows],
                text=[f"{s:.0%}" if s >= 0.08 else "" for s in share],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                hovertemplate=f"<b>{plain(value)} %{{x:.1%}}</b><br>95% interval %{{customdata[0]}}<br>"
                "expected %{customdata[1]:.1%}<extra></extra>",
            )
        )
    ends: list[tuple[float | None, float | None]] = []
    for row, y in zip(rows, at, strict=True):
        for end in np.cumsum([row.expected.get(value, 0.0) for value in colours])[:-1]:
            ends += [(round(float(end), 4), round(y - 0.5, 1)), (round(float(end), 4), round(y + 0.5, 1)), (None, None)]
    x, y_ends = zip(*ends, strict=True) if ends else ((), ())
    reference = {"color": "#8a8f98", "width": 2, "dash": "dot"}
    traces.append(go.Scatter(x=x, y=y_ends, mode="lines", name="reference", line=reference, hoverinfo="skip"))
    value_, low, high = (np.array(column) for column in zip(*(row.bias for row in rows), strict=True))
    second: dict[str, Any] = {"xaxis": "x2", "y": rounded(at, 1), "showlegend": False}
    traces += [
        go.Bar(
            x=rounded([row.chance for row in rows]),
            orientation="h",
            width=0.8,
            marker={"color": "rgba(138,143,152,0.35)"},
            hovertemplate="chance alone: up to %{x:.1%}<extra></extra>",
            **second,
        ),
        go.Scatter(
            x=rounded(value_),
            mode="markers",
            marker={"color": BEFORE, "size": 9},
            error_x={
                "array": rounded(high - value_),
                "arrayminus": rounded(value_ - low),
                "thickness": 1.5,
                "width": 3,
            },
            customdata=np.round(np.stack([low, high], axis=1), 4).tolist(),
            hovertemplate="<b>bias %{x:.1%}</b><br>95% interval %{customdata[0]:.1%} – %{customdata[1]:.1%}"
            "<extra></extra>",
            **second,
        ),
    ]
    several = any(len(group) > 1 for group in groups)
    firsts = [k == 0 for group in groups for k in range(len(group))]
    marks = [f" {mark}" if row.marked else "" for row in rows]
    names = [
        (row.what if not first else f"{row.subject}, {row.what}" if several and row.what else row.subject)
        for row, first in zip(rows, firsts, strict=True)
    ]
    brief = [row.subject if first else row.what for row, first in zip(rows, firsts, strict=True)]
    farthest = max(float(high.max()), *(row.chance for row in rows))
    yaxis = {
        "tickvals": rounded(at, 1),
        "ticktext": [plain(name, 40) + end for name, end in zip(names, marks, strict=True)],
        "automargin": True,
    }
    return bare_figure(
        traces,
        barmode="stack",
        xaxis={"domain": [0, 0.62], "range": [0, 1], "tickformat": ".0%", "title": {"text": "shares"}},
        xaxis2={
            "domain": [0.72, 1],
            "range": [-0.03, 1.05 * farthest],
            "nticks": 4,
            "tickangle": 0,
            "tickformat": ".0%",
            "zeroline": False,
            "title": {"text": "bias"},
        },
        yaxis={**yaxis, "range": [at[-1] + 0.6, -0.6], "showgrid": False},
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": 16, "r": 16, "t": 48, "b": 48},
        meta={"short": [plain(name, 14) + end for name, end in zip(brief, marks, strict=True)]},
    )
