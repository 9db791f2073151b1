"""Classes of a model: how their labels are spelled, and whether its outputs have the order in which they are named.

Those of ImageNet are known by name, and by the WordNet IDs that name its folders.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stages.core.intervals import LEVEL, Rate, wilson

LONGEST = 500  # characters of an answer that are stored


def spelled(answer: Any) -> str:
    """Convert a label or other answer to text for people and tables: 3.0 is the class 3."""
    plain = answer.item() if isinstance(answer, np.generic) or getattr(answer, "ndim", None) == 0 else answer
    return str(int(plain) if isinstance(plain, float) and plain.is_integer() else plain)[:LONGEST]


@dataclass(frozen=True)
class ClassOrder:
    """Unchanged items by the class they are of and the output the model gives.

    Args:
        classes: names of the model's outputs, in their assumed order.
        counts: (classes, classes) number of items of class i for which the model answers output j.
    """

    classes: Sequence[str]
    counts: np.ndarray

    @cached_property
    def outputs(self) -> np.ndarray:
        """The most likely output of each class: (classes,).

        It is the assignment that makes most answers right (Kuhn 1955). A class without items keeps its output if that
        is free. Ties are broken in favour of the assignment that moves fewer classes.
        """
        from scipy.optimize import linear_sum_assignment

        n = len(self.classes)
        stays = np.eye(n) * 0.5 / n  # adds up to less than one item, so that it only breaks ties
        _, outputs = linear_sum_assignment(self.counts + stays, maximize=True)
        return np.asarray(outputs)

    @property
    def proposed(self) -> list[str]:
        named = dict(zip(self.outputs.tolist(), self.classes, strict=True))
        return [named[output] for output in range(len(self.classes))]

    @cached_property
    def moved(self) -> list[int]:
        """Classes with items whose most likely output is not the one they are named for."""
        return [i for i in range(len(self.classes)) if self.outputs[i] != i and self.counts[i].any()]

    @property
    def named_rate(self) -> Rate:
        """Accuracy with the classes in the named order."""
        return wilson(int(np.trace(self.counts)), int(self.counts.sum()))

    @property
    def proposed_rate(self) -> Rate:
        """Accuracy with the classes in the most likely order; slightly optimistic, as these items chose it."""
        right = int(self.counts[np.arange(len(self.classes)), self.outputs].sum())
        return wilson(right, int(self.counts.sum()))

    @cached_property
    def doubtful(self) -> list[int]:
        """Moved classes for which the items are not conclusive.

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


ALIKE = 0.9  # share of names that must agree; other sources shorten or spell some differently


def class_names() -> list[str]:
    """Return their names in the order of their indices, each the first of its synonyms."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [_first(info.index_to_description(i)) for i in range(info.num_classes())]


def are_of_imagenet(labels: Iterable[str], classes: int) -> bool:
    """Whether a model with this many classes has those of ImageNet, judging by the labels of its items."""
    if importlib.util.find_spec("timm") is None:
        return False
    names = class_names()
    return classes == len(names) and {_first(label).lower() for label in labels} <= {name.lower() for name in names}


def wordnet_ids(classes: Sequence[str]) -> dict[str, int]:
    """Return {"n01440764": 0, ...} if these are the classes of ImageNet in their order, else {}."""
    if importlib.util.find_spec("timm") is None:
        return {}
    from timm.data.imagenet_info import ImageNetInfo

    names = class_names()
    if len(classes) != len(names):
        return {}
    alike = sum(_first(one).lower() == other.lower() for one, other in zip(classes, names, strict=True))
    if alike < ALIKE * len(names):
        return {}
    return {wordnet_id: index for index, wordnet_id in enumerate(ImageNetInfo().label_names())}


def _first(description: str) -> str:
    return description.split(",", maxsplit=1)[0]
