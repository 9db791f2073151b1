"""Whether a model's outputs stand in the order in which its classes are named, by what it answers to clean pictures."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from stages.intervals import LEVEL, Rate, wilson


@dataclass(frozen=True)
class Order:
    """Clean pictures by the class they show and the output the model gives.

    Args:
        classes: names of the model's outputs, in the order they are thought to have.
        counts: (classes, classes) pictures that show class i and are taken for output j.
    """

    classes: Sequence[str]
    counts: np.ndarray

    @cached_property
    def outputs(self) -> np.ndarray:
        """The most likely output of each class: (classes,).

        The assignment that makes most answers right (Kuhn 1955). A class of which there are no pictures keeps its
        output where that is free. Of assignments that are as good, that with more classes where they are named wins.
        """
        from scipy.optimize import linear_sum_assignment

        n = len(self.classes)
        stays = np.eye(n) * 0.5 / n  # less than one picture in all, so that it only settles ties
        _, outputs = linear_sum_assignment(self.counts + stays, maximize=True)
        return np.asarray(outputs)

    @property
    def proposed(self) -> list[str]:
        """The classes in that order."""
        named = dict(zip(self.outputs.tolist(), self.classes, strict=True))
        return [named[output] for output in range(len(self.classes))]

    @cached_property
    def moved(self) -> list[int]:
        """Classes with pictures whose most likely output is another than the one they are named for."""
        return [i for i in range(len(self.classes)) if self.outputs[i] != i and self.counts[i].any()]

    @property
    def unseen(self) -> list[str]:
        """Classes without pictures whose output others take, so that nothing tells where they belong."""
        return [name for i, name in enumerate(self.classes) if self.outputs[i] != i and not self.counts[i].any()]

    @property
    def named_rate(self) -> Rate:
        """Accuracy with the classes in the order in which they are named."""
        return wilson(int(np.trace(self.counts)), int(self.counts.sum()))

    @property
    def proposed_rate(self) -> Rate:
        """Accuracy with them in the most likely order; it was chosen by the same pictures, so it is a little high."""
        right = int(self.counts[np.arange(len(self.classes)), self.outputs].sum())
        return wilson(right, int(self.counts.sum()))

    @cached_property
    def doubtful(self) -> list[int]:
        """Moved classes whose pictures do not tell for sure.

        Sure is a class whose proposed output is given more often than any other, by a sign test against the runner-up
        at 5% shared among all classes (Bonferroni), so that a wrong order is proposed as sure in 5% of cases at most.
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
        """Whether another order is certain, but for chance."""
        return bool(self.moved) and not self.doubtful

    @property
    def at_chance(self) -> bool:
        """Whether the model is right no more often than by guessing, as the classes are named."""
        return self.named_rate.value <= 1 / len(self.classes)

    @property
    def likely(self) -> bool:
        """Whether somebody has to look: another order is sure, or the one named is no better than guessing."""
        return self.sure or self.at_chance

    @property
    def statement(self) -> str:
        """What is likely, and how sure that is, in plain words."""
        now, then = self.named_rate, self.proposed_rate
        told = (
            f"with the classes in the order named, {now.value:.0%} of {now.n} unchanged pictures are right"
            f" ({now.low:.0%} to {now.high:.0%}); in the most likely order {then.value:.0%} would be"
        )
        if not self.moved:
            return (
                f"{now.value:.0%} of {now.n} unchanged pictures are right ({now.low:.0%} to {now.high:.0%}), no more"
                " than by guessing, and no other order of the classes is better: are the labels, the size and the"
                " normalisation right?"
            )
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
        """Pictures of class i for its proposed output, and for the runner-up."""
        given = int(self.counts[i, self.outputs[i]])
        return given, int(np.delete(self.counts[i], self.outputs[i]).max())
