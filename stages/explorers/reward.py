"""What an agent is paid. Reward, discrepancy and failure are three different things.

The *discrepancy* says how far an output is from what people expect, a *failure* is a discrepancy above the
threshold, and the *reward* is what makes an agent look where the audit wants it to.
"""

from __future__ import annotations

import numpy as np

from stages.concepts import ConceptSpace
from stages.explorers.prober import Answers


class Reward:
    """Bounded margin plus novelty.

    A new probe earns its margin over the threshold, clipped to [-1, 1], and a failing one a bonus that shrinks
    with the number of failures already found in its cell (count-based exploration, Bellemare et al. 2016). A probe
    asked before earns -1, less than any new one: without that an agent settles on one failure and repeats it.

    Args:
        space: the concept space; novelty is counted per cell.
        threshold: the task's threshold for a failure.
        novelty: weight of the bonus; 0 pays the margin alone.
    """

    def __init__(self, space: ConceptSpace, threshold: float, novelty: float = 0.5) -> None:
        self.space, self.threshold, self.novelty = space, threshold, novelty
        self.forget()

    def forget(self) -> None:
        """Start anew, as if nothing had been asked yet."""
        self._paid: set[tuple[int, int]] = set()
        self._failures: dict[int, int] = {}

    def __call__(self, items: np.ndarray, cells: np.ndarray, answers: Answers) -> np.ndarray:
        """Pay for the answers about items (n,) under cells (n, d).

        Returns:
            Rewards (n,) float32; 0 where the budget left no answer.
        """
        reward = np.clip(answers.discrepancy - self.threshold, -1.0, 1.0)
        for n, pair in enumerate(zip(items.tolist(), self.space.flat(cells).tolist(), strict=True)):
            if pair in self._paid:
                reward[n] = -1.0
            elif answers.failed[n]:
                found = self._failures.get(pair[1], 0)
                reward[n] += self.novelty / np.sqrt(1.0 + found)
                self._failures[pair[1]] = found + 1
            if answers.answered[n]:
                self._paid.add(pair)
        return np.where(answers.answered, reward, 0.0).astype(np.float32)
