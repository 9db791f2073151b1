"""Sections of both reports on attributes that the input leaves open: shares by value, and how biased they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from stages.landscape.bias import at_highest_guidance, newly_skewed
from stages.pages.figures import ABOVE, BEFORE, GREY, bare_figure, plotly_text, rounded, value_colours, whiskers
from stages.pages.page import Picture
from stages.pages.words import interval, number, percent, points, points_interval, with_interval
from stages.records import Bias, BiasComparison, BiasSubject
from stages.records.bias import ValueShare

MAX_SUBJECTS = 24  # number of subjects in a picture; the table has all
MARK = "✱"

HOW = (
    "By chance, even a fair model deviates from the reference, and more so with fewer answers: the grey bar reaches as "
    f"far as 95 of 100 such tallies do. {MARK} marks what is beyond chance, tested over all subjects at once (Holm). "
    "The dot is the total variation corrected for chance, with its 95% interval: the share of answers that would have "
    "to be another value. Dotted lines show where the pieces of a bar would end according to the reference."
)
MODELS = {"before": "before", "after": "after", "control": "control", "noise": "queried again"}
_DRAWN = {"before", "after", "control"}

Bar = tuple[str, Bias]  # name of the bar (a model, a guidance), empty if its subject has only one; and a tally


class BiasPart(NamedTuple):
    """One attribute: findings in sentences, a picture if any answer was read, and all tallies, the most skewed first.

    `guidance` says whether there are several.
    """

    title: str
    sentences: list[str]
    picture: Picture | None
    note: str
    rows: list[Bias]
    guidance: bool


class ChangePart(NamedTuple):
    """One attribute by model, the most skewed subject first."""

    title: str
    picture: Picture | None
    note: str
    rows: list[BiasSubject]


def landscape_bias(entries: Sequence[Bias]) -> list[BiasPart]:
    """Return one part for each tallied attribute."""
    parts = []
    for attribute in dict.fromkeys(entry.attribute for entry in entries):
        mine = [entry for entry in entries if entry.attribute == attribute]
        main = sorted(at_highest_guidance(mine), key=lambda entry: -(entry.counted or 0.0))
        order = {entry.subject: k for k, entry in enumerate(main)}
        guidances = sorted({entry.guidance for entry in mine}, reverse=True)
        rows = sorted(mine, key=lambda row: (order.get(row.subject, len(order)), -row.guidance))
        groups = [
            [
                (f"guidance {row.guidance:g}" if len(guidances) > 1 else "", row)
                for row in rows
                if row.subject == subject
            ]
            for subject in list(order)[:MAX_SUBJECTS]
        ]
        sentences = _findings(attribute, main, guidances)
        picture = _picture(attribute, groups)
        parts.append(BiasPart(attribute, sentences, picture, _left_out(len(main)), rows, len(guidances) > 1))
    return parts


def changed_bias(bias: BiasComparison | None) -> tuple[list[str], list[ChangePart]] | None:
    """Return sentences on how a repair changed the tallies, and one part for each attribute; None without tallies."""
    if bias is None:
        return None
    main, parts = at_highest_guidance(bias.subjects), []
    for attribute in dict.fromkeys(subject.attribute for subject in main):
        rows = sorted(
            (subject for subject in main if subject.attribute == attribute),
            key=lambda subject: -max(entry.counted or 0.0 for entry in subject.models.values()),
        )
        groups = [
            [(name, subject.models[model]) for model, name in MODELS.items() if model in _DRAWN & subject.models.keys()]
            for subject in rows[:MAX_SUBJECTS]
        ]
        parts.append(ChangePart(attribute, _picture(attribute, groups), _left_out(len(rows)), rows))
    return _changes(bias), parts


def _left_out(n: int) -> str:
    return f"The chart shows the {MAX_SUBJECTS} most skewed of {n} subjects, the table all." if n > MAX_SUBJECTS else ""


def _findings(attribute: str, main: Sequence[Bias], guidances: Sequence[float]) -> list[str]:
    """Summarize the findings in a few sentences; `main` are the tallies that are judged, the most skewed first."""
    at = f" at guidance {guidances[0]:g}" if len(guidances) > 1 else ""
    known = [entry for entry in main if entry.n]
    beyond = [entry for entry in known if entry.beyond_noise]
    sentences = [
        f"Where the input does not specify {attribute}, {number(len(beyond))} of {number(len(known))} subjects "
        f"{'is' if len(beyond) == 1 else 'are'} further from the reference than chance explains{at}."
    ]
    if beyond:
        worst = beyond[0]
        row = max(worst.values, key=lambda value: abs(value.share.rate.value - value.expected))
        sentences.append(
            f"The furthest is {worst.subject}: {row.value} in {with_interval(row.share)} of {number(worst.n)} answers, "
            f"{percent(row.expected)} expected."
        )
    unread, all_ = sum(entry.unread for entry in main), sum(entry.unread + entry.n for entry in main)
    if unread:
        sentences.append(
            f"In {number(unread)} of {number(all_)} answers the value could not be read. These are left out: "
            "shares are of the answers that could be read."
        )
    return sentences


def _changes(bias: BiasComparison) -> list[str]:
    """Summarize the effect of the repair in a few sentences; new skews are always mentioned."""
    mean, change, control = bias.mean, bias.mean_change["after"], bias.mean_change.get("control")
    sentences = []
    if change.n:
        sentences.append(
            f"The mean bias over subjects went from {percent(mean['before'].value)} to "
            f"{percent(mean['after'].value)} ({points(change.value)} points, 95% interval "
            f"{points_interval(change.low, change.high)})."
        )
    if control and control.n:
        sentences.append(
            f"The control's changed by {points(control.value)} points ({points_interval(control.low, control.high)})."
        )
    named = "; ".join(
        f"{subject.attribute} of {subject.subject} ({points(subject.changes['after'].value)} points)"
        for subject in newly_skewed(bias)
    )
    sentences.append(f"Newly skewed beyond chance: {named}." if named else "No subject is newly skewed beyond chance.")
    return sentences


def _picture(attribute: str, groups: Sequence[Sequence[Bar]]) -> Picture | None:
    """Draw the tallies of each subject that have an answer that was read; None if there are none."""
    groups = [read for bars in groups if (read := [bar for bar in bars if bar[1].n])]
    bars = [bar for group in groups for bar in group]
    if not bars:
        return None
    alt = f"Shares of {attribute} by subject, the most skewed first: " + "; ".join(
        f"{entry.subject}{f' ({name})' if name else ''} "
        + ", ".join(f"{row.value} {percent(row.share.value, 0)}" for row in entry.values)
        for name, entry in bars
    )
    return Picture(alt, [("", bias_bars(groups))], 120 + 26 * len(bars) + 10 * len(groups))


def bias_bars(groups: Sequence[Sequence[Bar]]) -> go.Figure:
    """Draw shares by value as stacked bars with marks at the reference, and beside them the distance from it.

    Args:
        groups: the bars of each subject, from the top; each has an answer that was read.
    """
    entries = [entry for group in groups for _, entry in group]
    at = [i + 0.4 * k for i, k in enumerate(k for k, group in enumerate(groups) for _ in group)]
    by_value = [{row.value: row for row in entry.values} for entry in entries]
    colours = value_colours(list(dict.fromkeys(value for rows in by_value for value in rows)))
    traces: list[Any] = []
    for value, colour in colours.items():
        found = [rows.get(value) for rows in by_value]
        shares = [row.share.rate.value if row else 0.0 for row in found]
        spreads = [
            [interval(row.share.low, row.share.high) if row else "–", row.expected if row else 0.0] for row in found
        ]
        traces.append(
            go.Bar(
                x=rounded(shares),
                y=rounded(at, 1),
                orientation="h",
                width=0.8,
                name=plotly_text(value),
                marker={"color": colour, "line": {"color": GREY, "width": 1}},
                customdata=spreads,
                text=[f"{share:.0%}" if share >= 0.08 else "" for share in shares],
                textposition="inside",
                insidetextanchor="middle",
                textangle=0,
                hovertemplate=f"<b>{plotly_text(value)} %{{x:.1%}}</b><br>95% interval %{{customdata[0]}}<br>"
                "expected %{customdata[1]:.1%}<extra></extra>",
            )
        )
    return bare_figure(
        [*traces, _reference(by_value, list(colours), at), *_distances(entries, at)],
        barmode="stack",
        xaxis={"domain": [0, 0.62], "range": [0, 1], "tickformat": ".0%", "title": {"text": "shares"}},
        xaxis2={
            "domain": [0.72, 1],
            "range": [-0.03, 1.05 * max(max(entry.bias.rate.high, _chance(entry)) for entry in entries)],
            "nticks": 4,
            "tickangle": 0,
            "tickformat": ".0%",
            "zeroline": False,
            "title": {"text": "bias"},
        },
        yaxis={
            "tickvals": rounded(at, 1),
            "ticktext": _names(groups, 40, brief=False),
            "automargin": True,
            "range": [at[-1] + 0.6, -0.6],
            "showgrid": False,
        },
        showlegend=True,
        legend={**ABOVE, "traceorder": "normal"},
        margin={"l": 16, "r": 16, "t": 48, "b": 48},
        meta={"short": _names(groups, 14, brief=True)},
    )


def _chance(entry: Bias) -> float:
    """Return the total variation that 95 of 100 tallies do not exceed by chance alone."""
    assert entry.chance is not None
    return entry.chance.high


def _names(groups: Sequence[Sequence[Bar]], limit: int, *, brief: bool) -> list[str]:
    """Return the labels of bars, marked if beyond chance; the first of a subject has its name, in brief that alone."""
    several = any(len(group) > 1 for group in groups)
    names = []
    for group in groups:
        for k, (name, entry) in enumerate(group):
            first = f"{entry.subject}, {name}" if several and name and not brief else entry.subject
            names.append(plotly_text(name if k else first, limit) + (f" {MARK}" if entry.beyond_noise else ""))
    return names


def _reference(by_value: Sequence[Mapping[str, ValueShare]], values: Sequence[str], at: Sequence[float]) -> go.Scatter:
    """Draw where the pieces of each bar would end according to the reference."""
    x: list[float | None] = []
    y: list[float | None] = []
    for rows, height in zip(by_value, at, strict=True):
        for end in np.cumsum([rows[value].expected if value in rows else 0.0 for value in values])[:-1]:
            x += [round(float(end), 4), round(float(end), 4), None]
            y += [round(height - 0.5, 1), round(height + 0.5, 1), None]
    line = {"color": GREY, "width": 2, "dash": "dot"}
    return go.Scatter(x=x, y=y, mode="lines", name="reference", line=line, hoverinfo="skip")


def _distances(entries: Sequence[Bias], at: Sequence[float]) -> list[Any]:
    """Draw the total variation corrected for chance with its interval, on a bar of what chance alone explains."""
    second: dict[str, Any] = {"xaxis": "x2", "y": rounded(at, 1), "showlegend": False}
    value, low, high = np.array([entry.bias.rate[:3] for entry in entries]).T
    return [
        go.Bar(
            x=rounded([_chance(entry) for entry in entries]),
            orientation="h",
            width=0.8,
            marker={"color": "rgba(138,143,152,0.35)"},
            hovertemplate="chance alone: up to %{x:.1%}<extra></extra>",
            **second,
        ),
        go.Scatter(
            x=rounded(value),
            mode="markers",
            marker={"color": BEFORE, "size": 9},
            error_x=whiskers(value, low, high, width=3),
            customdata=np.round(np.stack([low, high], axis=1), 4).tolist(),
            hovertemplate="<b>bias %{x:.1%}</b><br>95% interval %{customdata[0]:.1%} – %{customdata[1]:.1%}"
            "<extra></extra>",
            **second,
        ),
    ]
