"""A Gaussian process over (item, cell) with known eigenfunctions, which keep grids of any size cheap.

The kernel is a product of one factor over items and one per concept. Its eigenvectors on the full grid are products of
the factors' eigenvectors, and each factor is a small matrix. Keeping the `rank` largest turns the process into Bayesian
linear regression, without random features or inducing points. With items and cells in separate factors, the mean over
the whole grid is two small matrix products, and memory never holds items x cells x features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.spatial.distance import cdist

from stages.concepts import ConceptSpace

LANDMARKS = 2000  # up to this number all items are decomposed and averaged over; the cost grows with its cube
CHUNK = 8192  # items whose similarity to the landmarks, or probes whose features, are in memory at once
BLOCK = 16  # features multiplied at once, so that they stay in the processor's cache
KEPT = 4  # item decompositions cached, because a climb may return to them


def landmarks(n_items: int) -> np.ndarray:
    """Return the item numbers that represent all items: all up to `LANDMARKS`, otherwise a fixed sample."""
    if n_items <= LANDMARKS:
        return np.arange(n_items)
    return np.sort(np.random.default_rng(n_items).choice(n_items, LANDMARKS, replace=False))


@dataclass(frozen=True)
class Hyper:
    """Hyperparameters of the process.

    Args:
        scales: length scale of each concept, 1 for the whole range of its levels; long means little influence.
        alike: weight of what similar items share, relative to 1 for what all items share.
        own: weight of each item's own deviation.
        noise: variance the process leaves to chance, as a share of the variance of the discrepancies.
    """

    scales: tuple[float, ...]
    alike: float = 2.0
    own: float = 0.5
    noise: float = 0.15


class ItemFactor:
    """The kernel's factor over items: what all share, what similar ones share (RBF), and each item's own deviation.

    Beyond `LANDMARKS` items a sample is decomposed, and the others are interpolated (Williams and Seeger 2001, "Using
    the Nyström Method to Speed Up Kernel Machines"). Their own deviations are left out, so the process is slightly
    overconfident about them.

    Args:
        embeddings: (items, d) float.
    """

    def __init__(self, embeddings: np.ndarray) -> None:
        self.averaged = landmarks(len(embeddings))
        self._points = standardised(embeddings)
        self._distances = cdist(self._points[self.averaged], self._points[self.averaged], "sqeuclidean")
        apart = self._distances[self._distances > 0]
        self._median = float(np.median(apart)) if len(apart) else 1.0
        # Shared by kernels that differ only in their concepts: by far the largest decomposition.
        self.decomposed = lru_cache(KEPT)(self._decompose)

    def __len__(self) -> int:
        return len(self._points)

    def _likeness(self, distances: np.ndarray, alike: float) -> np.ndarray:
        return np.asarray(1.0 + alike * np.exp(-0.5 * distances / self._median))

    def _decompose(self, alike: float, own: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenvalues (n,), largest first, and eigenvectors (n, n) of the landmarks' kernel."""
        return _eigen(self._likeness(self._distances, alike) + own * np.eye(len(self.averaged)))

    def placed(self, items: np.ndarray, alike: float, values: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Extend the first k eigenvectors (landmarks, k) to other items (n,), by their similarity to the landmarks."""
        weights = vectors / (values * len(self.averaged))
        out = np.empty((len(items), vectors.shape[1]))
        for rows in _chunks(len(items)):
            distances = cdist(self._points[items[rows]], self._points[self.averaged], "sqeuclidean")
            out[rows] = self._likeness(distances, alike) @ weights
        return out


class Features:
    """The leading eigenfunctions of the kernel and their prior variances."""

    def __init__(self, space: ConceptSpace, items: ItemFactor, hyper: Hyper, rank: int) -> None:
        """Decompose the factors and keep `rank` eigenfunctions."""
        self.averaged = items.averaged
        item_values, item_vectors = items.decomposed(hyper.alike, hyper.own)
        levels = [_eigen(_concept_kernel(space, j, scale)) for j, scale in enumerate(hyper.scales)]
        # Find the level eigenvectors that the leading cell features multiply, concept by concept. A product is never
        # larger than its factors, so those dropped early could not return, and at most `rank` of them are needed.
        values, which = np.ones(1), np.zeros((1, 0), dtype=np.int64)
        for value, _ in levels:
            joint = (values[:, None] * value[None]).ravel()
            top = np.argsort(-joint, kind="stable")[:rank]
            row, column = np.unravel_index(top, (len(values), len(value)))
            values, which = joint[top], np.column_stack([which[row], column])
        joint = (item_values[:, None] * values[None]).ravel()
        top = np.argsort(-joint, kind="stable")[:rank]
        self.item_index, self.cell_index = np.unravel_index(top, (len(item_values), len(values)))
        self.which = which[: self.cell_index.max() + 1]
        self.prior = joint[top] / joint[top].sum()
        self._levels = [vectors for _, vectors in levels]
        self._factor, self._alike = items, hyper.alike
        self._values, self._vectors = item_values, item_vectors
        self._items, self._known = item_vectors, np.ones(len(items), dtype=bool)
        if len(self.averaged) < len(items):
            # Other items are placed when first requested, because a search queries few of very many. Unused features
            # are cut off here but not for few items: that would change the last digits of sums, and so searches and
            # modes, and published results could not be reproduced.
            used = int(self.item_index.max()) + 1
            self._values, self._vectors = item_values[:used], item_vectors[:, :used]
            self._items, self._known = np.empty((len(items), used)), np.zeros(len(items), dtype=bool)
            self._items[self.averaged], self._known[self.averaged] = self._vectors, True

    def of_cells(self, cells: np.ndarray) -> np.ndarray:
        """Return the cell features of cells (n, concepts): (n, cell features)."""
        out = np.ones((len(cells), len(self.which)))
        for j, vectors in enumerate(self._levels):
            out *= vectors[cells[:, j]][:, self.which[:, j]]
        return out

    def of_probes(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return the features of n probes, given item numbers (n,) and cells (n, concepts): (n, rank)."""
        unknown = np.unique(items[~self._known[items]])
        if len(unknown):
            self._items[unknown] = self._factor.placed(unknown, self._alike, self._values, self._vectors)
            self._known[unknown] = True
        of_items = np.ascontiguousarray(self._items[items].T)
        of_cells = np.ascontiguousarray(self.of_cells(cells).T)
        out = np.empty((len(self.item_index), len(items)))
        for start in range(0, len(out), BLOCK):
            part = slice(start, start + BLOCK)
            np.multiply(of_items[self.item_index[part]], of_cells[self.cell_index[part]], out=out[part])
        return out.T

    def at_probes(self, weights: np.ndarray, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return the values of weighted sums of features (m, rank) or (rank,) at n probes: (n, m) or (n,)."""
        return np.concatenate([self.of_probes(items[rows], cells[rows]) @ weights.T for rows in _chunks(len(items))])

    def over_items(self, weights: np.ndarray, cell_features: np.ndarray) -> np.ndarray:
        """Return a weighted sum of features (rank,) for the items averaged over at some cells: (items, cells)."""
        table = np.zeros((self._vectors.shape[1], len(self.which)))
        table[self.item_index, self.cell_index] = weights
        return self._vectors @ (table @ cell_features.T)

    def gradient(self, slopes: np.ndarray, cell_features: np.ndarray) -> np.ndarray:
        """Differentiate the sum over items of slopes (items, cells) times values by each weight: (rank, cells)."""
        return (self._vectors.T @ slopes)[self.item_index] * cell_features.T[self.cell_index]


@dataclass(frozen=True)
class Posterior:
    """The process conditioned on n discrepancies.

    Args:
        offset: mean of the discrepancies.
        weights: (rank,) posterior mean.
        cholesky: (rank, rank) lower factor of the posterior precision.
        noise: standard deviation that the process leaves to chance.
        evidence: log marginal likelihood of the discrepancies.
    """

    features: Features
    offset: float
    weights: np.ndarray
    cholesky: np.ndarray
    noise: float
    evidence: float

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n weight vectors from the posterior: (n, rank)."""
        noise = solve_triangular(self.cholesky.T, rng.standard_normal((len(self.weights), n)), lower=False)
        return self.weights + noise.T


@dataclass(frozen=True)
class ProbeArrays:
    """Probes as arrays: item numbers (n,), cells (n, concepts), discrepancies minus the threshold (n,), failed (n,)."""

    items: np.ndarray
    cells: np.ndarray
    margin: np.ndarray
    failed: np.ndarray

    def take(self, rows: np.ndarray) -> "ProbeArrays":
        return ProbeArrays(self.items[rows], self.cells[rows], self.margin[rows], self.failed[rows])

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def scale(self) -> float:
        """Variance of the margins, kept above zero for models that always answer the same."""
        return max(float(self.margin.var()), 1e-8)


def fit_regression(features: Features, data: ProbeArrays, noise: float) -> Posterior:
    """Bayesian linear regression of the margins on the features, in closed form."""
    offset = float(data.margin.mean())
    rest = data.margin - offset
    prior, variance = features.prior * data.scale, noise * data.scale
    precision, projected = np.zeros((len(prior), len(prior))), np.zeros(len(prior))
    for rows in _chunks(len(data)):
        phi = features.of_probes(data.items[rows], data.cells[rows])
        precision += phi.T @ phi / variance
        projected += phi.T @ rest[rows] / variance
    precision[np.diag_indices_from(precision)] += 1 / prior
    cholesky = np.linalg.cholesky(precision)
    weights = cho_solve((cholesky, True), projected)
    evidence = (
        -0.5 * (rest @ rest / variance - projected @ weights)
        - 0.5 * len(data) * np.log(2 * np.pi * variance)
        - np.log(np.diag(cholesky)).sum()
        - 0.5 * np.log(prior).sum()
    )
    return Posterior(features, offset, weights, cholesky, float(np.sqrt(variance)), float(evidence))


def choose_hyper(space: ConceptSpace, items: ItemFactor, data: ProbeArrays, *, rank: int, sweeps: int = 1) -> Hyper:
    """Climb the evidence, one hyperparameter at a time in factors of two.

    The evidence ranked 27 settings much as the true log loss over all pairs did (MNIST, enumerated), and needs no
    folds. It describes the given probes where they were drawn, so a search that drew most of them where it expected
    failures does not mislead it.
    """
    best = Hyper(scales=(0.7,) * len(space))

    def evidence(hyper: Hyper) -> float:
        return fit_regression(Features(space, items, hyper, rank), data, hyper.noise).evidence

    height = evidence(best)
    for _ in range(sweeps):
        before = best
        for name in [*range(len(space)), "alike", "own", "noise"]:
            for factor in (2.0, 0.5):
                moved = True
                while moved:  # as far as the evidence rises in one direction
                    trial = _scaled(best, name, factor)
                    climbed = trial is not None and (new := evidence(trial)) > height
                    if climbed and trial is not None:
                        best, height = trial, new
                    moved = climbed
        if best == before:
            break
    return best


def _scaled(hyper: Hyper, name: int | str, factor: float) -> Hyper | None:
    """Scale one hyperparameter; None if it leaves its range."""
    if isinstance(name, int):
        scales = list(hyper.scales)
        scales[name] *= factor
        return replace(hyper, scales=tuple(scales)) if 0.1 < scales[name] < 6 else None
    value = getattr(hyper, name) * factor
    low, high = (0.01, 1.0) if name == "noise" else (0.05, 20.0)
    return replace(hyper, **{name: value}) if low < value < high else None


def standardised(embeddings: np.ndarray) -> np.ndarray:
    """Standardise embeddings (n, d) to mean 0 and standard deviation 1 in each column."""
    return np.asarray((embeddings - embeddings.mean(axis=0)) / (embeddings.std(axis=0) + 1e-9))


def _chunks(n: int) -> Iterator[slice]:
    """Split n rows into slices of `CHUNK`: at least one slice, even of no rows."""
    return (slice(start, start + CHUNK) for start in range(0, max(n, 1), CHUNK))


def _concept_kernel(space: ConceptSpace, j: int, scale: float) -> np.ndarray:
    points = space.concepts[j].coordinates
    return np.exp(-0.5 * cdist(points, points, "sqeuclidean") / scale**2)


def _eigen(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues, largest first, and eigenvectors of unit mean square."""
    values, vectors = np.linalg.eigh(kernel)
    n = len(kernel)
    return np.clip(values[::-1] / n, 1e-12, None), vectors[:, ::-1] * np.sqrt(n)
