"""How far each concept reaches: its levels as strengths, and the same levels drawn in or out.

The *strength* of a level is its distance from where nothing happens, as a share of the strongest level the user named.
Drawing a range in or out keeps the user's own spacing and multiplies strengths by one factor.
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
    """The lowest and highest level of each concept that the task's `catalogue` allows; none where it has no catalogue.

    A concept with declared bounds has a meaning at every level between them. Of any other, and of those that are
    `whole`, only the levels in params.yaml are known to mean something.
    """
    catalogue = task.automatic_task.catalogue
    known = (n for n in task.concepts.names if n in catalogue and not getattr(catalogue[n], "whole", False))
    return {name: (float(catalogue[name].low), float(catalogue[name].high)) for name in known}


@dataclass(frozen=True)
class Axis:
    """One concept as an axis that can be drawn in or out.

    Args:
        concept: as the user wrote it.
        bounds: levels allowed by the task, both included; None: the user's own levels are all that is known.
    """

    concept: Concept
    bounds: Bounds | None = None

    @property
    def numeric(self) -> bool:
        """Whether levels have strengths; categories and names are measured, but never re-ranged."""
        return self.concept.ordered and all(isinstance(level, int | float) for level in self.concept.levels)

    @property
    def base(self) -> int:
        """Index of the level to compare with: the neutral one, else the weakest."""
        neutral = self.concept.neutral
        return self.concept.levels.index(neutral) if neutral is not None and neutral in self.concept.levels else 0

    @property
    def ends(self) -> list[int]:
        """Indices of the levels compared with the base: the outermost ones, or all other categories."""
        last = len(self.concept) - 1
        return [i for i in ((0, last) if self.numeric else range(last + 1)) if i != self.base]

    @property
    def widest(self) -> float:
        """The largest factor that keeps every level within the bounds; 1 where none are declared."""
        if not self.numeric or self.bounds is None:
            return 1.0
        low, high = self.bounds
        values = np.array(self.concept.levels, dtype=float)
        reach = values - values[self.base]
        room = np.where(reach > 0, high - values[self.base], low - values[self.base])
        return float(min(room[reach != 0] / reach[reach != 0]))

    def strengths(self, levels: Sequence[Level]) -> np.ndarray:
        """Strengths of some levels (n,): 0 at the base, 1 or -1 at the strongest; for categories their number."""
        if not self.numeric:
            return np.array([self.concept.levels.index(level) for level in levels], dtype=float)
        own = np.array(self.concept.levels, dtype=float)
        reach = own - own[self.base]
        return (np.array(levels, dtype=float) - own[self.base]) / np.abs(reach).max() * np.sign(reach[-1] or 1.0)

    def scaled(self, factor: float) -> tuple[Level, ...]:
        """The levels with every strength multiplied by `factor`, rounded to what people would write; the base stays.

        Without declared bounds: those of the user's own levels that are no stronger than `factor`, at least two.
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
        # Half the smallest gap is the coarsest unit at which no two levels can meet, rounded or not.
        decimals = max(0, ceil(-log10(np.abs(np.diff(values)).min() / 2)))
        rounded = np.clip(values.round(decimals), *self.bounds) + 0.0  # no -0
        rounded[self.base] = own[self.base]  # else nothing might be neutral any more
        return tuple(rounded.tolist())
