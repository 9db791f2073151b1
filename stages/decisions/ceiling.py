"""Measure how many changed inputs people could read themselves: no model can be blamed for those they could not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from stages.decisions.model import RatedProbe, Recorded
from stages.intervals import Rate, wilson
from stages.records import Ceiling
from stages.records.base import RateRecord


def ceiling(decisions: Sequence[Recorded]) -> Ceiling | None:
    """Return how often the reviewers of a landscape could not read an example; None if there is none.

    It counts the examples that someone rated, corrected or could not read, because a readable one needs no comment. If
    reviewers differ, an example is unreadable if most of those who judged it say so.
    """
    spoken_of: dict[str, list[RatedProbe]] = {}
    for decision in decisions:
        for example in decision.examples:
            spoken_of.setdefault(example.id, []).append(example)
    unreadable = {name for name, given in spoken_of.items() if 2 * sum(bool(e.unreadable) for e in given) > len(given)}
    if not unreadable:
        return None
    mode_of = {name: given[0].mode for name, given in spoken_of.items()}
    of, lost = Counter(mode_of.values()), Counter(mode_of[name] for name in unreadable)
    rate = wilson(len(unreadable), len(spoken_of))
    return Ceiling(unreadable=RateRecord.from_rate(rate), statement=_said(rate, of, lost, len(unreadable)))


def _said(rate: Rate, of: Counter[str], lost: Counter[str], unreadable: int) -> str:
    modes = ", ".join(f"{mode} {lost[mode]} of {n}" for mode, n in sorted(of.items()) if lost[mode])
    return (
        f"Of the examples that reviewers rated, corrected or could not read themselves ({rate.n}), they could not read"
        f" {unreadable}: {100 * rate.value:.1f}% ({100 * rate.low:.1f} to {100 * rate.high:.1f}); {modes}."
        " Failures there are not the model's alone."
    )
