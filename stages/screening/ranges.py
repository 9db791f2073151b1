"""Ranges of concepts: where nothing is changed, how strong each level is, and the same levels nearer to the unchanged.

The *strength* of a level is its distance from the base level, as a share of the strongest level in params.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log10

import numpy as np

from stages.concepts import Concept, Level
from stages.tasks.base import LoadedTask

Bounds = tuple[float, float]


def declared_bounds(task: LoadedTask) -> dict[str, Bounds]:
    """Return the lowest and highest level that the task's `catalogue` allows, by concept; empty without a catalogue.

    A concept with declared bounds is valid at every level between them. For others, and for those that are `whole`,
    only the levels in params.yaml are known to be valid.
    """
    catalogue = task.automatic_task.catalogue
    known = (n for n in task.concepts.names if n in catalogue and not getattr(catalogue[n], "whole", False))
    return {name: (float(catalogue[name].low), float(catalogue[name].high)) for name in known}


@dataclass(frozen=True)
class Axis:
    """One concept as an axis with a base.

    Args:
        concept: the concept with the user's levels.
        bounds: lowest and highest level that the task allows, inclusive; None if only the user's levels are known.
    """

    concept: Concept
    bounds: Bounds | None = None

    @property
    def base(self) -> int:
        """Index of the level to compare with: the neutral one if there is one, else the first."""
        neutral = self.concept.neutral
        return self.concept.levels.index(neutral) if neutral is not None and neutral in self.concept.levels else 0

    @property
    def shrinks(self) -> bool:
        """Whether levels between those of the user are valid, and all lie on one side of the base."""
        numbers = self.concept.ordered and all(isinstance(level, int | float) for level in self.concept.levels)
        return numbers and self.bounds is not None and self.base == 0

    @property
    def weakest(self) -> float:
        """The strength of the weakest level."""
        reach = np.abs(np.array(self.concept.levels, dtype=float) - float(self.concept.levels[0]))
        return float(reach[1] / reach.max())

    def scaled(self, factor: float) -> tuple[Level, ...]:
        """Return the levels with every strength multiplied by `factor`, at most 1, rounded to short numbers."""
        if self.bounds is None:
            raise ValueError(f"{self.concept.name} has no bounds, so no other levels of it are known to be valid")
        own = np.array(self.concept.levels, dtype=float)
        values = own[self.base] + factor * (own - own[self.base])
        # Rounding to half the smallest gap or finer keeps all levels distinct.
        decimals = max(0, ceil(-log10(np.abs(np.diff(values)).min() / 2)))
        rounded = np.clip(values.round(decimals), *self.bounds) + 0.0  # no -0
        rounded[self.base] = own[self.base]  # rounding it might leave no neutral level
        return tuple(rounded.tolist())
