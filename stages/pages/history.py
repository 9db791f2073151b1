"""The page of `faded history`: the last results of audits in one table, and their failure rates in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import plotly.graph_objects as go

from stages.intervals import Rate
from stages.pages.figures import bare_figure
from stages.pages.page import Picture, render
from stages.pages.scales import VALUE_COLOURS, plain, rounded
from stages.pages.words import percent

LIMITS = (
    "The failure rate is that of the model under test in use, as its audit states or assumes it, with its 95% "
    "interval. Audits with other concepts or usages have other rates: compare each audit with itself.",
    "The drift is the difference of two rates of the same grid, usage and data; its interval follows from theirs. For "
    "two revisions `faded compare` says more, because it pairs their common probes.",
    "What changed is what dvc.lock of the two commits says: model, data, decision, settings, and the code of stages.",
    "A result is a commit in which the numbers of an audit changed; who decided is known if its verdict is "
    "in DVC's cache here.",
)


class Point(NamedTuple):
    """A result.

    Args:
        revision: the git revision it is from.
        when: its date.
        passed: its verdict.
        word: the verdict in a word or two.
        rate: the failure rate of the model under test.
        target: the change of the failure rate in the target modes by the repair; None without a repair.
        decided: who decided; empty if no decision was needed, or it is unknown.
        changed: differences from the previous result, in words.
        evidence: the name of the bundle that contains it; empty if there is none.
    """

    revision: str
    when: datetime
    passed: bool | None
    word: str
    rate: Rate
    target: float | None
    decided: str
    changed: str
    evidence: str


class Line(NamedTuple):
    """An audit: its drift in words, and its results, newest first."""

    audit: str
    drift: str
    results: Sequence[Point]


def write_history(out: Path, lines: Sequence[Line]) -> None:
    """Write the results of audits as one self-contained page."""
    told = "; ".join(f"{line.audit}: {percent(line.results[0].rate.value)}" for line in lines)
    picture = Picture(f"Failure rates by date, the last ones: {told}.", [("", _figure(lines))], 380)
    render("history.html.j2", out, lines=lines, picture=picture, skipped=[], provenance=[], limits=LIMITS)


def _figure(lines: Sequence[Line]) -> go.Figure:
    traces = []
    for line, colour in zip(lines, cycle(VALUE_COLOURS), strict=False):
        results = [result for result in reversed(line.results) if result.rate.n]
        rates = [result.rate for result in results]
        traces.append(
            go.Scatter(
                x=[result.when.strftime("%Y-%m-%d %H:%M") for result in results],
                y=rounded([rate.value for rate in rates], 4),
                error_y={
                    "array": rounded([rate.high - rate.value for rate in rates], 4),
                    "arrayminus": rounded([rate.value - rate.low for rate in rates], 4),
                },
                mode="lines+markers",
                name=plain(line.audit),
                text=[f"{result.revision}: {result.word}" for result in results],
                line={"color": colour, "width": 2.5},
                marker={"size": 9, "symbol": ["x" if result.passed is False else "circle" for result in results]},
                hovertemplate="%{y:.1%} on %{x}, %{text}<extra>" + plain(line.audit) + "</extra>",
            )
        )
    return bare_figure(
        traces,
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        margin={"l": 56, "r": 16, "t": 36, "b": 48},
        xaxis={"type": "date"},
        yaxis={"title": {"text": "failure rate"}, "tickformat": ".0%", "rangemode": "tozero", "automargin": True},
    )
