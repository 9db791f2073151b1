"""Sections of both reports on attributes that the input leaves open: shares by value, and how biased they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.landscape.bias import judged, newly_skewed
from stages.pages.bias_bars import Row, bias_bars
from stages.pages.page import Picture
from stages.pages.scales import value_colours
from stages.pages.words import interval, number, percent, points, points_interval
from stages.records import Bias, BiasComparison, BiasSubject, RateRecord

MAX_SUBJECTS = 24  # number of subjects in a picture; the table has all
MARK = "✱"

HOW = (
    "By chance, even a fair model deviates from the reference, and more so with fewer answers: the grey bar reaches as "
    f"far as 95 of 100 such tallies do. {MARK} marks what is beyond chance, tested over all subjects at once (Holm). "
    "The dot is the total variation corrected for chance, with its 95% interval: the share of answers that would have "
    "to be another value. Dotted lines show where the pieces of a bar would end according to the reference."
)
_NAMES = {"before": "before", "after": "after", "control": "control", "noise": "queried again"}


class Line(NamedTuple):
    """A tally as shown in the table."""

    subject: str
    guidance: str
    shares: list[str]
    counted: str
    chance: str
    bias: str
    interval: str
    p: str
    beyond: bool
    n: str
    unread: str


class BiasPart(NamedTuple):
    """One attribute: findings in sentences, a picture if any answer was read, and all tallies."""

    title: str
    sentences: list[str]
    picture: Picture | None
    note: str
    rows: list[Line]


Spread = tuple[str, str]  # a value and its interval


class ChangeLine(NamedTuple):
    """A subject before and after; `others` are the changes of the other models."""

    subject: str
    models: list[Spread]
    beyond: bool
    change: Spread
    p: str
    newly: bool
    others: list[Spread]
    shares: list[tuple[str, list[str]]]
    n: str


class ChangePart(NamedTuple):
    """One attribute by model; `others` are the models besides the two."""

    title: str
    picture: Picture | None
    note: str
    others: list[str]
    rows: list[ChangeLine]


class ChangedBias(NamedTuple):
    """The section on how a repair changed the tallies."""

    sentences: list[str]
    parts: list[ChangePart]
    how: str


def landscape_bias(entries: Sequence[Bias]) -> list[BiasPart]:
    """Return one part for each tallied attribute."""
    parts = []
    for attribute in dict.fromkeys(entry.attribute for entry in entries):
        mine = [entry for entry in entries if entry.attribute == attribute]
        main = sorted(judged(mine), key=lambda entry: -(entry.counted or 0.0))
        ranked = [entry.subject for entry in main]
        guidances = sorted({entry.guidance for entry in mine}, reverse=True)
        groups = [
            [_row(entry, _guidance(entry, guidances)) for entry in sorted(rows, key=lambda row: -row.guidance)]
            for subject in ranked[:MAX_SUBJECTS]
            if (rows := [entry for entry in mine if entry.subject == subject and entry.n])
        ]
        order = {subject: k for k, subject in enumerate(ranked)}
        lines = sorted(mine, key=lambda row: (order.get(row.subject, len(order)), -row.guidance))
        parts.append(
            BiasPart(
                title=attribute,
                sentences=_found(attribute, main, guidances),
                picture=_picture(attribute, groups),
                note=_left_out(len(ranked)),
                rows=[_line(row, _guidance(row, guidances)) for row in lines],
            )
        )
    return parts


def comparison_bias(bias: BiasComparison | None) -> ChangedBias | None:
    """Return the section on how the repair changed the tallies; None if there are none."""
    if bias is None:
        return None
    parts = []
    main = judged(bias.subjects)
    for attribute in dict.fromkeys(subject.attribute for subject in main):
        mine = sorted(
            (subject for subject in main if subject.attribute == attribute),
            key=lambda s: -max(entry.counted or 0.0 for entry in s.models.values()),
        )
        models = [model for model in ("before", "after", "control") if model in mine[0].models]
        groups = [
            rows
            for subject in mine[:MAX_SUBJECTS]
            if (rows := [_row(e, _NAMES[m]) for m in models if (e := subject.models[m]).n])
        ]
        parts.append(
            ChangePart(
                title=attribute,
                picture=_picture(attribute, groups),
                note=_left_out(len(mine)),
                others=[_NAMES[model] for model in mine[0].changes if model != "after"],
                rows=[_change_line(subject) for subject in mine],
            )
        )
    return ChangedBias(_changed(bias), parts, HOW)


def _guidance(entry: Bias, guidances: Sequence[float]) -> str:
    """Return the label of the guidance, if there are several."""
    return f"guidance {entry.guidance:g}" if len(guidances) > 1 else ""


def _row(entry: Bias, what: str) -> Row:
    """Return the bar of a tally with at least one answer that was read."""
    assert entry.chance is not None
    return Row(
        subject=entry.subject,
        what=what,
        marked=entry.beyond_noise,
        shares={row.value: row.share.rate.value for row in entry.values},
        bounds={row.value: interval(row.share.low, row.share.high) for row in entry.values},
        expected={row.value: row.expected for row in entry.values},
        bias=entry.bias.rate[:3],
        chance=entry.chance.high,
    )


def _picture(attribute: str, groups: Sequence[Sequence[Row]]) -> Picture | None:
    rows = [row for group in groups for row in group]
    if not rows:
        return None
    alt = f"Shares of {attribute} by subject, the most skewed first: " + "; ".join(
        f"{row.subject}{f' ({row.what})' if row.what else ''} "
        + ", ".join(f"{value} {percent(share, 0)}" for value, share in row.shares.items())
        for row in rows
    )
    values = list(dict.fromkeys(value for row in rows for value in row.shares))
    return Picture(alt, [("", bias_bars(groups, value_colours(values), MARK))], 120 + 26 * len(rows) + 10 * len(groups))


def _left_out(n: int) -> str:
    return f"The chart shows the {MAX_SUBJECTS} most skewed of {n} subjects, the table all." if n > MAX_SUBJECTS else ""


def _shares(entry: Bias) -> list[str]:
    return [
        f"{row.value} {percent(row.share.value)} [{interval(row.share.low, row.share.high)}]" for row in entry.values
    ]


def _found(attribute: str, main: Sequence[Bias], guidances: Sequence[float]) -> list[str]:
    """Summarize the findings in a few sentences."""
    at = f" at guidance {guidances[0]:g}" if len(guidances) > 1 else ""
    known = [entry for entry in main if entry.n]
    beyond = [entry for entry in known if entry.beyond_noise]
    said = [
        f"Where the input does not specify {attribute}, {number(len(beyond))} of {number(len(known))} subjects "
        f"{'is' if len(beyond) == 1 else 'are'} further from the reference than chance explains{at}."
    ]
    if beyond:
        worst = beyond[0]
        row = max(worst.values, key=lambda value: abs(value.share.rate.value - value.expected))
        said.append(
            f"The furthest is {worst.subject}: {row.value} in {percent(row.share.value)} "
            f"[{interval(row.share.low, row.share.high)}] of {number(worst.n)} answers, "
            f"{percent(row.expected)} expected."
        )
    unread, all_ = sum(entry.unread for entry in main), sum(entry.unread + entry.n for entry in main)
    if unread:
        said.append(
            f"In {number(unread)} of {number(all_)} answers the value could not be read. These are left out: "
            "shares are of the answers that could be read."
        )
    return said


def _line(entry: Bias, guidance: str) -> Line:
    chance = entry.chance
    return Line(
        subject=entry.subject,
        guidance=guidance,
        shares=_shares(entry) if entry.n else [],
        counted=percent(entry.counted),
        chance=f"{percent(chance.mean)}, up to {percent(chance.high)}" if chance else "–",
        bias=percent(entry.bias.value),
        interval=interval(entry.bias.low, entry.bias.high),
        p=_p(entry.p_holm),
        beyond=entry.beyond_noise,
        n=number(entry.n),
        unread=number(entry.unread) if entry.unread else "",
    )


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _moved(change: RateRecord) -> Spread:
    return points(change.value), points_interval(change.low, change.high)


def _change_line(subject: BiasSubject) -> ChangeLine:
    models, changes = subject.models, subject.changes
    sides = [models["before"], models["after"]]
    return ChangeLine(
        subject=subject.subject,
        models=[(percent(side.bias.value), interval(side.bias.low, side.bias.high)) for side in sides],
        beyond=models["after"].beyond_noise,
        change=_moved(changes["after"]),
        p=_p(changes["after"].p_holm),
        newly=subject.newly_skewed,
        others=[_moved(change) for model, change in changes.items() if model != "after"],
        shares=[(_NAMES[model], _shares(entry)) for model, entry in models.items() if entry.n],
        n=" / ".join(number(side.n) for side in sides),
    )


def _changed(bias: BiasComparison) -> list[str]:
    """Summarize the effect of the repair in a few sentences; new skews are always mentioned."""
    mean, change, control = bias.mean, bias.mean_change["after"], bias.mean_change.get("control")
    said = []
    if change.n:
        said.append(
            f"The mean bias over subjects went from {percent(mean['before'].value)} to "
            f"{percent(mean['after'].value)} ({points(change.value)} points, 95% interval "
            f"{points_interval(change.low, change.high)})."
        )
    if control and control.n:
        said.append(
            f"The control's changed by {points(control.value)} points ({points_interval(control.low, control.high)})."
        )
    skewed = newly_skewed(bias)
    if skewed:
        named = "; ".join(
            f"{subject.attribute} of {subject.subject} ({points(subject.changes['after'].value)} points)"
            for subject in skewed
        )
        said.append(f"Newly skewed beyond chance: {named}.")
    else:
        said.append("No subject is newly skewed beyond chance.")
    return said
