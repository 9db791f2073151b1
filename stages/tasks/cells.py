"""Which items under which cells a repair learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.tasks.contract import TargetMode

CANDIDATES = 8  # cells drawn for each one that is trained on


class PairSampler:
    """Draws what to train on: rows of items, each under a cell of a target.

    Of a target that is about some items only every other row is about the others, in the same cells: a model that sees
    one class alone fail learns to name that class.

    Args:
        space: the grid.
        targets: where to draw, each in proportion to its severity.
        attributes: what tells the items apart, a row each.
        risk: cells (n, d) -> (n,) failure risk to weight cells by; None weights all alike.

    Raises:
        UsageError: when there is no item that a target is about.
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
        self._share = severity / severity.sum()

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pairs: rows (n,) and cells (n, d) int64."""
        drawn = [
            (self._rows(number, count, rng), self._cells(number, count, rng))
            for number, count in enumerate(rng.multinomial(n, self._share))
        ]
        rows, cells = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        order = rng.permutation(n)
        return rows[order], cells[order]

    def draw_one(self, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        """Draw the number of a target and one of its cells (d,)."""
        number = int(rng.choice(len(self.targets), p=self._share))
        return number, self._cells(number, 1, rng)[0]

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
