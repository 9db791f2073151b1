"""Section of the report on a landscape about failure rates by corruption, and their mean."""

from __future__ import annotations

from typing import NamedTuple

from stages.concepts.grids import UNCHANGED
from stages.intervals import COUNTED, Rate
from stages.landscape.corruptions import CorruptionError, CorruptionErrors, TooFew
from stages.pages.words import interval, number, percent


class CorruptionRow(NamedTuple):
    """One corruption: its error, and its error relative to AlexNet's, "" if they are not comparable."""

    name: str
    error: Rate
    failures: int
    normalised: str


class CorruptionsView(NamedTuple):
    """The section: rows, their means, and how to read them."""

    sentences: list[str]
    rows: list[CorruptionRow]
    normalised: bool
    notes: list[str]


def corruptions_view(errors: CorruptionErrors | TooFew | None, *, exact: bool) -> CorruptionsView | None:
    """Return the section on corruptions; None for grids without."""
    if errors is None:
        return None
    if isinstance(errors, TooFew):
        few = (
            f"No mean corruption error: {errors.name.replace('_', ' ')} has {number(errors.probes)} probes of the"
            f" control, expected {COUNTED} of each corruption. Raise discover.budget."
        )
        return CorruptionsView([few], [], False, [])
    unchanged = [row.error for row in errors.rows if row.name == UNCHANGED]
    sentences = [
        f"Mean corruption error: {_said(errors.mean)}, with equal weight for each of {number(_corruptions(errors))}"
        f" corruptions{''.join(f'; unchanged pictures: {_said(error)}' for error in unchanged)}."
    ]
    if errors.normalised is not None:
        sentences.append(
            f"mCE: {_said(errors.normalised)}. Each error is divided by that of AlexNet on ImageNet-C, so AlexNet has"
            " 100%."
        )
    return CorruptionsView(
        sentences, [_row(row) for row in errors.rows], errors.normalised is not None, _notes(errors, exact)
    )


def _corruptions(errors: CorruptionErrors) -> int:
    return sum(row.name != UNCHANGED for row in errors.rows)


def _row(row: CorruptionError) -> CorruptionRow:
    return CorruptionRow(
        "unchanged" if row.name == UNCHANGED else row.name.replace("_", " "),
        row.error,
        row.failures,
        "" if row.normalised is None else _said(row.normalised),
    )


def _said(rate: Rate) -> str:
    return f"{percent(rate.value)} [{interval(rate.low, rate.high)}]"


def _notes(errors: CorruptionErrors, exact: bool) -> list[str]:
    """Explain how the numbers were computed, and what they are not comparable with."""
    averaged = "".join(f" and {name}" for name in errors.others)
    counted = "of all pairs of item and cell" if exact else "of the control's probes"
    return [
        f"The share {counted} that fail, averaged over severities{averaged}, with 95% intervals. The interval"
        " of the mean is for other items like these.",
        "AlexNet's errors are those published for 50,000 pictures. There, frost was mixed in from photos and pictures"
        " were compressed a second time; here, frost is drawn and harder, and they are not. Keep that in mind when you"
        " compare with published numbers."
        if errors.normalised is not None
        else "Not normalised by AlexNet's errors: those are for the thousand classes of ImageNet, all fifteen"
        " corruptions at five severities, and nothing else.",
    ]
