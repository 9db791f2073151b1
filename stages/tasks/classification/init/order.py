"""Check from answers to clean pictures whether a model's outputs have the order in which its classes are named."""

from __future__ import annotations

import shlex

import numpy as np

from stages.tasks.labels import ClassOrder

_HARDLY = 1.25  # times the accuracy of guessing
_GOOD = 0.5  # accuracy in the most likely order from which size and normalisation are hardly wrong
_RIGHT = "are the labels, the size (--size) and the normalisation (--normalise imagenet, half or none) right?"


class Order(ClassOrder):
    """Clean pictures by the class they show and the output the model gives, and what people are told of it."""

    @property
    def unseen(self) -> list[str]:
        """Classes without pictures whose output is assigned to another class, so that their output is unknown."""
        return [name for i, name in enumerate(self.classes) if self.outputs[i] != i and not self.counts[i].any()]

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
