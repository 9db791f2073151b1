"""The sampler of a repair's training pairs (item, cell), from its target modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import RepairPlan, TargetMode

CANDIDATES = 8  # cells drawn for each one that is trained on


def sampler(task: LoadedTask, plan: RepairPlan, items: Sequence[str]) -> PairSampler:
    """Return the sampler that a plan asks for: pairs of these items and cells.

    Raises:
        UsageError: see `RepairPlan.regions` and `PairSampler`.
    """
    return PairSampler(task.concepts, plan.regions(task.concepts), known_attributes(task, items))


class PairSampler:
    """Draws training pairs from the targets: rows of items, each with a cell of a target.

    If a target is about only some items, every other row is one of the remaining items, in the same cells: a model that
    sees only one class in these cells learns to always answer that class.

    Args:
        space: the grid.
        targets: where to draw, in proportion to severity.
        attributes: attributes of the items, one row each.
        risk: cells (n, d) -> (n,) failure risk by which cells are weighted; None weights all alike.

    Raises:
        UsageError: if a target is about none of the items.
    """

    def __init__(
        self,
        space: ConceptSpace,
        targets: Sequence[TargetMode],
        attributes: pd.DataFrame,
        risk: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.space, self.targets, self.risk, self._items = space, targets, risk, np.arange(len(attributes))
        self.rows = [np.flatnonzero(target.region.about(attributes)) for target in targets]
        if none := [t for t, rows in zip(targets, self.rows, strict=True) if not len(rows)]:
            raise UsageError(
                f"{none[0].id} ({none[0].region.describe(space)}) is about none of the {len(attributes)} items that the"
                " repair learns from: add items (prepare.items.repair), or choose other modes"
            )
        severity = np.array([t.severity for t in targets], dtype=float)
        self.share = severity / severity.sum()

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pairs: rows of items (n,) and cells (n, d) int64."""
        counts = rng.multinomial(n, self.share)
        parts = [(self._rows(number, k, rng), self._cells(number, k, rng)) for number, k in enumerate(counts)]
        rows, cells = (np.concatenate(side) for side in zip(*parts, strict=True))
        order = rng.permutation(len(rows))
        return rows[order], cells[order]

    def _rows(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        rows = self.rows[number]
        others = np.setdiff1d(self._items, rows)
        half = n // 2 if len(others) else 0
        sides = (np.resize(rng.permutation(side), count) for side, count in ((rows, n - half), (others, half)))
        return rng.permutation(np.concatenate([*sides]))

    def _cells(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        region = self.targets[number].region
        if self.risk is None or n == 0:
            return region.sample(self.space, n, rng)
        candidates = region.sample(self.space, CANDIDATES * n, rng)
        weights = self.risk(candidates)
        return candidates[rng.choice(len(candidates), size=n, replace=False, p=weights / weights.sum())]
