"""Generators of candidates for the next probes, and the portfolio in which they compete.

A generator only names pairs of item and cell. The acquisition decides which of them are probed, so a poor generator
costs computing time, not probes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from stages.concepts import ConceptSpace
from stages.explorers.acquisition import Acquisition
from stages.explorers.proposer import CELLS, ITEMS, Trainer

WARM_UP = 5  # generations a new policy learns from before its candidates count


class Pairs(NamedTuple):
    """Items (n,) by number, and cells (n, concepts)."""

    items: np.ndarray
    cells: np.ndarray


class Generator(Protocol):
    """Names candidates worth ranking; it has the state of one search."""

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        """Name up to `size` candidates, given the current worth of probes."""
        ...


class EvenDraws:
    """Even draws of pairs, and small changes of pairs.

    Args:
        space: the grid.
        n_items: number of items searched.
        rng: random generator of the draws.
    """

    def __init__(self, space: ConceptSpace, n_items: int, rng: np.random.Generator) -> None:
        self.space, self.n_items, self.rng = space, n_items, rng

    def draw(self, n: int) -> Pairs:
        """Draw pairs evenly."""
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
        generators: by name.
        size: number of candidates that all generators together name at once.
        rng: random generator of the draws.
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
