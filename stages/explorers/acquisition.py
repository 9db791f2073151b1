"""Acquisition: what a probe is worth before it is asked, and how a batch of probes is put together."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.ensemble import ExtraTreesRegressor

from stages.concepts import ConceptSpace
from stages.explorers.surrogate import Surrogate, failure_probability
from stages.kernel import Data

TREES, LEAVES = 20, 32
ENUMERABLE = 20_000  # cells whose failure rates can all be predicted after every fit
TIE = 1e-12  # values nearer to each other than this are equal: sums differ in their last bits by how many there are
FAILING, BLUR = 0.45, 0.05  # a cell counts as one where most items fail from an expected rate of about so much


class Regions:
    """A coarse division of the grid into regions of alike margins, and the failures found in each.

    Small randomised trees (Geurts et al. 2006) divide the grid where the margin changes, so a failure mode is one
    region however many concepts do not matter to it. Counting failures by region instead of by cell is count-based
    exploration with a learnt hash (Tang et al. 2017, #Exploration, Sec. 2.3).
    """

    def __init__(self, space: ConceptSpace, data: Data, seed: int) -> None:
        self.space = space
        self._trees = ExtraTreesRegressor(
            TREES, max_leaf_nodes=LEAVES, min_samples_leaf=5, max_features=1.0, random_state=seed
        ).fit(space.coordinates(data.cells), data.margin)
        self._counts = np.zeros((TREES, 2 * LEAVES))
        for row in self.of(data.cells[data.failed]):
            self.add(row)

    def of(self, cells: np.ndarray) -> np.ndarray:
        """Region of each cell in each tree: (n, trees)."""
        if len(cells) == 0:
            return np.zeros((0, TREES), dtype=np.int64)
        return self._trees.apply(self.space.coordinates(cells))

    def add(self, regions: np.ndarray) -> None:
        """Count a failure in one cell's regions (trees,)."""
        self._counts[np.arange(TREES), regions] += 1

    def novelty(self, regions: np.ndarray, power: float) -> np.ndarray:
        """(1 + failures)^-power of regions (n, trees), mean over the trees: (n,) in (0, 1]."""
        return ((1.0 + self._counts[np.arange(TREES), regions]) ** -power).mean(axis=1)


@dataclass(frozen=True)
class Weights:
    """What an acquisition prefers.

    Args:
        optimism: standard deviations by which the surrogate's mean is raised (upper confidence bound).
        certainty: power of the probability of failure; higher asks less where a failure is only likely.
        novelty: power by which a region loses worth with the failures found in it, and an item with its own; on large
            grids.
        new_cell: share of its worth that a cell without a failure so far has on top.
        failing_cell: the same again where most items are expected to fail; on small grids.
    """

    optimism: float
    certainty: float
    novelty: float
    new_cell: float
    failing_cell: float


class Acquisition:
    """Probability of failure, more of it where few failures were found.

    On a grid small enough to predict the rate of every cell, found means in this cell; on a large one, where hardly any
    cell is met twice, in the regions it lies in and on this item. For an item that fails anywhere, where others hardly
    ever do, would take most of the probes and say nothing of the grid.

    Args:
        surrogate: fitted to the probes so far.
        data: these probes.
        space: the grid.
        n_items: how many items are searched.
        weights: what it prefers.
        seed: of the regions.
    """

    def __init__(
        self, surrogate: Surrogate, data: Data, space: ConceptSpace, n_items: int, weights: Weights, seed: int
    ) -> None:
        self.surrogate, self.data, self.space, self.weights = surrogate, data, space, weights
        small = space.n_cells <= ENUMERABLE
        self.regions = None if small else Regions(space, data, seed)
        self._failing = expit((surrogate.rates(space.cells(), n_items) - FAILING) / BLUR) if small else None
        self._on_item = np.bincount(data.items[data.failed], minlength=n_items)
        self._asked = set(zip(data.items.tolist(), space.flat(data.cells).tolist(), strict=True))
        self._found = np.unique(space.flat(data.cells[data.failed]))

    def __call__(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Worth of asking about items (n,) under cells (n, concepts): (n,)."""
        worth = self._worth(items, cells)
        if self.regions is not None:
            worth = worth * self._novelty(items, self.regions.of(cells))
        return worth

    def _novelty(self, items: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """What is left of the worth of items (n,) in regions (n, trees), on a large grid: (n,) in (0, 1]."""
        assert self.regions is not None
        power = self.weights.novelty
        return self.regions.novelty(regions, power) * (1.0 + self._on_item[items]) ** -power

    def rarity(self, cells: np.ndarray) -> np.ndarray:
        """1 / (1 + failures found in the same place) of cells (n, concepts): (n,) in (0, 1]."""
        if self.regions is not None:
            return self.regions.novelty(self.regions.of(cells), 1.0)
        found = np.bincount(self.space.flat(self.data.cells[self.data.failed]), minlength=self.space.n_cells)
        return 1.0 / (1.0 + found[self.space.flat(cells)])

    def _worth(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        failing = failure_probability(self.surrogate, self.surrogate.believe(items, cells), self.weights.optimism)
        flat = self.space.flat(cells)
        new = ~np.isin(flat, self._found)
        bonus = self.weights.new_cell * new
        if self._failing is not None:
            bonus = bonus + self.weights.failing_cell * new * self._failing[flat]
        return failing**self.weights.certainty * (1 + bonus)

    def batch(self, items: np.ndarray, cells: np.ndarray, n: int) -> np.ndarray:
        """Choose up to n of the candidates, none asked before: their rows.

        A cell's second best has its turn when all cells have had their first, and so on, so that a batch spreads over
        a large grid and still fills up on one of few cells. Each choice counts as a failure in its regions and on its
        item at once, so that a batch spreads as a sequence would.
        """
        flat = self.space.flat(cells)
        fresh = np.fromiter(
            (pair not in self._asked for pair in zip(items.tolist(), flat.tolist(), strict=True)), bool, len(items)
        )
        worth = np.where(fresh, self._worth(items, cells), -np.inf)
        order = np.argsort(-worth, kind="stable")
        order = order[np.isfinite(worth[order])]
        pairs = pd.DataFrame({"item": items[order], "cell": flat[order]}, index=order).drop_duplicates()
        turns = pairs.groupby("cell").cumcount().sort_values(kind="stable")  # the best of each cell first, best first
        rows, turn = turns.index.to_numpy(), turns.to_numpy()
        n = min(n, len(rows))
        if self.regions is None or n == 0:
            return rows[:n]
        reached = turn <= turn[n - 1]
        rows, turn = rows[reached], turn[reached]
        return rows[self._spread(worth[rows], items[rows], self.regions.of(cells[rows]), turn, n)]

    def _spread(self, worth: np.ndarray, items: np.ndarray, regions: np.ndarray, turn: np.ndarray, n: int) -> list[int]:
        """Choose n one by one, turn by turn, the most valuable after the failures that those before will have added.

        Values only fall, so an earlier one bounds a later one from above, and few have to be computed again (lazy
        greedy; Minoux 1978).
        """
        assert self.regions is not None
        chosen: list[int] = []
        bound = worth * self._novelty(items, regions)
        for now in range(int(turn.max()) + 1):
            heap = [(-bound[k], k) for k in np.flatnonzero(turn == now).tolist()]
            heapq.heapify(heap)
            while heap and len(chosen) < n:
                value, k = heap[0][0], heap[0][1]
                exact = -worth[k] * self._novelty(items[k : k + 1], regions[k : k + 1])[0]
                if exact > value + TIE:
                    heapq.heapreplace(heap, (exact, k))
                    continue
                heapq.heappop(heap)
                chosen.append(k)
                self.regions.add(regions[k])
                self._on_item[items[k]] += 1
        return chosen
