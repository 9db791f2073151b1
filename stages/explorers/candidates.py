"""Generators of candidates for the next probes, and the portfolio in which they compete.

A generator only names pairs of item and cell. The acquisition decides which of them are probed, so a poor generator
costs computing time, not probes. One generator is an autoregressive policy over cells, trained inside a surrogate.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.concepts import ConceptSpace
from stages.explorers.env import Normaliser
from stages.explorers.policy import Autoregressive, AutoregressivePolicy
from stages.explorers.surrogate import Acquisition

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
        observations: (items, f) of the training items.
        objective: "ppo", the clipped policy gradient (Schulman et al. 2017) with whole cells as actions and the mean
            over the cells drawn for the same item as the baseline; or "balance", the off-policy squared error of log
            p(cell | item) against score / temperature up to a constant per item (trajectory balance, Malkin et al.
            2022, in its log-partition variance form, Zhang et al. 2023), which also learns from even draws.
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
        return AutoregressivePolicy("model_based", self.network, normaliser, self.space, {"hidden": self.hidden})


WARM_UP = 5  # generations a new policy learns from before its candidates count


class Pairs(NamedTuple):
    """Items (n,) by number, and cells (n, concepts)."""

    items: np.ndarray
    cells: np.ndarray


class Generator(Protocol):
    """Names candidates worth ranking; it has the state of one search."""

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        """Name up to `size` candidates, given the current worth of probes."""


class EvenDraws:
    """Even draws of pairs, and small changes of pairs."""

    def __init__(self, space: ConceptSpace, n_items: int, rng: np.random.Generator) -> None:
        self.space, self.n_items, self.rng = space, n_items, rng

    def draw(self, n: int) -> Pairs:
        return Pairs(self.rng.integers(self.n_items, size=n), self.space.even.sample(n, self.rng))

    def mutated(self, pairs: Pairs) -> Pairs:
        """Change one thing in each pair: its item, or its level of one concept."""
        items, cells = pairs.items, pairs.cells.copy()
        changed = self.rng.integers(-1, len(self.space), size=len(items))  # a concept, or -1 for the item
        items = np.where(changed < 0, self.rng.integers(self.n_items, size=len(items)), items)
        rows = np.flatnonzero(changed >= 0)
        cells[rows, changed[rows]] = self.rng.integers(0, np.array(self.space.sizes)[changed[rows]])
        return Pairs(items, cells)


class _OnGrid:
    """A generator that learns nothing."""

    def __init__(self, grid: EvenDraws) -> None:
        self.grid = grid


class Uniform(_OnGrid):
    """Even draws, for pairs that the other generators never name."""

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        return self.grid.draw(size)


class Ascent(_OnGrid):
    """Even draws, then mutations of the most valuable ones: local search inside the surrogate."""

    GENERATIONS, PARENTS = 4, 8  # the first generation is drawn; one in this many candidates is a parent of the next

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        each = max(1, size // self.GENERATIONS)
        pairs = self.grid.draw(each)
        value = worth(*pairs)
        for _ in range(self.GENERATIONS - 1):
            parents = np.resize(np.argsort(-value, kind="stable")[: max(1, each // self.PARENTS)], each)
            children = self.grid.mutated(Pairs(pairs.items[parents], pairs.cells[parents]))
            value = np.concatenate([value, worth(*children)])
            pairs = Pairs(np.concatenate([pairs.items, children.items]), np.vstack([pairs.cells, children.cells]))
        return pairs


class Mutations(_OnGrid):
    """Known failures with one thing changed, because failures seldom occur alone."""

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        """See Generator; before the first failure these are even draws."""
        known = worth.data.take(worth.data.failed)
        if len(known) == 0:
            return self.grid.draw(size)
        rows = self.grid.rng.integers(len(known), size=size)
        return self.grid.mutated(Pairs(known.items[rows], known.cells[rows]))


class Archive(_OnGrid):
    """Offspring of failures, equally from every niche, as in MAP-Elites (Mouret and Clune 2015).

    The niches are the places of the acquisition, which follow the failures found, instead of a fixed division of the
    grid. Half of the offspring take some of their levels from a second parent (uniform crossover, Syswerda 1989), half
    get another item, and all are mutated.
    """

    CROSSED = 0.3  # share of the levels from the second parent

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        """See Generator; before the first failure these are even draws."""
        known, rng = worth.data.take(worth.data.failed), self.grid.rng
        if len(known) == 0:
            return self.grid.draw(size)
        rarity = worth.rarity(known.cells)
        first, second = rng.choice(len(known), size=(2, size), p=rarity / rarity.sum())
        crossed = rng.random((size, len(self.grid.space))) < self.CROSSED
        crossed[size // 2 :] = False
        cells = np.where(crossed, known.cells[second], known.cells[first])
        items = np.where(rng.random(size) < 0.5, rng.integers(self.grid.n_items, size=size), known.items[first])
        return self.grid.mutated(Pairs(items, cells))


ON_GRID: Mapping[str, Callable[[EvenDraws], Generator]] = {
    "archive": Archive,
    "mutations": Mutations,
    "uniform": Uniform,
    "ascent": Ascent,
}


class LearntDraws:
    """Draws of a policy that learns the current worth of probes, by reinforcement learning inside the surrogate.

    Args:
        trainer: trainer of the policy, which persists between fits of the surrogate.
        entropy: target entropy, as a share of the uniform policy's.
    """

    def __init__(self, trainer: Trainer, entropy: float) -> None:
        self.trainer, self.entropy = trainer, entropy

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        """See Generator; returns the last draws, a quarter of which are even."""
        generations = -(-size // (ITEMS * CELLS)) if self.trainer.updates else WARM_UP
        items, cells = self.trainer.train(worth, generations, self.entropy)
        return Pairs(items[-size:], cells[-size:])


class Named(NamedTuple):
    """Candidates, and the number of the generator that named each (n,)."""

    pairs: Pairs
    by: np.ndarray


class Portfolio:
    """Generators that compete for places in the pool of candidates, by the model's answers to theirs.

    A generator's credit estimates the worth of one more of its candidates: failures found by them, each weighted by its
    reward, per candidate named. The pool is divided into blocks, each given to the generator with the highest draw from
    the posterior of its credit, a beta distribution whose evidence fades from batch to batch (discounted Thompson
    sampling; Raj and Kalyani 2017). This is adaptive operator selection (Fialho et al. 2010) judged by the model's
    answers: the surrogate's opinion of a candidate earns nothing.

    Args:
        size: number of candidates that all generators together name at once.
    """

    BLOCKS = 12  # number of blocks of the pool
    FADING = 0.8  # share of the evidence kept from one batch to the next
    PRIOR = (1.0, 20.0)  # failures and others to start with: above later rates, so that every generator is tried

    def __init__(self, generators: Mapping[str, Generator], size: int, rng: np.random.Generator) -> None:
        self.generators, self.size, self.rng = dict(generators), size, rng
        n = len(self.generators)
        self._earned, self._named = np.zeros(n), np.zeros(n)  # fading
        self.picked, self.failed = np.zeros(n, np.int64), np.zeros(n, np.int64)  # of all probes so far

    def shares(self) -> np.ndarray:
        """Return the number of candidates each generator may name now (generators,)."""
        n = len(self.generators)
        if n == 1 or not self._named.any():
            return np.full(n, max(1, self.size // n))
        won, lost = self.PRIOR
        lost_now = np.maximum(self._named - self._earned, 0.0)
        draws = self.rng.beta(won + self._earned[:, None], lost + lost_now[:, None], size=(n, self.BLOCKS))
        return np.bincount(draws.argmax(axis=0), minlength=n) * max(1, self.size // self.BLOCKS)

    def propose(self, worth: Acquisition) -> Named:
        """Let each generator name as many candidates as its credit allows."""
        shares = self.shares()
        each = [
            (k, generator.propose(worth, int(shares[k])))
            for k, generator in enumerate(self.generators.values())
            if shares[k] > 0
        ]
        by = np.concatenate([np.full(len(pairs.items), k) for k, pairs in each])
        self._earned, self._named = self.FADING * self._earned, self.FADING * self._named
        self._named += np.bincount(by, minlength=len(shares))
        items, cells = zip(*(pairs for _, pairs in each), strict=True)
        return Named(Pairs(np.concatenate(items), np.vstack(cells)), by)

    def credit(self, by: np.ndarray, failed: np.ndarray, reward: np.ndarray) -> None:
        """Credit the generators that named the probed candidates.

        Args:
            by: (n,) number of the generator that named each.
            failed: (n,) whether it failed.
            reward: (n,) worth of a failure, in [0, 1].
        """
        n = len(self.generators)
        self._earned += np.bincount(by, weights=failed * reward, minlength=n)
        self.picked += np.bincount(by, minlength=n)
        self.failed += np.bincount(by[failed], minlength=n)

    def told(self) -> dict[str, dict[str, int]]:
        """Return the probes of each generator's candidates, and failures among them, for the metrics."""
        counts = zip(self.generators, self.picked.tolist(), self.failed.tolist(), strict=True)
        return {name: {"probes": picked, "failures": failed} for name, picked, failed in counts}
