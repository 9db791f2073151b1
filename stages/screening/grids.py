"""The grids of a screening: each concept as an axis with a base, and probes on several grids within one budget.

The *strength* of a level is its distance from the base level, as a share of the strongest level in params.yaml.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10

import numpy as np
import pandas as pd

from stages.concepts import Concept, Level
from stages.core.errors import UsageError
from stages.core.ledger import Ledger
from stages.explorers.prober import Prober
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

Bounds = tuple[float, float]
Levels = Mapping[str, Sequence[Level]]


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


class Probes:
    """All probes of a screening, on any number of grids within one budget.

    Args:
        load: loads the task with other levels of its concepts.
        levels: the levels in params.yaml.
        budget: maximum number of unique probes on all grids together.
        ledger: opens the ledger of a grid.
        compute: threads and batch size of the model.
        tell: called with (unique probes spent, their purpose).

    Raises:
        UsageError: if there are no items to screen on.
    """

    def __init__(
        self,
        load: Callable[[Levels], LoadedTask],
        levels: Levels,
        budget: int,
        ledger: Callable[[Levels], Ledger],
        compute: Compute | None,
        tell: Callable[[int, str], None],
    ) -> None:
        self._load, self._ledger, self._compute, self._tell = load, ledger, compute, tell
        self._budget = budget
        self._probers: dict[str, Prober] = {}
        self.task = load(levels)
        self.item_ids = self.task.items.ids("discover")
        if not self.item_ids:
            raise UsageError("the split discover has no items, so there is nothing to screen")
        self._on(levels, self.task)

    @property
    def spent(self) -> int:
        """Unique probes spent on all grids."""
        return sum(prober.spent for prober in self._probers.values())

    @property
    def left(self) -> int:
        """Unique probes that are left of the budget."""
        return self._budget - self.spent

    def _on(self, levels: Levels, task: LoadedTask | None = None) -> Prober:
        key = repr({name: list(values) for name, values in levels.items()})
        if key not in self._probers:
            ledger = self._ledger(levels)
            self._probers[key] = Prober(task or self._load(levels), self.item_ids, 0, ledger, self._compute)
        return self._probers[key]

    def ask(self, levels: Levels, items: np.ndarray, cells: np.ndarray, purpose: str) -> pd.DataFrame:
        """Probe items (n,), as positions in `item_ids`, at cells (n, concepts) of a grid.

        Returns:
            `discrepancy` and `failed` of the probes that the budget allows, with their positions among the n as index.
        """
        prober = self._on(levels)
        prober.budget = prober.spent + self.left
        size = (self._compute or Compute()).batch_size
        parts = []
        for start in range(0, len(items), size):  # in batches, to show progress
            answers = prober.ask(items[start : start + size], cells[start : start + size])
            parts.append(pd.DataFrame({name: getattr(answers, name) for name in ("discrepancy", "failed", "answered")}))
            self._tell(self.spent, purpose)
        rows = pd.concat(parts, ignore_index=True)
        return rows.loc[rows["answered"], ["discrepancy", "failed"]]
