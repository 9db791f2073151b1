"""The page of `faded history`: the last results of audits in one table, and their failure rates in one chart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import plotly.graph_objects as go

from flows.views.history import History
from stages.pages.figures import VALUE_COLOURS, WITH_LEGEND, bare_figure, plotly_text, rounded
from stages.pages.page import Picture, render
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


def write_history_page(out: Path, histories: Sequence[History]) -> None:
    """Write the histories as one self-contained page, with the failure rates of all audits in one chart."""
    newest = "; ".join(f"{one.audit}: {percent(one.results[0].rate.value)}" for one in histories)
    picture = Picture(f"Failure rates by date, the last ones: {newest}.", [("", _figure(histories))], 380)
    render("history.html.j2", out, lines=histories, picture=picture, skipped=[], provenance=[], limits=LIMITS)


def _figure(histories: Sequence[History]) -> go.Figure:
    traces = []
    for history, colour in zip(histories, cycle(VALUE_COLOURS), strict=False):
        results = [result for result in reversed(history.results) if result.rate.n]
        rates = [result.rate for result in results]
        traces.append(
            go.Scatter(
                x=[result.when.strftime("%Y-%m-%d %H:%M") for result in results],
                y=rounded([rate.value for rate in rates]),
                error_y={
                    "array": rounded([rate.high - rate.value for rate in rates]),
                    "arrayminus": rounded([rate.value - rate.low for rate in rates]),
                },
                mode="lines+markers",
                name=plotly_text(history.audit),
                text=[f"{result.revision}: {result.word}" for result in results],
                line={"color": colour, "width": 2.5},
                marker={"size": 9, "symbol": ["x" if result.passed is False else "circle" for result in results]},
                hovertemplate="%{y:.1%} on %{x}, %{text}<extra>" + plotly_text(history.audit) + "</extra>",
            )
        )
    return bare_figure(
        traces,
        **WITH_LEGEND,
        xaxis={"type": "date"},
        yaxis={"title": {"text": "failure rate"}, "tickformat": ".0%", "rangemode": "tozero", "automargin": True},
    )
