"""The effect of aiming: failures against steps of training, for the repair and the control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from stages.landscape.doses import worth
from stages.pages import figures
from stages.pages.page import Picture
from stages.pages.words import interval, number, percent, points, points_interval
from stages.records.repair import Dose, DoseCurve

_PARTS = {
    "targets": "In the target modes",
    "others": "Everywhere else",
    "drawn": "Cells that the search's policy proposes",
    "clean": "Clean quality on unchanged inputs",
}


class DosesPart(NamedTuple):
    """One part of the pairs: sentences, curves, whether there is a control, and rows of steps, repair and control."""

    title: str
    sentences: list[str]
    picture: Picture
    control: bool
    rows: list[tuple[str, str, str]]


def doses_view(curves: Sequence[DoseCurve]) -> list[DosesPart]:
    """Return the curves of each part that was measured."""
    return [_part(curve) for curve in curves]


def _part(curve: DoseCurve) -> DosesPart:
    title, (repaired, control) = _PARTS[curve.part], (curve.repaired, curve.control)
    shown = {"repair": repaired, **({"control": control} if control else {})}
    ends = "; ".join(
        f"{name} {percent(doses[-1].rate.value)} after {doses[-1].steps:,} steps" for name, doses in shown.items()
    )
    what = "Clean quality" if curve.part == "clean" else "Failure rate"
    picture = Picture(
        f"{what} against training steps, {title.lower()}: {ends}.", [("", figures.doses(shown))], 300, title
    )
    told = worth(curve)
    sentences = ["This policy, which saw other items, aimed the repair."] if curve.part == "drawn" else []
    sentences += [f"To match {repaired[-1].steps:,} steps of the repair, the control needed {told}."] if told else []
    if curve.differences:
        each = "; ".join(f"{points(d.value)} [{points_interval(d.low, d.high)}]" for d in curve.differences)
        trainings = "one training" if len(curve.differences) == 1 else f"each of {len(curve.differences)} trainings"
        sentences.append(f"Repair minus control after {repaired[-1].steps:,} steps, in {trainings}: {each} points.")
    steps = sorted({dose.steps for doses in shown.values() for dose in doses})
    rows = [(number(n), _rate(repaired, n), _rate(control, n)) for n in steps]
    return DosesPart(title, sentences, picture, bool(control), rows)


def _rate(doses: Sequence[Dose], steps: int) -> str:
    rate = next((dose.rate for dose in doses if dose.steps == steps), None)
    return f"{percent(rate.value)} [{interval(rate.low, rate.high)}]" if rate else number(None)
