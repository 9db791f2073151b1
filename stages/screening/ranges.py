"""Ranges of concepts: levels as strengths, and the same levels narrowed or widened.

The *strength* of a level is its distance from the base level, as a share of the strongest level in params.yaml.
Narrowing or widening a range multiplies all strengths by one factor, which keeps the user's spacing.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """One concept as an axis that can be narrowed or widened.

    Args:
        concept: the concept with the user's levels.
        bounds: lowest and highest level that the task allows, inclusive; None if only the user's levels are known.
    """

    concept: Concept
    bounds: Bounds | None = None

    @property
    def numeric(self) -> bool:
        """Whether levels have strengths; categories are measured, but never re-ranged."""
        return self.concept.ordered and all(isinstance(level, int | float) for level in self.concept.levels)

    @property
    def base(self) -> int:
        """Index of the level to compare with: the neutral one if there is one, else the first."""
        neutral = self.concept.neutral
        return self.concept.levels.index(neutral) if neutral is not None and neutral in self.concept.levels else 0

    @property
    def ends(self) -> list[int]:
        """Indices of the levels to compare with the base: the outermost ones, or all other categories."""
        last = len(self.concept) - 1
        return [i for i in ((0, last) if self.numeric else range(last + 1)) if i != self.base]

    @property
    def widest(self) -> float:
        """The largest factor that keeps every level within the bounds; 1 if none are declared."""
        if not self.numeric or self.bounds is None:
            return 1.0
        low, high = self.bounds
        values = np.array(self.concept.levels, dtype=float)
        reach = values - values[self.base]
        room = np.where(reach > 0, high - values[self.base], low - values[self.base])
        return float(min(room[reach != 0] / reach[reach != 0]))

    def strengths(self, levels: Sequence[Level]) -> np.ndarray:
        """Return the strengths of levels, (n,): 0 at the base, 1 or -1 at the strongest; for categories their index."""
        if not self.numeric:
            return np.array([self.concept.levels.index(level) for level in levels], dtype=float)
        own = np.array(self.concept.levels, dtype=float)
        reach = own - own[self.base]
        return (np.array(levels, dtype=float) - own[self.base]) / np.abs(reach).max() * np.sign(reach[-1] or 1.0)

    def scaled(self, factor: float) -> tuple[Level, ...]:
        """Return the levels with every strength multiplied by `factor`, rounded to short numbers; the base stays.

        Without declared bounds, return those of the user's levels that are no stronger than `factor`, at least two.
        """
        levels = self.concept.levels
        if not self.numeric or factor == 1.0:
            return levels
        if self.bounds is None:
            strength = np.abs(self.strengths(levels))
            kept = strength <= max(factor, np.sort(strength)[1]) + 1e-9
            return tuple(level for level, keep in zip(levels, kept, strict=True) if keep)
        own = np.array(levels, dtype=float)
        values = own[self.base] + min(factor, self.widest) * (own - own[self.base])
        # Rounding to half the smallest gap or finer keeps all levels distinct.
        decimals = max(0, ceil(-log10(np.abs(np.diff(values)).min() / 2)))
        rounded = np.clip(values.round(decimals), *self.bounds) + 0.0  # no -0
        rounded[self.base] = own[self.base]  # rounding it might leave no neutral level
        return tuple(rounded.tolist())
