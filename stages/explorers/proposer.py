"""Training of an autoregressive policy over cells inside a surrogate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.concepts import ConceptSpace
from stages.explorers.env import Normaliser
from stages.explorers.policy import Autoregressive, AutoregressivePolicy

Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns the rewards in [0, about 2] of items (n,) under cells (n, concepts): (n,)."""

CLIP = 0.2  # PPO's range
ITEMS, CELLS = 64, 16  # items per generation, and cells for each
ITEMS_PER_STEP = 16  # items per gradient step


class _Drawn(NamedTuple):
    observations: Tensor  # (n, f)
    cells: Tensor  # (n, concepts)
    score: Tensor  # (n,)


@dataclass
class Trainer:
    """Trains a policy on a score, at a target entropy.

    It maximises E[score] + temperature * entropy, whose optimum is p(cell | item) ~ exp(score / temperature): a
    distribution over all good cells rather than the best one. The temperature is adapted until the entropy is on target
    (as in soft actor-critic; Haarnoja et al. 2018, Sec. 5). At a fixed one the policy collapses or learns nothing.

    Args:
        space: the grid.
        observations: (items, f) of the training items.
        hidden, learning_rate: of the policy.
        objective: "ppo", the clipped policy gradient (Schulman et al. 2017) with whole cells as actions and the mean
            over the cells drawn for the same item as the baseline; or "balance", the off-policy squared error of log
            p(cell | item) against score / temperature up to a constant per item (trajectory balance, Malkin et al.
            2022, in its log-partition variance form, Zhang et al. 2023), which also learns from even draws.
        seed: seed of weights and draws.
    """

    space: ConceptSpace
    observations: np.ndarray
    hidden: int = 64
    learning_rate: float = 1e-2
    objective: Literal["ppo", "balance"] = "ppo"
    seed: int = 0
    updates: int = 0  # gradient steps so far

    def __post_init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.network = Autoregressive(self.observations.shape[1], self.space.sizes, self.hidden)
        if (usage := self.space.even.usage) is not None:  # a policy that changes everything at once would learn nothing
            with torch.no_grad():
                for j, size in enumerate(self.space.sizes):
                    shares = torch.tensor([usage.share({j: (level,)}) for level in range(size)])
                    self.network.out_bias[j, 0, :size] = shares.clamp(min=1e-4).log()
        self._generator = torch.Generator().manual_seed(self.seed)
        self._rng = np.random.default_rng(self.seed)
        self._optimizer = torch.optim.Adam(self.network.parameters(), self.learning_rate, fused=True)
        self._observations = torch.from_numpy(np.asarray(self.observations, dtype=np.float32))
        self.temperature = 0.2
        self.entropy = 1.0  # of the last draws, as a share of the uniform policy's

    def draw(self, items: np.ndarray) -> np.ndarray:
        """Draw one cell for each of the items (n,): (n, concepts)."""
        with torch.no_grad():
            return self.network.sample(self._observations[items], self._generator).numpy()

    def train(self, score: Score, generations: int, target: float) -> tuple[np.ndarray, np.ndarray]:
        """Draw cells, score them and learn from them, repeatedly, with `target` as the entropy.

        Args:
            score: the reward, evaluated once for every cell drawn.
            generations: number of times that `ITEMS` x `CELLS` cells are drawn.
            target: entropy as a share of the uniform policy's.

        Returns:
            All scored pairs: items (n,), cells (n, concepts).
        """
        drawn = []
        for _ in range(generations):
            items = np.repeat(self._some_items(), CELLS)
            cells = self.draw(items)
            own = np.arange(len(items)) % 4 > 0
            # A quarter is drawn evenly: the search is then no worse than a small pool, and an off-policy objective
            # learns about cells that the policy never draws.
            cells[~own] = self.space.even.sample(int((~own).sum()), self._rng)
            self._learn(items, cells, score(items, cells), own, target)
            drawn.append((items, cells))
        return np.concatenate([items for items, _ in drawn]), np.vstack([cells for _, cells in drawn])

    def _some_items(self) -> np.ndarray:
        n = len(self.observations)
        return self._rng.permutation(np.arange(max(n, ITEMS)) % n)[:ITEMS]

    def _learn(self, items: np.ndarray, cells: np.ndarray, score: np.ndarray, own: np.ndarray, target: float) -> None:
        drawn = _Drawn(self._observations[items], torch.from_numpy(cells), torch.from_numpy(score.astype(np.float32)))
        with torch.no_grad():
            before = self.network(drawn.observations, drawn.cells).sum(dim=1)
        self._steer(float(-before[torch.from_numpy(own)].mean()), target)
        if self.objective == "ppo":  # its gradient is valid only for the policy's own draws
            soft = (drawn.score / self.temperature - before).reshape(-1, CELLS)
            weight = torch.from_numpy(own).float().reshape(-1, CELLS)
            advantage = (soft - (soft * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)) * weight
            advantage = (advantage / (advantage.std() + 1e-6)).flatten()
        groups = torch.from_numpy(self._rng.permutation(len(items) // CELLS)).split(ITEMS_PER_STEP)
        for group in groups:  # whole items, because a cell's advantage is relative to others of the same item
            rows = (group[:, None] * CELLS + torch.arange(CELLS)).flatten()
            log_p = self.network(drawn.observations[rows], drawn.cells[rows]).sum(dim=1)
            if self.objective == "ppo":
                ratio, gain = (log_p - before[rows]).exp(), advantage[rows]
                loss = -torch.minimum(ratio * gain, ratio.clamp(1 - CLIP, 1 + CLIP) * gain).mean()
            else:
                gap = (log_p - drawn.score[rows] / self.temperature).reshape(-1, CELLS)
                loss = functional.smooth_l1_loss(gap, gap.mean(dim=1, keepdim=True).detach().expand_as(gap))
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self._optimizer.step()
            self.updates += 1

    def _steer(self, entropy: float, target: float) -> None:
        """Raise the temperature if the policy's entropy is too low, and lower it if it is too high."""
        self.entropy = entropy / max(math.log(self.space.n_used), 1e-9)
        self.temperature *= math.exp(float(np.clip(target - self.entropy, -0.2, 0.2)))
        self.temperature = float(np.clip(self.temperature, 1e-3, 10.0))

    def policy(self, normaliser: Normaliser) -> AutoregressivePolicy:
        """Return the trained policy."""
        return AutoregressivePolicy("model_based", self.network, normaliser, self.space, {"hidden": self.hidden})
