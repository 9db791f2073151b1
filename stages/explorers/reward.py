"""The reward of an agent, which is neither discrepancy nor failure.

The *discrepancy* is how far an output is from what people expect, a *failure* is a discrepancy above the threshold, and
the *reward* makes an agent look where the audit wants it to. Only the first two are facts about the model under test;
the reward is a choice, made in `discover.settings.reward`.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
from pydantic import Field

from stages.concepts import ConceptSpace
from stages.explorers.acquisition import commonness
from stages.explorers.prober import Answers
from stages.params import Strict

REPEATED = -1.0  # for a probe made before: otherwise an agent settles on one failure and repeats it
MOST_ODDS = 1e6  # the paper's reward is infinite if the model is certain


class RewardConfig(Strict):
    """The reward of a new probe: its base, and weighted bonuses, all of which diminish."""

    base: Literal["margin", "paper"] = Field(
        "margin",
        description="margin over the threshold in [-1, 1], or the paper's: 10 |log odds| of a failure, else -1",
    )
    novelty: float = Field(0.5, ge=0, description="weight of the bonus for failures in cells with few of them")
    region: float = Field(0.0, ge=0, description="weight of the bonus for failures in coarse regions with few of them")
    common: float = Field(
        0.5, ge=0, le=1, description="how much common changes are preferred: 1 by their share of use, 0 not at all"
    )
    coverage: float = Field(0.0, ge=0, description="bonus for a cell never probed before, failing or not")


class Reward:
    """Base and bonuses of new probes; a repeated probe earns -1.

    Base `margin` is the discrepancy minus the threshold, clipped to [-1, 1]: it shows how close a pass was to failing.

    Base `paper` follows the authors' released code, which pays 10 |log(p / (1 - p))| for a wrong answer of probability
    p, and -1 for a right one. A task returns its discrepancy and no probabilities, so here p is (1 + margin) / 2. For a
    classifier, whose discrepancy is tanh(z / s) with z the log odds of the best wrong answer against the right one,
    this is 20 z / s: the same quantity in other units, but not U-shaped in p, and bounded.

    What is earned counts by how common the cell is in use; a cell that never occurs costs as much as a repeated one.

    Bonuses are count-based (Bellemare et al. 2016): `novelty` pays weight / sqrt(1 + n) for a failure in a cell with n
    failures so far; `region` pays the same for the region of the cell, which is one half of every ordered concept and
    one category of every other; `coverage` pays its weight for the first probe of a cell.

    Args:
        space: the concept space.
        threshold: the task's threshold for a failure.
        config: base and weights.
    """

    def __init__(self, space: ConceptSpace, threshold: float, config: RewardConfig | None = None) -> None:
        self.space, self.threshold, self.config = space, threshold, config or RewardConfig()
        # The part of its concept that each level belongs to.
        self._parts = [
            np.arange(len(c)) // max(1, (len(c) + 1) // 2) if c.ordered else np.arange(len(c)) for c in space.concepts
        ]
        self.forget()

    def forget(self) -> None:
        """Reset, as if nothing had been probed yet."""
        self._paid: set[tuple[int, int]] = set()
        self._probed: set[int] = set()
        self._failures: Counter[int] = Counter()  # by cell
        self._regional: Counter[tuple[int, ...]] = Counter()

    def regions(self, cells: np.ndarray) -> list[tuple[int, ...]]:
        """Return the coarse region of each cell (n, d), as a tuple of d parts."""
        parts = np.stack([part[cells[:, j]] for j, part in enumerate(self._parts)], axis=1)
        return [tuple(row) for row in parts.tolist()]

    def __call__(self, items: np.ndarray, cells: np.ndarray, answers: Answers) -> np.ndarray:
        """Compute rewards for the answers about items (n,) under cells (n, d).

        Returns:
            Rewards (n,) float32; 0 for probes that the budget left unanswered.
        """
        reward = np.where(answers.answered, self._base(answers), 0.0)
        numbers, regions = self.space.flat(cells).tolist(), self.regions(cells)
        for n in np.flatnonzero(answers.answered).tolist():
            pair = (int(items[n]), numbers[n])
            if pair in self._paid:
                reward[n] = REPEATED
                continue
            self._paid.add(pair)
            reward[n] += self._bonus(numbers[n], regions[n], bool(answers.failed[n]))
        worth = commonness(self.space, cells, self.config.common)
        reward = np.where(reward > 0, reward * worth, reward)
        reward[answers.answered & (worth == 0)] = REPEATED
        return reward.astype(np.float32)

    def _base(self, answers: Answers) -> np.ndarray:
        margin = np.clip(answers.discrepancy - self.threshold, -1.0, 1.0)
        if self.config.base == "margin":
            return margin
        with np.errstate(divide="ignore"):
            odds = np.clip((1 + margin) / (1 - margin), 1.0, MOST_ODDS)  # a failure's odds are above 1
        return np.where(answers.failed, 10 * np.log(odds), -1.0)

    def _bonus(self, cell: int, region: tuple[int, ...], failed: bool) -> float:
        bonus = 0.0 if cell in self._probed else self.config.coverage
        self._probed.add(cell)
        if failed:
            bonus += self.config.novelty / np.sqrt(1 + self._failures[cell])
            bonus += self.config.region / np.sqrt(1 + self._regional[region])
            self._failures[cell] += 1
            self._regional[region] += 1
        return bonus
