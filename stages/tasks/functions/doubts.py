"""What the answers to unchanged items say against the model, the expected answers or the number of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from stages.core.intervals import Rate, wilson
from stages.tasks.functions.answers import AnswerScorer, read
from stages.tasks.labels import ClassOrder

FEW = 30  # items; with fewer, people are told how wide an interval becomes
ASKED_TWICE = 8  # number of items
_SAME = 0.01  # difference of two discrepancies, in [-1, 1], which rounding on a GPU does not reach
_MOST = 2000  # classes; of more, each has too few items, and the best order takes minutes
_NAMED = 12  # classes; an order of more is not written out
_MOVED = 3  # classes that are named as mistaken for others


def doubts(
    judge: AnswerScorer,
    threshold: float,
    answers: np.ndarray,
    labels: Sequence[str],
    ask: Callable[[np.ndarray], np.ndarray],
) -> list[str]:
    """Return sentences for people, empty if there is nothing to say.

    Args:
        judge: of the answers.
        threshold: discrepancies above it are failures.
        answers: to all n unchanged items.
        labels: n expected answers.
        ask: asks the model again about rows of the items, for a few of them twice.
    """
    found = (_few(len(labels)), _wrong(judge, threshold, answers, labels), _twice(judge, labels, ask))
    return [said for said in found if said]


def _few(n: int) -> str:
    if n >= FEW:
        return ""
    half = wilson(n // 2, n)
    return (
        f"{n} items are few: if {half.value:.0%} of them fail, the 95% interval is {half.low:.1%} to {half.high:.1%},"
        f" whatever the budget; {FEW} or more would be better."
    )


def _wrong(judge: AnswerScorer, threshold: float, answers: np.ndarray, labels: Sequence[str]) -> str:
    """Say whether unchanged items are answered by chance, or as if the classes had another order."""
    if judge.kind in ("own", "texts"):
        failed = wilson(int((judge(answers, labels)[0] > threshold).sum()), len(labels))
        return f"{_of_items(failed)} fail already." if failed.low > 0.5 else ""
    said = judge.labels(answers)
    classes = judge.classes or sorted({*labels, *said})
    if len(classes) > _MOST:
        return ""
    counts = pd.crosstab(pd.Categorical(labels, classes), pd.Categorical(said, classes), dropna=False)
    order = ClassOrder(classes, counts.to_numpy())
    right, chance = order.named_rate, 1 / len(classes)
    if order.sure and order.proposed_rate.low > counts.sum(axis=1).max() / len(labels):  # better than any constant
        pairs = [(counts.iloc[i, order.outputs[i]], classes[i], classes[order.outputs[i]]) for i in order.moved]
        mistaken = ", ".join(f"{n:,} items of {one!r} as {other!r}" for n, one, other in pairs[:_MOVED])
        named = judge.classes and len(classes) <= _NAMED and not isinstance(read(answers), pd.DataFrame)
        other = f"with classes={order.proposed}" if named else "in another order of the classes"
        return (
            f"{_of_items(right)} are answered right; {other} {order.proposed_rate.value:.1%} would be. The model"
            f" answers {mistaken}."
        )
    if right.low <= chance and right.value < 1:
        return (
            f"{_of_items(right)} are answered right, which guessing among {len(classes)} classes could reach"
            f" too ({chance:.1%}): are the expected answers right, and the items as the model was trained on?"
        )
    return ""


def _twice(judge: AnswerScorer, labels: Sequence[str], ask: Callable[[np.ndarray], np.ndarray]) -> str:
    rows = np.unique(np.linspace(0, len(labels) - 1, ASKED_TWICE).astype(int))
    expected = [labels[row] for row in rows]
    one, other = ask(rows), ask(rows)
    different = np.abs(judge(one, expected)[0] - judge(other, expected)[0]) > _SAME
    if judge.kind != "own":
        different |= np.array(judge.labels(one)) != np.array(judge.labels(other))
    if not different.any():
        return ""
    return (
        f"The model answered {different.sum()} of {len(rows)} unchanged items differently when it was asked twice:"
        " failures are then partly chance, and other runs find other ones. Fix its seed, or switch dropout and sampling"
        " off."
    )


def _of_items(rate: Rate) -> str:
    return f"{rate.value:.1%} of {rate.n:,} unchanged items (95% interval {rate.low:.1%} to {rate.high:.1%})"
