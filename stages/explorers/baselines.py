"""Baselines to compare agents with at the same budget, and enumeration for grids small enough.

Sagar et al. (ICML 2024) compare their agent with random search, an epsilon-greedy search and a threshold search.
"""

import numpy as np
from pydantic import Field
from scipy.stats import qmc

from stages.explorers.contract import (
    AskTell,
    Configured,
    ExplorerResult,
    NextProbes,
    NoSettings,
    Strategy,
    Turns,
    evenly,
)
from stages.explorers.prober import Prober
from stages.params import Strict

BATCH = 256  # a power of 2, as Sobol sequences require


class Random(Configured[NoSettings]):
    """Even draws of item and cell: the control of every audit, from which all rates are measured."""

    name, Settings = "random", NoSettings

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Draw until the budget is spent; repeated draws cost nothing."""
        rng = np.random.default_rng(seed)
        turns = Turns(prober, rng)
        while prober.left > 0:
            cells = prober.space.even.sample(min(BATCH, prober.left), rng)
            prober.ask(turns(cells), cells, uniform=True)
        return ExplorerResult()


class Exhaustive(Configured[NoSettings]):
    """Every item under every cell, if the budget allows it, so that nothing needs to be estimated."""

    name, Settings = "exhaustive", NoSettings

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Probe all pairs that occur in use, item by item, until all are probed or the budget is spent."""
        cells, _ = prober.space.used(prober.space.n_used, np.random.default_rng(seed))
        for item in range(len(prober.item_ids)):
            if prober.left <= 0:
                break
            prober.ask(np.full(len(cells), item), cells)
        return ExplorerResult()


class _Design:
    """Points of a space-filling design over items and concepts together, in batches.

    Only scrambled designs: each of their points is uniform over the grid, but the points are dependent.
    """

    def __init__(self, prober: Prober, engine: qmc.QMCEngine) -> None:
        self._engine, self._even = engine, prober.space.usage is None
        self._sizes = np.array([len(prober.item_ids), *prober.space.sizes])

    def propose(self) -> NextProbes:
        points = (self._engine.random(BATCH) * self._sizes).astype(np.int64)
        points = np.minimum(points, self._sizes - 1)  # a point may be rounded up to 1
        return NextProbes(points[:, 0], points[:, 1:], uniform=self._even)

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        """Do nothing: the design is fixed."""


class Sobol(AskTell[NoSettings]):
    """A scrambled Sobol sequence (Sobol 1967; Owen 1998), which spreads more evenly than chance and learns nothing."""

    name, Settings = "sobol", NoSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Design(prober, qmc.Sobol(1 + len(prober.space), rng=rng))


class LatinHypercube(AskTell[NoSettings]):
    """Latin hypercubes (McKay, Beckman, Conover 1979), one per batch: every level is about equally frequent."""

    name, Settings = "latin_hypercube", NoSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Design(prober, qmc.LatinHypercube(1 + len(prober.space), rng=rng))


class EpsilonGreedySettings(Strict):
    """Settings of the epsilon-greedy search."""

    epsilon: float = Field(0.1, ge=0, le=1, description="share of even draws")
    batch: int = Field(
        16, ge=1, le=1_000_000, description="probes asked at once, each in another cell unless drawn evenly"
    )


class EpsilonGreedy(AskTell[EpsilonGreedySettings]):
    """One bandit arm per cell (Sutton and Barto, Sec. 2.2), which mostly probes the cells that failed most often.

    Nothing carries over from a cell to its neighbours. Only visited cells take memory. The search of the same name in
    the paper's released code adapts the class of the image and draws the cells evenly.
    """

    name, Settings = "epsilon_greedy", EpsilonGreedySettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Arms(prober, self.settings, rng)


class _Arms:
    """Failures and probes of each visited cell, in the order of the first visit."""

    def __init__(self, prober: Prober, settings: EpsilonGreedySettings, rng: np.random.Generator) -> None:
        self._prober, self._settings, self._rng = prober, settings, rng
        self._arm: dict[int, int] = {}  # cell number -> its row below
        self._cells = np.zeros(0, np.int64)
        self._failures, self._probes = np.zeros(0), np.zeros(0)
        self._left: list[np.ndarray] = []  # items not yet probed in each cell, in random order

    def propose(self) -> NextProbes:
        greedy = int((self._rng.random(self._settings.batch) >= self._settings.epsilon).sum())
        open_arms = np.flatnonzero([len(left) > 0 for left in self._left])
        rate = self._failures[open_arms] / self._probes[open_arms]
        best = open_arms[np.lexsort((self._rng.random(len(rate)), -rate))[:greedy]]  # ties in random order
        items, cells = evenly(self._prober, self._settings.batch - len(best), self._rng)
        chosen = np.array([self._left[arm][0] for arm in best], dtype=np.int64)
        return NextProbes(
            np.concatenate([chosen, items]),
            np.vstack([self._prober.space.cells(self._cells[best]), cells]),
            uniform=np.arange(self._settings.batch) >= len(best),
        )

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        for item, cell, failed in zip(
            items[fresh], self._prober.space.flat(cells[fresh]).tolist(), margin[fresh] > 0, strict=True
        ):
            arm = self._arm.setdefault(cell, len(self._arm))
            if arm == len(self._cells):
                self._cells = np.append(self._cells, cell)
                self._failures, self._probes = np.append(self._failures, 0.0), np.append(self._probes, 0.0)
                self._left.append(self._rng.permutation(len(self._prober.item_ids)))
            self._failures[arm] += failed
            self._probes[arm] += 1
            self._left[arm] = self._left[arm][self._left[arm] != item]


class ThresholdSettings(Strict):
    """Settings of the threshold search."""

    patience: int = Field(5, ge=1, le=1_000_000, description="probes an item may pass before another takes its place")
    lanes: int = Field(16, ge=1, le=1_000_000, description="items searched at once, so probes asked at once")


class ThresholdSearch(AskTell[ThresholdSettings]):
    """Stays with failing items: draws cells evenly, and leaves an item once `patience` of its probes have passed.

    This is the paper's threshold baseline as in its released code, but with items instead of classes, because not every
    task has classes, and with several of them at once.
    """

    name, Settings = "threshold_search", ThresholdSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Lanes(prober, self.settings, rng)


class _Lanes:
    """The current items, and how many probes each has passed since its start."""

    def __init__(self, prober: Prober, settings: ThresholdSettings, rng: np.random.Generator) -> None:
        self._prober, self._settings, self._rng = prober, settings, rng
        self._items = rng.integers(len(prober.item_ids), size=settings.lanes)
        self._passed = np.zeros(settings.lanes, dtype=np.int64)

    def propose(self) -> NextProbes:
        return NextProbes(self._items.copy(), self._prober.space.sample(len(self._items), self._rng))

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        if not np.array_equal(items, self._items):
            return  # even fill-in draws belong to no lane
        self._passed += (margin <= 0) | ~fresh  # leaves an item whose probes are all known, too
        tired = self._passed >= self._settings.patience
        self._items[tired] = self._rng.integers(len(self._prober.item_ids), size=tired.sum())
        self._passed[tired] = 0
