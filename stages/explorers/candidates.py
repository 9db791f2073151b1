"""Where candidates for the next probes come from: uniform draws, mutations of good ones, or a policy."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from stages.concepts import ConceptSpace
from stages.explorers.acquisition import Acquisition
from stages.explorers.proposer import Trainer

WARM_UP = 20  # generations a new policy learns from before its first candidates count


class Pairs(NamedTuple):
    """Items (n,) by number, and cells (n, concepts)."""

    items: np.ndarray
    cells: np.ndarray


class Source(Protocol):
    """Names candidates worth ranking; it holds the state of one search."""

    def propose(self, worth: Acquisition) -> Pairs:
        """Name candidates, given what a probe is worth now."""
        ...


class Uniform:
    """Uniform draws.

    Args:
        space: the grid.
        n_items: how many items are searched.
        size: candidates named at once.
        rng: of the draws.
    """

    def __init__(self, space: ConceptSpace, n_items: int, size: int, rng: np.random.Generator) -> None:
        self.space, self.n_items, self.size, self.rng = space, n_items, size, rng

    def propose(self, worth: Acquisition) -> Pairs:
        """See Source."""
        return Pairs(self.rng.integers(self.n_items, size=self.size), self.space.sample(self.size, self.rng))


class Mutations:
    """Uniform draws, then mutations of the best so far: another item, or another level of one concept.

    Args:
        space, n_items, rng: as for Uniform.
        size: candidates named at once, over all generations.
    """

    GENERATIONS, PARENTS = 4, 8  # the first is drawn; one candidate in so many is a parent of the next

    def __init__(self, space: ConceptSpace, n_items: int, size: int, rng: np.random.Generator) -> None:
        self.space, self.n_items, self.rng = space, n_items, rng
        self.size = max(1, size // self.GENERATIONS)

    def propose(self, worth: Acquisition) -> Pairs:
        """See Source."""
        pairs = Uniform(self.space, self.n_items, self.size, self.rng).propose(worth)
        value = worth(*pairs)
        for _ in range(self.GENERATIONS - 1):
            best = np.argsort(-value, kind="stable")[: max(1, self.size // self.PARENTS)]
            children = self._mutated(pairs, np.resize(best, self.size))
            value = np.concatenate([value, worth(*children)])
            pairs = Pairs(np.concatenate([pairs.items, children.items]), np.vstack([pairs.cells, children.cells]))
        return pairs

    def _mutated(self, pairs: Pairs, parents: np.ndarray) -> Pairs:
        items, cells = pairs.items[parents], pairs.cells[parents]
        changed = self.rng.integers(-1, len(self.space), size=len(parents))  # a concept, or -1 for the item
        items = np.where(changed < 0, self.rng.integers(self.n_items, size=len(parents)), items)
        rows = np.flatnonzero(changed >= 0)
        cells[rows, changed[rows]] = self.rng.integers(0, np.array(self.space.sizes)[changed[rows]])
        return Pairs(items, cells)


class Learnt:
    """All that a policy drew while it was trained on what a probe is worth now, a quarter of it uniformly.

    Args:
        trainer: of the policy, which stays from one fit of the surrogate to the next.
        generations: draws it learns from each time.
        entropy: it is held to, as a share of the uniform policy's.
    """

    def __init__(self, trainer: Trainer, generations: int, entropy: float) -> None:
        self.trainer, self.generations, self.entropy = trainer, generations, entropy

    def propose(self, worth: Acquisition) -> Pairs:
        """See Source."""
        generations = self.generations if self.trainer.updates else WARM_UP
        return Pairs(*self.trainer.train(worth, generations, self.entropy))
