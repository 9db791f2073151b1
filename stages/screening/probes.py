"""Probes of a screening, on several grids within one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from stages.concepts import Level
from stages.core.errors import UsageError
from stages.core.ledger import Ledger
from stages.explorers.prober import Prober
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

Levels = Mapping[str, Sequence[Level]]


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
