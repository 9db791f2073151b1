"""Merge the decisions of several reviewers into one plan, by a stated rule.

How far they agree is measured, on the actions for failure modes and on the scores of examples.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from statistics import mean
from typing import Any, Literal

import numpy as np

from stages.core.intervals import Rate, wilson
from stages.decisions.identity import Identity
from stages.decisions.model import Action, RatedProbe, RecordedDecision
from stages.records import Agreement, Ceiling, ModeRecord, Plan, PlannedExample, PlannedMode
from stages.records.base import RateRecord
from stages.records.landscape import ActionAgreement, ScoreAgreement
from stages.records.repair import Reviewer

Metric = Literal["nominal", "interval"]


def krippendorff_alpha(units: Iterable[Sequence[Any]], metric: Metric) -> float | None:
    """Krippendorff's alpha: 1 if all agree, 0 if they agree as often as by chance, below 0 if less often.

    For any number of reviewers, who need not have judged everything (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability").

    Args:
        units: the values given to each thing judged; those with fewer than two do not count.
        metric: distance between two values: different or not, or their difference.

    Returns:
        None if no unit has two values, or all values are the same, which cannot be distinguished from chance.
    """
    paired = [list(unit) for unit in units if len(unit) > 1]
    values = sorted({value for unit in paired for value in unit})
    if len(values) < 2:
        return None
    number = {value: i for i, value in enumerate(values)}
    together = np.zeros((len(values), len(values)))  # the coincidence matrix
    for unit in paired:
        counts = np.bincount([number[value] for value in unit], minlength=len(values)).astype(float)
        together += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    margin = together.sum(axis=1)
    if metric == "nominal":
        apart = 1.0 - np.eye(len(values))
    else:
        place = np.array(values, dtype=float)
        apart = np.subtract.outer(place, place) ** 2
    expected = (np.outer(margin, margin) * apart).sum() / (margin.sum() - 1)
    return float(1 - (together * apart).sum() / expected)


def agreement(decisions: Sequence[RecordedDecision]) -> Agreement | None:
    """Measure how far the reviewers of decisions agree, over all landscapes.

    For actions this is the share of equal pairs, for scores the mean absolute difference. A part is None if no two
    reviewers judged the same thing, and the result is None if every part is. Reviewers without anything in common with
    another are left out.
    """
    words = _shared(decisions, lambda d: [(mode.id, mode.action) for mode in d.modes])
    reviewers = {name for unit in words for name in unit}
    actions, scores = None, dict[str, ScoreAgreement | None]()
    if said := [list(unit.values()) for unit in words]:
        same = [mean(a == b for a, b in combinations(unit, 2)) for unit in said]
        actions = ActionAgreement(alpha=krippendorff_alpha(said, "nominal"), share=float(mean(same)), modes=len(said))
    for key in ("rating", "bias"):
        scored = _shared(decisions, partial(_scores, key))
        reviewers |= {name for unit in scored for name in unit}
        scores[key] = None
        if given := [list(unit.values()) for unit in scored]:
            apart = [mean(abs(a - b) for a, b in combinations(unit, 2)) for unit in given]
            scores[key] = ScoreAgreement(
                alpha=krippendorff_alpha(given, "interval"), difference=float(mean(apart)), examples=len(given)
            )
    if actions is None and not any(scores.values()):
        return None
    statement = _said(len(reviewers), actions, scores)
    return Agreement(reviewers=sorted(reviewers), actions=actions, statement=statement, **scores)


def _scores(key: str, decision: RecordedDecision) -> list[tuple[Hashable, int | None]]:
    return [(example.id, getattr(example, key)) for example in decision.examples]


def _shared(
    decisions: Sequence[RecordedDecision], said: Callable[[RecordedDecision], Iterable[tuple[Hashable, Any]]]
) -> list[dict[str, Any]]:
    """Return by reviewer the judgements of each mode or example that at least two reviewers judged."""
    units: dict[Hashable, dict[str, Any]] = {}
    for decision in decisions:
        for key, value in said(decision):
            if value is not None:
                units.setdefault((decision.landscape, key), {})[decision.reviewer] = value
    return [unit for unit in units.values() if len(unit) > 1]


def _said(reviewers: int, actions: ActionAgreement | None, scores: Mapping[str, ScoreAgreement | None]) -> str:
    said = []
    if actions is not None:
        on = f"what to do about {_count(actions.modes, 'failure mode')}"
        said.append(f"agree in {actions.share:.0%} of their words on {on}{_alpha(actions.alpha)}")
    for key, what in (("rating", "ratings"), ("bias", "ratings of bias")):
        if (part := scores[key]) is not None:
            differ = f"differ by {part.difference:.1f} points on average"
            said.append(f"their {what} of {_count(part.examples, 'example')} {differ}{_alpha(part.alpha)}")
    if actions is None:
        return f"Of {reviewers} reviewers, {'; '.join(said)}."
    return f"{reviewers} reviewers {'; '.join(said)}."


def _alpha(alpha: float | None) -> str:
    return "" if alpha is None else f" (Krippendorff's alpha {alpha:.2f})"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


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
