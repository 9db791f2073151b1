"""One corruption at a time: the concepts `corruption` and `severity`, which only mean something together.

The catalogue applies each concept by itself. These two are one change whose name and strength are levels of their own,
as in ImageNet-C (stages/concepts/grids.py). `Corrupted` goes before an audit's class of classifiers where its concepts
name them; all others never reach this code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from stages.concepts import ConceptSpace
from stages.concepts.corruptions import CORRUPTIONS, corrupt
from stages.concepts.grids import CORRUPTION, SEVERITY, UNCHANGED
from stages.concepts.images import Corruption, ImageConcept, ImageTransforms, image_space
from stages.tasks.base import Task
from stages.tasks.classification.models import Classifier
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.contract import TaskContext

TOGETHER: Mapping[str, ImageConcept] = {
    CORRUPTION: ImageConcept(
        CORRUPTION,
        "which corruption of ImageNet-C",
        neutral=UNCHANGED,  # type: ignore[arg-type]  # the only concept of pictures whose levels are names
        choices=(UNCHANGED, *CORRUPTIONS),
    ),
    # From the unchanged picture one step leads to a corruption at severity 1, each further one to the next severity.
    SEVERITY: Corruption(SEVERITY, "how severe, as in ImageNet-C", 1, 5, 1),
}


class CorruptedTransforms(ImageTransforms):
    """Applies the other concepts of a cell, and then its corruption.

    Args:
        space: made by `image_space`, with both concepts.
        catalogue: how the other concepts are applied.
    """

    def __init__(self, space: ConceptSpace, catalogue: Mapping[str, ImageConcept]) -> None:
        self._which, self._how = (space.names.index(name) for name in (CORRUPTION, SEVERITY))
        self._names, self._severities = (space.concepts[at].levels for at in (self._which, self._how))
        others = tuple(concept for concept in space.concepts if concept.name != CORRUPTION)
        super().__init__(ConceptSpace(others), catalogue)  # to it, `severity` is a concept that does nothing

    def __call__(self, images: Tensor, cells: np.ndarray, chance: np.ndarray) -> Tensor:
        """See ImageTransforms."""
        images = super().__call__(images, np.delete(cells, self._which, axis=1), chance)
        severities = images.new_tensor(self._severities)[cells[:, self._how]].view(-1, 1, 1, 1)
        for which in np.unique(cells[:, self._which]).tolist():
            if (name := str(self._names[which])) != UNCHANGED:
                rows = np.flatnonzero(cells[:, self._which] == which)
                images[rows] = corrupt(name)(images[rows], severities[rows], chance[rows])
        return images


class Corrupted(ClassifierProbes):
    """What goes before a class of classifiers, so that it applies `corruption` at `severity`."""

    @staticmethod
    @cache
    def before(task: type[Task]) -> type[Task]:
        """The same task with both concepts; as it is where it is about no pictures, or has its own `corruption`."""
        if not issubclass(task, ClassifierProbes) or CORRUPTION in task.catalogue:
            return task
        own = {"catalogue": {**task.catalogue, **TOGETHER}, "__doc__": task.__doc__}
        return type(task.__name__, (Corrupted, task), own)

    def __init__(self, context: TaskContext, items: pd.DataFrame, model: Classifier, model_hash: str) -> None:
        others = {name: levels for name, levels in context.concepts.items() if name != CORRUPTION}
        super().__init__(replace(context, concepts=others), items, model, model_hash)
        self.context = context
        self.concepts = image_space(context.concepts, self.catalogue)
        self._transforms = CorruptedTransforms(self.concepts, self.catalogue)

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: Any, discrepancy: Any) -> list[str]:
        """See Task."""
        alone = [] if SEVERITY in context.concepts else [f"concepts.{CORRUPTION}: expected {SEVERITY} beside it"]
        return alone + super().conflicts(context, prepare, discrepancy)
