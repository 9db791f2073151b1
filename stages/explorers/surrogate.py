"""Surrogates: cheap models of the margin, trained on the real probes, which explorers may evaluate without limit.

Small grids use a Gaussian process, large ones boosted trees: failures there are in boxes of few concepts, which trees
find with far fewer probes than a product kernel or small networks (random forests serve Bayesian optimisation for the
same reason; Hutter et al. 2011, SMAC). Both learn the *margin*, the discrepancy minus the threshold: unlike the bare
outcome it shows how close a pass was to failing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import ndtr
from sklearn.ensemble import HistGradientBoostingRegressor

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
        ...

    def believe(self, items: np.ndarray, cells: np.ndarray) -> Belief:
        """Predict the margins of items (n,) under cells (n, concepts)."""
        ...

    def rates(self, cells: np.ndarray, n_items: int) -> np.ndarray:
        """Expected failure rates of cells (n, concepts) over all items: (n,)."""
        ...


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
        space: the grid.
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
        """Fit to the probes so far."""
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
