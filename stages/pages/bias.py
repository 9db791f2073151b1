"""Sections of both reports on attributes that the input leaves open: shares by value, and how biased they are."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from markupsafe import Markup, escape

from stages.landscape.bias import at_highest_guidance, newly_skewed
from stages.pages.figures import BEFORE, GREY, WIDE, legend, room, shares_axis, short, svg, svg_text, value_colours
from stages.pages.page import Picture
from stages.pages.words import interval, number, percent, points, points_interval, with_interval
from stages.records import Bias, BiasComparison, BiasSubject

MAX_SUBJECTS = 8  # number of subjects in a picture; the table has all
MARK = "✱"

HOW = (
    "By chance, even a fair model deviates from the reference, and more so with fewer answers: the grey bar reaches as "
    f"far as 95 of 100 such tallies do. {MARK} marks what is beyond chance, tested over all subjects at once (Holm). "
    "The dot is the total variation corrected for chance, with its 95% interval: the share of answers that would have "
    "to be another value. Dotted lines show where the pieces of a bar would end according to the reference."
)
MODELS = {"before": "before", "after": "after", "control": "control", "noise": "queried again"}
_DRAWN = {"before", "after"}  # the table has all

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
    return Picture(alt, bias_bars(groups))


def bias_bars(groups: Sequence[Sequence[Bar]]) -> Markup:
    """Draw shares by value as stacked bars, one for each subject, and beside them the distance from the reference."""
    bars = [
        (entry, name) for group in groups for entry, name in zip((one for _, one in group), _names(group), strict=True)
    ]
    colours = value_colours(list(dict.fromkeys(row.value for entry, _ in bars for row in entry.values)))
    width = 1.2 * WIDE
    parts, y = legend(
        [*((value, colour, None) for value, colour in colours.items()), ("reference", GREY, "2 3")], width
    )
    left = 12 + room(name for _, name in bars)
    wide, second = 0.62 * (width - left), left + 0.7 * (width - left)
    axis = shares_axis("", [max(entry.bias.rate.high, _chance(entry)) for entry, _ in bars])
    scale = (width - 24 - second) / axis.high
    firsts = {id(group[0][1]) for group in groups}
    for entry, name in bars:
        y += 6 if id(entry) in firsts else 0
        parts += [svg_text(left - 8, y + 11, name, "end"), *_shares(entry, colours, left, wide, y)]
        value, low, high = (second + scale * max(0.0, end) for end in entry.bias.rate[:3])
        said = f"bias {percent(entry.bias.rate.value)} ({interval(entry.bias.low, entry.bias.high)})"
        chance = f'width="{scale * _chance(entry):.4g}" height="13" fill="{GREY}" opacity="0.35"'
        parts.append(
            f'<rect x="{second:.4g}" y="{y:g}" {chance}><title>by chance: {percent(_chance(entry))}</title></rect>'
        )
        parts.append(f'<path d="M{low:.4g} {y + 6.5:g}H{high:.4g}" stroke="{BEFORE}" stroke-width="1.5"/>')
        parts.append(
            f'<circle cx="{value:.4g}" cy="{y + 6.5:g}" r="4.5" fill="{BEFORE}"><title>{said}</title></circle>'
        )
        y += 17
    parts += [svg_text(left + share * wide, y + 14, percent(share, 0)) for share in (0, 0.5, 1)]
    parts += [svg_text(second + scale * at, y + 14, text) for at, text in axis.ticks[::2]]
    parts += [svg_text(left + wide / 2, y + 30, "shares"), svg_text((second + width) / 2, y + 30, "bias")]
    return svg(width, y + 36, parts)


def _shares(entry: Bias, colours: Mapping[str, str], left: float, wide: float, y: float) -> list[str]:
    """Draw the bar of a tally, and where its pieces would end according to the reference."""
    parts, x, rows = [], left, {row.value: row for row in entry.values}
    for value, colour in colours.items():
        if (row := rows.get(value)) is None:
            continue
        share = row.share.rate.value
        said = f"{value} {with_interval(row.share)}, expected {percent(row.expected)}"
        box = f'x="{x:.4g}" y="{y:g}" width="{wide * share:.4g}" height="13" fill="{colour}" stroke="{GREY}"'
        parts.append(f"<rect {box}><title>{escape(said)}</title></rect>")
        x += wide * share
    for end in list(accumulate(rows[value].expected for value in colours if value in rows))[:-1]:
        at = f"M{left + wide * end:.4g} {y - 2:g}v17"
        parts.append(f'<path d="{at}" stroke="{GREY}" stroke-width="2" stroke-dasharray="2 3"/>')
    return parts


def _chance(entry: Bias) -> float:
    """Return the total variation that 95 of 100 tallies do not exceed by chance alone."""
    assert entry.chance is not None
    return entry.chance.high


def _names(group: Sequence[Bar]) -> list[str]:
    """Return the labels of a subject's bars, marked if beyond chance; the first has the subject's name."""
    names = []
    for k, (name, entry) in enumerate(group):
        first = f"{entry.subject}, {name}" if name else entry.subject
        names.append(short(name if k else first, 36) + (f" {MARK}" if entry.beyond_noise else ""))
    return names
