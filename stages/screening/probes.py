"""Probes of a screening, on several grids within one budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from stages.concepts import Level
from stages.errors import UsageError
from stages.explorers.prober import Prober
from stages.intervals import Rate, wilson
from stages.ledger import Ledger
from stages.screening.ranges import Axis, declared_bounds
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
        self.task = task = load(levels)
        self.item_ids = task.items.ids("discover")
        if not self.item_ids:
            raise UsageError("the split discover has no items, so there is nothing to screen")
        self.axes = [Axis(concept, declared_bounds(task).get(concept.name)) for concept in task.concepts.concepts]
        self._on(levels, task)
        self.table = pd.DataFrame()

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

    def ask(
        self, levels: Levels, items: np.ndarray, cells: np.ndarray, phase: str, most: int | None = None
    ) -> pd.DataFrame:
        """Probe items (n,) at cells (n, concepts) of a grid.

        Args:
            levels: levels of the grid.
            items: (n,) positions in `item_ids`.
            cells: (n, concepts) level indices.
            phase: purpose of the probes.
            most: maximum number of unique probes to spend; by default all that are left.

        Returns:
            The answered probes: item, phase, one column per concept with its strength, margin, failed, and whether the
            probe is `fresh`, that is, new on this grid.
        """
        prober = self._on(levels)
        prober.budget = prober.spent + (self.left if most is None else min(most, self.left))
        size = (self._compute or Compute()).batch_size
        parts = []
        for start in range(0, len(items), size):  # in batches, to show progress
            answers = prober.ask(items[start : start + size], cells[start : start + size])
            parts.append(np.stack([answers.discrepancy, answers.failed, answers.fresh, answers.answered]))
            self._tell(self.spent, phase)
        discrepancy, failed, fresh, answered = np.hstack(parts)
        margin = discrepancy.astype(float) - prober.task.threshold
        columns = {"item": items, "margin": margin, "failed": failed > 0, "fresh": fresh > 0}
        of = {axis.concept.name: axis for axis in self.axes}
        for j, concept in enumerate(prober.space.concepts):
            columns[concept.name] = of[concept.name].strengths(concept.levels)[cells[:, j]]
        rows = pd.DataFrame(columns).assign(phase=phase)[answered > 0]
        self.table = pd.concat([self.table, rows[rows["fresh"]]], ignore_index=True)
        return rows

    def uniform(self, levels: Levels, n: int, rng: np.random.Generator, phase: str) -> Rate:
        """Probe n (item, cell) pairs of a grid, drawn uniformly among those not probed before.

        Returns:
            The failure rate of these pairs; that of all pairs of the grid if no more than n were left.
        """
        prober, n = self._on(levels), min(n, self.left)
        size = prober.space.n_cells
        pairs = size * len(self.item_ids)
        # Draw enough pairs in random order: known ones cost nothing, and the first n others are the sample.
        drawn = rng.choice(pairs, min(n + prober.spent, pairs), replace=False)
        rows = self.ask(levels, drawn // size, prober.space.cells(drawn % size), phase, n)
        if len(rows) < pairs:
            rows = rows[rows["fresh"]]
        return wilson(int(rows["failed"].sum()), len(rows))
