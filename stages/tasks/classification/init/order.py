"""Check from answers to clean pictures whether a model's outputs have the order in which its classes are named."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stages.intervals import LEVEL, Rate, wilson

_HARDLY = 1.25  # times the accuracy of guessing
_GOOD = 0.5  # accuracy in the most likely order from which size and normalisation are hardly wrong
_RIGHT = "are the labels, the size (--size) and the normalisation (--normalise imagenet, half or none) right?"


@dataclass(frozen=True)
class Order:
    """Clean pictures by the class they show and the output the model gives.

    Args:
        classes: names of the model's outputs, in their assumed order.
        counts: (classes, classes) number of pictures of class i for which the model answers output j.
    """

    classes: Sequence[str]
    counts: np.ndarray

    @cached_property
    def outputs(self) -> np.ndarray:
        """The most likely output of each class: (classes,).

        It is the assignment that makes most answers right (Kuhn 1955). A class without pictures keeps its output if
        that is free. Ties are broken in favour of the assignment that moves fewer classes.
        """
        from scipy.optimize import linear_sum_assignment

        n = len(self.classes)
        stays = np.eye(n) * 0.5 / n  # adds up to less than one picture, so that it only breaks ties
        _, outputs = linear_sum_assignment(self.counts + stays, maximize=True)
        return np.asarray(outputs)

    @property
    def proposed(self) -> list[str]:
        """The classes in that order."""
        named = dict(zip(self.outputs.tolist(), self.classes, strict=True))
        return [named[output] for output in range(len(self.classes))]

    @cached_property
    def moved(self) -> list[int]:
        """Classes with pictures whose most likely output is not the one they are named for."""
        return [i for i in range(len(self.classes)) if self.outputs[i] != i and self.counts[i].any()]

    @property
    def unseen(self) -> list[str]:
        """Classes without pictures whose output is assigned to another class, so that their output is unknown."""
        return [name for i, name in enumerate(self.classes) if self.outputs[i] != i and not self.counts[i].any()]

    @property
    def named_rate(self) -> Rate:
        """Accuracy with the classes in the named order."""
        return wilson(int(np.trace(self.counts)), int(self.counts.sum()))

    @property
    def proposed_rate(self) -> Rate:
        """Accuracy with the classes in the most likely order; slightly optimistic, as these pictures chose it."""
        right = int(self.counts[np.arange(len(self.classes)), self.outputs].sum())
        return wilson(right, int(self.counts.sum()))

    @cached_property
    def doubtful(self) -> list[int]:
        """Moved classes for which the pictures are not conclusive.

        A class is sure if its proposed output is given more often than any other, by a sign test against the runner-up
        at 5% shared among all classes (Bonferroni), so that a wrong order is proposed as sure in at most 5% of cases.
        """
        from scipy.stats import binomtest

        doubtful = []
        for i in self.moved:
            given = int(self.counts[i, self.outputs[i]])
            other = int(np.delete(self.counts[i], self.outputs[i]).max())
            if given <= other or binomtest(given, given + other, alternative="greater").pvalue > (1 - LEVEL) / len(
                self.classes
            ):
                doubtful.append(i)
        return doubtful

    @property
    def sure(self) -> bool:
        """Whether another order is statistically certain."""
        return bool(self.moved) and not self.doubtful

    @property
    def at_chance(self) -> bool:
        """Whether accuracy in the named order is no better than guessing, or hardly, and not for certain."""
        rate, chance = self.named_rate, 1 / len(self.classes)
        return rate.value <= chance or (rate.low <= chance and rate.value < _HARDLY * chance)

    @property
    def likely(self) -> bool:
        """Whether a person has to look: another order is sure, or the named one is hardly better than guessing."""
        return self.sure or self.at_chance

    @property
    def statement(self) -> str:
        """The likely order and its certainty, in plain words."""
        now, then = self.named_rate, self.proposed_rate
        told = (
            f"with the classes in the order named, {now.value:.0%} of {now.n} unchanged pictures are right"
            f" ({now.low:.0%} to {now.high:.0%}); in the most likely order {then.value:.0%} would be"
        )
        if not self.moved:
            return (
                f"{now.value:.0%} of {now.n} unchanged pictures are right ({now.low:.0%} to {now.high:.0%}), hardly"
                f" more than by guessing, and no other order of the classes is better: {_RIGHT}"
            )
        if self.at_chance and then.value < _GOOD:
            told += f". Before you change it: {_RIGHT}"
        if self.sure:
            (given, other), closest = min((self._margin(i), i) for i in self.moved)
            told += f". That is sure: the closest call is {self.classes[closest]!r}, {given} pictures against {other}"
            belong = ", ".join(map(repr, self.unseen))
            return told + (
                f". Nothing tells where {belong} belong: the data have no pictures of them" if belong else ""
            )
        names = ", ".join(repr(self.classes[i]) for i in self.doubtful[:5])
        more = f" and {len(self.doubtful) - 5} more" if len(self.doubtful) > 5 else ""
        return (
            f"{told}. That is not sure: there are too few pictures of {names}{more}, or they are mistaken for several"
        )

    @property
    def advice(self) -> str:
        """What to type."""
        if not self.moved:
            return "Use --no-reorder to audit it anyway"
        take = "--reorder" if any("," in name for name in self.proposed) else ""
        take = take or f"--classes {shlex.quote(','.join(self.proposed))}"
        return f"Say {take}, or --no-reorder to keep the classes as they are named"

    def _margin(self, i: int) -> tuple[int, int]:
        """Return the number of pictures of class i for its proposed output, and for the runner-up."""
        given = int(self.counts[i, self.outputs[i]])
        return given, int(np.delete(self.counts[i], self.outputs[i]).max())
