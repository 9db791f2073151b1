"""Surrogates: cheap models of the margin, trained on the real probes, which explorers may evaluate without limit.

Small grids use a Gaussian process, large ones boosted trees: failures there are in boxes of few concepts, which trees
find with far fewer probes than a product kernel or small networks (random forests serve Bayesian optimisation for the
same reason; Hutter et al. 2011, SMAC). Both learn the *margin*, the discrepancy minus the threshold: unlike the bare
outcome it shows how close a pass was to failing.

The acquisition says what a probe is expected to be worth, and chooses a batch of probes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy.linalg import solve_triangular
from scipy.special import expit, ndtr
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

from stages.concepts import ConceptSpace
from stages.explorers.kernel import Features, Hyper, ItemFactor, Posterior, ProbeArrays, choose_hyper, fit_regression

PROCESS_CELLS = 20_000  # largest grid on which the process is better than trees
SEARCH_RANK, RANK = 200, 400
ITEM_FEATURES = 16  # principal components of the embeddings, for the trees
MEMBERS = 3
WIDEN = 2.5  # members share half of their probes, so they agree more than their errors do; measured on planted modes
RATE_ITEMS = 16  # items from which trees predict a cell's rate
LEARNT = 50_000  # most probes to learn from, a sample if there are more: otherwise a long search would mostly fit trees
FEW = 20  # probes below which the trees have nothing to split


class Belief(NamedTuple):
    """A surrogate's prediction for n probes: mean and standard deviation of the margin, both (n,)."""

    mean: np.ndarray
    std: np.ndarray


class Surrogate(Protocol):
    """Predicts margins of items, given by number, under cells."""

    @property
    def noise(self) -> float:
        """Standard deviation that even a perfect prediction would leave to chance."""

    def believe(self, items: np.ndarray, cells: np.ndarray) -> Belief:
        """Predict the margins of items (n,) under cells (n, concepts)."""

    def rates(self, cells: np.ndarray, n_items: int) -> np.ndarray:
        """Expected failure rates of cells (n, concepts) over all items: (n,)."""


def failure_probability(surrogate: Surrogate, belief: Belief, optimism: float = 0.0) -> np.ndarray:
    """Probability of a margin above zero (n,), with the mean raised by `optimism` standard deviations."""
    spread = surrogate.noise if optimism else np.hypot(belief.std, surrogate.noise)
    return ndtr((belief.mean + optimism * belief.std) / spread)


@dataclass(frozen=True)
class GaussianProcess:
    """Gaussian process over items and concepts, by its leading eigenfunctions (see `stages.explorers.kernel`)."""

    posterior: Posterior

    @property
    def noise(self) -> float:
        """Standard deviation that the process leaves to chance."""
        return self.posterior.noise

    def believe(self, items: np.ndarray, cells: np.ndarray) -> Belief:
        phi = self.posterior.features.of_probes(items, cells)
        spread = solve_triangular(self.posterior.cholesky, phi.T, lower=True, check_finite=False)
        return Belief(self.posterior.offset + phi @ self.posterior.weights, np.sqrt((spread**2).sum(axis=0)))

    def rates(self, cells: np.ndarray, n_items: int) -> np.ndarray:
        features = self.posterior.features
        margin = self.posterior.offset + features.over_items(self.posterior.weights, features.of_cells(cells))
        return ndtr(margin / self.noise).mean(axis=0)


@dataclass(frozen=True)
class Boosting:
    """Gradient-boosted trees (Friedman 2001), several on parts of the probes, whose spread is the uncertainty."""

    inputs: _Inputs
    members: list[HistGradientBoostingRegressor]
    noise: float

    def believe(self, items: np.ndarray, cells: np.ndarray) -> Belief:
        x = self.inputs(items, cells)
        predicted = np.stack([member.predict(x) for member in self.members])
        return Belief(predicted.mean(axis=0), WIDEN * predicted.std(axis=0, ddof=1))

    def rates(self, cells: np.ndarray, n_items: int) -> np.ndarray:
        """See Surrogate; averaged over `RATE_ITEMS` of the items, evenly spread."""
        some = np.unique(np.linspace(0, n_items - 1, RATE_ITEMS).astype(int))
        means = [self.believe(np.full(len(cells), item), cells).mean for item in some]
        return ndtr(np.array(means) / self.noise).mean(axis=0)


class _Inputs:
    """Items and cells as inputs of trees: leading components of the embedding, and coordinates of the cell."""

    def __init__(self, space: ConceptSpace, embeddings: np.ndarray) -> None:
        self.space = space
        self.items = embeddings
        if embeddings.shape[1] > ITEM_FEATURES:
            centred = embeddings - embeddings.mean(axis=0)
            self.items = centred @ np.linalg.svd(centred, full_matrices=False)[2][:ITEM_FEATURES].T

    def __call__(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        return np.hstack([self.space.coordinates(cells), self.items[items]])


@dataclass
class Learner:
    """Fits surrogates to all probes so far, repeatedly as they grow.

    Args:
        embeddings: (items, d) of the items searched.
        kind: kind of surrogate; "auto" chooses by the size of the grid.
    """

    space: ConceptSpace
    embeddings: np.ndarray
    kind: Literal["auto", "process", "boosting"] = "auto"
    _hyper: Hyper | None = field(default=None, init=False)
    _items: ItemFactor | None = field(default=None, init=False)
    _features: Features | None = field(default=None, init=False)
    _chosen_at: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind == "auto":
            self.kind = "process" if self.space.n_cells <= PROCESS_CELLS else "boosting"
        self._inputs = _Inputs(self.space, self.embeddings)

    def fit(self, data: ProbeArrays, seed: int) -> Surrogate:
        if len(data) > LEARNT:
            data = data.take(np.sort(np.random.default_rng(seed).choice(len(data), LEARNT, replace=False)))
        if self.kind == "process" or len(data) < FEW:
            return self._process(data)
        return self._boosting(data, seed)

    def _process(self, data: ProbeArrays) -> GaussianProcess:
        if self._features is None or len(data) >= 2 * self._chosen_at:  # the choice hardly changes between doublings
            self._items = self._items or ItemFactor(self.embeddings)
            hyper = choose_hyper(self.space, self._items, data, rank=SEARCH_RANK)
            self._features = Features(self.space, self._items, hyper, RANK)
            self._hyper, self._chosen_at = hyper, len(data)
        assert self._hyper is not None
        return GaussianProcess(fit_regression(self._features, data, self._hyper.noise))

    def _boosting(self, data: ProbeArrays, seed: int) -> Boosting:
        x = self._inputs(data.items, data.cells)
        parts = np.random.default_rng(seed).permutation(len(data)) % MEMBERS
        members, errors = [], []
        for k in range(MEMBERS):
            member = HistGradientBoostingRegressor(
                max_iter=80,
                learning_rate=0.2,
                max_leaf_nodes=12,
                min_samples_leaf=5,
                early_stopping=False,
                random_state=0,
            )
            members.append(member.fit(x[parts != k], data.margin[parts != k]))
            errors.append(member.predict(x[parts == k]) - data.margin[parts == k])
        return Boosting(self._inputs, members, max(float(np.sqrt(np.mean(np.concatenate(errors) ** 2))), 1e-3))


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
