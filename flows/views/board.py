"""One page over all audits of a workspace: light, verdict, failure rate, trend, and what waits for whom."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from urllib.parse import quote

from flows.results.glance import Glance, Status
from flows.views.history import History, read_history
from stages.params import Params

_WIDTH, _HEIGHT, _EDGE = 120, 36, 4  # of a trend, in its own units
_RESULTS = 10  # of a trend
LIMITS = (
    "The light is that of the last verdict; it says nothing about stages that became stale since.",
    "The failure rate is that of the model under test in use, before any repair, with its 95% interval. A trend has the"
    " last results in git: one that changed grid, usage or data is not comparable with the one before.",
)


@dataclass(frozen=True)
class TrendPoint:
    """One result in the drawing of a trend: its place, and the ends of its interval."""

    x: float
    y: float
    top: float
    bottom: float


@dataclass(frozen=True)
class BoardRow:
    """One audit on the page, with addresses as (text, address)."""

    glance: Glance
    history: History
    trend: list[TrendPoint]
    links: list[tuple[str, str]]


def board_html(
    params: Params, status: Status, links: Callable[[Glance], list[tuple[str, str]]], title: str = "Audits"
) -> str:
    """The page, which needs no script and loads nothing.

    Args:
        links: the addresses of an audit's report and of whatever waits.
    """
    from stages.pages.page import html_of

    histories = [read_history(params, row.verdict.audit, _RESULTS) for row in status.audits]
    rows = [
        BoardRow(glance, history, trend_of(history), links(glance))
        for glance, history in zip(status.audits, histories, strict=True)
    ]
    return html_of(
        "board.html.j2", scripts=False, title=title, rows=rows, status=status, size=(_WIDTH, _HEIGHT), limits=LIMITS,
        skipped=[], provenance=[],
    )  # fmt: skip


def write_board(params: Params, status: Status, out: Path) -> None:
    """Write the page, with addresses relative to it."""
    from stages.pages.page import save

    def links(glance: Glance) -> list[tuple[str, str]]:
        if (report := glance.verdict.report) is None:
            return []
        return [("report", quote(Path(os.path.relpath(report, out.parent)).as_posix()))]

    save(out, board_html(params, status, links, Path.cwd().name))


def trend_of(history: History) -> list[TrendPoint]:
    """The failure rates of an audit from its oldest result to its newest, on a scale that begins at zero."""
    rates = [result.failure_rate for result in reversed(history.results) if result.failure_rate.n]
    top = max((rate.value if isnan(rate.high) else rate.high for rate in rates), default=0.0) or 1.0
    points = []
    for k, rate in enumerate(rates):
        ends = (rate.value if isnan(one) else one for one in (rate.value, rate.low, rate.high))
        y, low, high = (round(_HEIGHT - _EDGE - one / top * (_HEIGHT - 2 * _EDGE), 1) for one in ends)
        x = _EDGE + k / max(1, len(rates) - 1) * (_WIDTH - 2 * _EDGE)
        points.append(TrendPoint(round(x, 1), y, high, low))
    return points
