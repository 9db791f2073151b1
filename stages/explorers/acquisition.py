"""Acquisition: the expected worth of a probe, and the choice of a batch of probes."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.ensemble import ExtraTreesRegressor

from stages.concepts import ConceptSpace
from stages.explorers.kernel import ProbeArrays
from stages.explorers.surrogate import Surrogate, failure_probability

TREES, LEAVES = 20, 32
ENUMERABLE = 20_000  # largest grid for which the failure rates of all cells are predicted after every fit
TIE = 1e-12  # values closer than this are equal: the last bits of a sum depend on the number of terms
FAILING, BLUR = 0.45, 0.05  # expected rate above which a cell counts as mostly failing, and the width of that step


class Regions:
    """A coarse division of the grid into regions of similar margins, with the number of failures found in each.

    Small randomised trees (Geurts et al. 2006) divide the grid where the margin changes, so a failure mode is one
    region however many concepts are irrelevant to it. Counting failures by region instead of by cell is count-based
    exploration with a learnt hash (Tang et al. 2017, #Exploration, Sec. 2.3).
    """

    def __init__(self, space: ConceptSpace, data: ProbeArrays, seed: int) -> None:
        self.space = space
        self._trees = ExtraTreesRegressor(
            TREES, max_leaf_nodes=LEAVES, min_samples_leaf=5, max_features=1.0, random_state=seed
        ).fit(space.coordinates(data.cells), data.margin)
        self._counts = np.zeros((TREES, 2 * LEAVES))
        for row in self.of(data.cells[data.failed]):
            self.add(row)

    def of(self, cells: np.ndarray) -> np.ndarray:
        """Return the region of each cell in each tree: (n, trees)."""
        if len(cells) == 0:
            return np.zeros((0, TREES), dtype=np.int64)
        return self._trees.apply(self.space.coordinates(cells))

    def add(self, regions: np.ndarray) -> None:
        """Count a failure in one cell's regions (trees,)."""
        self._counts[np.arange(TREES), regions] += 1

    def novelty(self, regions: np.ndarray, power: float) -> np.ndarray:
        """Return (1 + failures)^-power of regions (n, trees), averaged over the trees: (n,) in (0, 1]."""
        return ((1.0 + self._counts[np.arange(TREES), regions]) ** -power).mean(axis=1)


@dataclass(frozen=True)
class Weights:
    """The preferences of an acquisition.

    Args:
        optimism: standard deviations by which the surrogate's mean is raised (upper confidence bound).
        certainty: exponent of the probability of failure; higher values avoid probes that only may fail.
        novelty: exponent by which regions and items lose worth with their failures found; on large grids.
        new_cell: bonus, as a share of its worth, for a cell without a failure so far.
        failing_cell: the same bonus for cells in which most items are expected to fail; on small grids.
        common: exponent of how common a cell is, see `commonness`.
        severity: bonus, as a share of its worth, for a margin of one typical failure beyond the threshold.
    """

    optimism: float
    certainty: float
    novelty: float
    new_cell: float
    failing_cell: float
    common: float = 0.0
    severity: float = 0.0


def commonness(space: ConceptSpace, cells: np.ndarray, power: float) -> np.ndarray:
    """Return how common each cell (n, concepts) is, relative to the most common change, to a power: (n,) in [0, 1].

    It goes by the number of changes alone, as the control's draws do, so that a search serves other weights of levels,
    too. What never occurs is worth nothing, and the unchanged cell no more than the most common change.
    """
    if space.even.usage is None:
        return np.ones(len(cells))
    usage = space.even.usage
    changes = usage.number_of_changes(cells)
    each = usage.by_changes() ** 2 / np.maximum(usage.pairs(), 1.0)  # even draws go by the root of use
    most = float(each[1:].max(initial=0.0)) or 1.0
    return np.where(usage.density(cells) > 0, np.minimum(each[changes] / most, 1.0) ** power, 0.0)


class Acquisition:
    """Probability of failure, weighted towards places that are common and have few failures found.

    On a grid small enough to predict every cell's rate, the place is the cell. On a large one, where hardly any cell is
    probed twice, it is the cell's regions and the item: an item that fails everywhere, where others hardly ever do,
    would take most of the probes and reveal nothing about the grid.

    Args:
        surrogate: fitted to the probes so far.
        data: these probes.
        space: the grid.
        n_items: number of items searched.
        weights: its preferences.
        seed: seed of the regions.
    """

    def __init__(
        self, surrogate: Surrogate, data: ProbeArrays, space: ConceptSpace, n_items: int, weights: Weights, seed: int
    ) -> None:
        self.surrogate, self.data, self.space, self.weights = surrogate, data, space, weights
        small = space.n_cells <= ENUMERABLE
        self.regions = None if small else Regions(space, data, seed)
        self._failing = expit((surrogate.rates(space.cells(), n_items) - FAILING) / BLUR) if small else None
        self._typical = float(np.median(data.margin[data.failed])) if data.failed.any() else 1.0
        self._on_item = np.bincount(data.items[data.failed], minlength=n_items)
        self._asked = set(zip(data.items.tolist(), space.flat(data.cells).tolist(), strict=True))
        self._found = np.unique(space.flat(data.cells[data.failed]))

    def __call__(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return the worth of probing items (n,) under cells (n, concepts): (n,)."""
        worth = self._worth(items, cells)
        if self.regions is not None:
            worth = worth * self._novelty(items, self.regions.of(cells))
        return worth

    def _novelty(self, items: np.ndarray, regions: np.ndarray) -> np.ndarray:
        """Return the factor by which novelty reduces the worth of items (n,) in regions (n, trees): (n,) in (0, 1]."""
        assert self.regions is not None
        power = self.weights.novelty
        return self.regions.novelty(regions, power) * (1.0 + self._on_item[items]) ** -power

    def rarity(self, cells: np.ndarray) -> np.ndarray:
        """Return 1 / (1 + failures found in the same place) for cells (n, concepts): (n,) in (0, 1]."""
        if self.regions is not None:
            return self.regions.novelty(self.regions.of(cells), 1.0)
        found = np.bincount(self.space.flat(self.data.cells[self.data.failed]), minlength=self.space.n_cells)
        return 1.0 / (1.0 + found[self.space.flat(cells)])

    def _worth(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        believed = self.surrogate.believe(items, cells)
        failing = failure_probability(self.surrogate, believed, self.weights.optimism)
        flat = self.space.flat(cells)
        new = ~np.isin(flat, self._found)
        bonus = self.weights.new_cell * new
        if self._failing is not None:
            bonus = bonus + self.weights.failing_cell * new * self._failing[flat]
        if self.weights.severity:
            bonus = bonus + self.weights.severity * np.clip(believed.mean / self._typical, 0, 1)
        return failing**self.weights.certainty * (1 + bonus) * commonness(self.space, cells, self.weights.common)

    def batch(self, items: np.ndarray, cells: np.ndarray, n: int) -> np.ndarray:
        """Choose up to n of the candidates that were not probed before; returns their rows.

        A cell's second-best candidate has its turn when all cells have had their first, and so on, so that a batch
        spreads over a large grid and still fills up if there are few cells. Each choice immediately counts as a failure
        in its regions and on its item, so that a batch spreads like a sequence.
        """
        flat = self.space.flat(cells)
        fresh = np.fromiter(
            (pair not in self._asked for pair in zip(items.tolist(), flat.tolist(), strict=True)), bool, len(items)
        )
        worth = self._worth(items, cells)
        worth = np.where(fresh & (worth > 0), worth, -np.inf)
        order = np.argsort(-worth, kind="stable")
        order = order[np.isfinite(worth[order])]
        pairs = pd.DataFrame({"item": items[order], "cell": flat[order]}, index=order).drop_duplicates()
        turns = pairs.groupby("cell").cumcount().sort_values(kind="stable")  # each cell's best first, sorted by worth
        rows, turn = turns.index.to_numpy(), turns.to_numpy()
        n = min(n, len(rows))
        if self.regions is None or n == 0:
            return rows[:n]
        reached = turn <= turn[n - 1]
        rows, turn = rows[reached], turn[reached]
        return rows[self._spread(worth[rows], items[rows], self.regions.of(cells[rows]), turn, n)]

    def _spread(self, worth: np.ndarray, items: np.ndarray, regions: np.ndarray, turn: np.ndarray, n: int) -> list[int]:
        """Choose n one by one, turn by turn: the most valuable, assuming that all choices before will fail.

        Values only decrease, so an earlier value is an upper bound of a later one, and few have to be recomputed (lazy
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
