"""Which cells a repair learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stages.concepts import ConceptSpace
from stages.tasks.contract import TargetMode

CANDIDATES = 8  # cells drawn for each one that is trained on


class CellSampler:
    """Draws the cells to train on.

    Args:
        space: the grid.
        targets: where to draw, each in proportion to its severity.
        risk: cells (n, d) -> (n,) failure risk to weight cells by; None weights all alike.
    """

    def __init__(
        self, space: ConceptSpace, targets: Sequence[TargetMode], risk: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.space, self.targets, self.risk = space, targets, risk
        severity = np.array([t.severity for t in targets], dtype=float)
        self._share = severity / severity.sum()

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n cells: (n, d) int64."""
        if self.risk is None:
            return self._draw(n, rng)
        candidates = self._draw(CANDIDATES * n, rng)
        weights = self.risk(candidates)
        return candidates[rng.choice(len(candidates), size=n, replace=False, p=weights / weights.sum())]

    def _draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        counts = rng.multinomial(n, self._share)
        drawn = [t.region.sample(self.space, c, rng) for t, c in zip(self.targets, counts, strict=True)]
        return rng.permutation(np.concatenate(drawn))
