"""Merge the decisions of several reviewers into one plan, by a stated rule."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from stages.core.intervals import Rate, wilson
from stages.decisions.agreement import agreement
from stages.decisions.identity import Identity
from stages.decisions.model import Action, RatedProbe, RecordedDecision
from stages.records import Ceiling, ModeRecord, Plan, PlannedExample, PlannedMode
from stages.records.base import RateRecord
from stages.records.repair import Reviewer

RULE = (
    "one rejection ends the audit; a mode gets the action that most reviewers named, and where most are equal the more"
    " careful one (repair before accept before ignore); its severity is the median of those who want it repaired; the"
    " ratings of an example are medians, rounded down, and every correction is kept"
)
_CAREFUL: tuple[Action, ...] = ("repair", "accept", "ignore")


def merge_decisions(decisions: Sequence[RecordedDecision], modes: Sequence[ModeRecord]) -> Plan:
    """Merge approving decisions on one landscape.

    Args:
        decisions: at least one decision that counts, so that signatures are valid; each decides on every mode.
        modes: the landscape's modes.
    """
    signatures = [decision.signature for decision in decisions]
    by = [Identity(d.reviewer, s.key if s else None, s is not None) for d, s in zip(decisions, signatures, strict=True)]
    people = ", ".join(who.statement for who in by)
    plan = Plan(
        landscape=decisions[0].landscape,
        decided_by="human",
        statement=f"decided by {people}",
        reviewer=", ".join(decision.reviewer for decision in decisions),
        reviewers=[Reviewer(name=who.name, key=who.key_id) for who in by],
        by=people,
        reason=_together({d.reviewer: d.reason for d in decisions}),
        modes=[_mode(mode, decisions) for mode in modes],
        examples=_examples(decisions),
    )
    return plan.having(
        rule=RULE if len(decisions) > 1 else None, agreement=agreement(decisions), ceiling=ceiling(decisions)
    )


def _mode(mode: ModeRecord, decisions: Sequence[RecordedDecision]) -> PlannedMode:
    words = {d.reviewer: next(word for word in d.modes if word.id == mode.id) for d in decisions}
    votes = Counter(word.action for word in words.values())
    action = max(_CAREFUL, key=lambda a: (votes[a], -_CAREFUL.index(a)))
    severities = [word.severity for word in words.values() if word.action == action]
    return PlannedMode(
        id=mode.id,
        text=mode.text,
        region=mode.region,
        action=action,
        severity=float(statistics.median(severities)),
        reason=_together({reviewer: word.reason for reviewer, word in words.items()}),
    )


def _examples(decisions: Sequence[RecordedDecision]) -> list[PlannedExample]:
    """Return one entry per example, and one more for each further correction of it."""
    by_id: dict[str, list[RatedProbe]] = {}
    for decision in decisions:
        for example in decision.examples:
            if (example.rating, example.bias, example.corrected) == (None, None, None):
                continue  # an unreadable example teaches nothing
            by_id.setdefault(example.id, []).append(example)
    merged: list[PlannedExample] = []
    for given in by_id.values():
        said = dict.fromkeys(e.corrected for e in given if e.corrected is not None)
        corrections: list[str | None] = [*said] or [None]
        one, rating, bias = given[0], _median([e.rating for e in given]), _median([e.bias for e in given])
        merged += [
            PlannedExample(
                id=one.id,
                mode=one.mode,
                item=one.item,
                cell=one.cell,
                output=one.output,
                rating=rating,
                bias=bias,
                corrected=corrected,
            )
            for corrected in corrections
        ]
    return merged


def _median(ratings: Sequence[int | None]) -> int | None:
    given = [rating for rating in ratings if rating is not None]
    return int(statistics.median(given)) if given else None


def _together(said: Mapping[str, str]) -> str:
    """Join several people's texts, each after its author's name; a single one is returned without a name."""
    given = {name: text for name, text in said.items() if text}
    if len(said) == 1:
        return next(iter(given.values()), "")
    return "; ".join(f"{name}: {text}" for name, text in given.items())


def ceiling(decisions: Sequence[RecordedDecision]) -> Ceiling | None:
    """Return how often the reviewers of a landscape could not read an example; None if there is none.

    No model can be blamed for those. It counts the examples that someone rated, corrected or could not read, because a
    readable one needs no comment. If reviewers differ, an example is unreadable if most of those who judged it say so.
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
    return Ceiling(unreadable=RateRecord.from_rate(rate), statement=_ceiling_statement(rate, of, lost, len(unreadable)))


def _ceiling_statement(rate: Rate, of: Counter[str], lost: Counter[str], unreadable: int) -> str:
    modes = ", ".join(f"{mode} {lost[mode]} of {n}" for mode, n in sorted(of.items()) if lost[mode])
    return (
        f"Of the examples that reviewers rated, corrected or could not read themselves ({rate.n}), they could not read"
        f" {unreadable}: {100 * rate.value:.1f}% ({100 * rate.low:.1f} to {100 * rate.high:.1f}); {modes}."
        " Failures there are not the model's alone."
    )
