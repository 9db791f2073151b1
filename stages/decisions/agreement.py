"""Agreement between reviewers on the actions for failure modes, and on the scores of examples."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from statistics import mean
from typing import Any, Literal

import numpy as np

from stages.decisions.model import RecordedDecision
from stages.records import Agreement
from stages.records.landscape import ActionAgreement, ScoreAgreement

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
