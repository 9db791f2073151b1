"""One corruption at a time: the concepts `corruption` and `severity`, which only have a meaning together.

The catalogue applies each concept separately. These two are one change whose name and strength are separate concepts,
as in ImageNet-C (stages/concepts/grids.py). `Corrupted` extends an audit's classifier task if its concepts include
them; other audits never use this code.
"""

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
    # One step from the unchanged picture leads to a corruption at severity 1, each further step to the next severity.
    SEVERITY: Corruption(SEVERITY, "how severe, as in ImageNet-C", 1, 5, 1),
}


class CorruptedTransforms(ImageTransforms):
    """Applies the other concepts of a cell, then its corruption.

    Args:
        space: made by `image_space`, with both concepts.
        catalogue: how the other concepts are applied.
    """

    def __init__(self, space: ConceptSpace, catalogue: Mapping[str, ImageConcept]) -> None:
        self._which, self._how = (space.names.index(name) for name in (CORRUPTION, SEVERITY))
        self._names, self._severities = (space.concepts[at].levels for at in (self._which, self._how))
        others = tuple(concept for concept in space.concepts if concept.name != CORRUPTION)
        super().__init__(ConceptSpace(others), catalogue)  # here `severity` is a concept that does nothing

    def __call__(self, images: Tensor, cells: np.ndarray, chance: np.ndarray) -> Tensor:
        images = super().__call__(images, np.delete(cells, self._which, axis=1), chance)
        severities = images.new_tensor(self._severities)[cells[:, self._how]].view(-1, 1, 1, 1)
        for which in np.unique(cells[:, self._which]).tolist():
            if (name := str(self._names[which])) != UNCHANGED:
                rows = np.flatnonzero(cells[:, self._which] == which)
                images[rows] = corrupt(name)(images[rows], severities[rows], chance[rows])
        return images


class Corrupted(ClassifierProbes):
    """Mixin for a classifier task that applies `corruption` at `severity`."""

    @staticmethod
    @cache
    def before(task: type[Task]) -> type[Task]:
        """Return the task with both concepts; unchanged if it is not about pictures or defines `corruption` itself."""
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
        alone = [] if SEVERITY in context.concepts else [f"concepts.{CORRUPTION}: expected {SEVERITY} beside it"]
        return alone + super().conflicts(context, prepare, discrepancy)
