"""A response surface of the margin over concept strengths (Box and Wilson 1951), and the effects it shows.

It is of second order: a quadratic in every concept and the products of pairs. Its terms are orthonormal under the
uniform distribution on the grid, so that squared coefficients are shares of variance: the Sobol indices of a polynomial
chaos expansion (Sudret 2008, section 4). Estimating the indices directly (Saltelli 2010, Morris 1991) would take
(concepts + 2) queries for each of some thousand points, and would attribute noise in the answers to every concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from stages.intervals import LEVEL, Rate

if TYPE_CHECKING:
    from sklearn.linear_model import RidgeCV

_FREE = 100.0  # scale that almost exempts the terms of concepts from the penalty, which is meant for items
_PROBES_PER_TERM = 4  # with fewer, products of pairs are left out


@dataclass(frozen=True)
class Terms:
    """The terms of the surface, orthonormal under the uniform distribution on a grid.

    Args:
        grid: strengths of the levels of each concept, (levels,) each.
        numeric: which concepts have strengths; the others have categories.
        pairs: whether products of two concepts are included.
    """

    grid: Sequence[np.ndarray]
    numeric: Sequence[bool]
    pairs: bool = True

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        """For each concept the matrix that makes its raw columns orthonormal."""
        maps = []
        for j, levels in enumerate(self.grid):
            raw = self._raw(j, levels)
            maps.append(np.linalg.inv(np.linalg.qr(raw, mode="r")) * np.sqrt(len(levels)))
        return maps

    def _raw(self, j: int, strengths: np.ndarray) -> np.ndarray:
        if self.numeric[j]:
            return np.vander(strengths, min(3, len(self.grid[j])), increasing=True)
        raw = (strengths[:, None] == self.grid[j]).astype(float)
        raw[:, 0] = 1.0
        return raw

    def __call__(self, strengths: np.ndarray) -> np.ndarray:
        """Return the values of all terms at points (n, concepts): (n, terms)."""
        own = [(self._raw(j, strengths[:, j]) @ m)[:, 1:] for j, m in enumerate(self._maps)]
        columns = list(own)
        for j, k in self._paired():
            a, b = (own[i][:, :1] if self.numeric[i] else own[i] for i in (j, k))
            columns.append((a[:, :, None] * b[:, None, :]).reshape(len(strengths), -1))
        return np.hstack(columns)

    @cached_property
    def owners(self) -> np.ndarray:
        """Which concepts each term depends on: (terms, concepts) bool."""
        widths = [m.shape[1] - 1 for m in self._maps]
        blocks: list[tuple[tuple[int, ...], int]] = [((j,), width) for j, width in enumerate(widths)]
        for j, k in self._paired():
            blocks.append(((j, k), (1 if self.numeric[j] else widths[j]) * (1 if self.numeric[k] else widths[k])))
        rows = np.zeros((sum(width for _, width in blocks), len(self.grid)), dtype=bool)
        start = 0
        for concepts, width in blocks:
            rows[start : start + width, list(concepts)] = True
            start += width
        return rows

    def _paired(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.grid)), 2)) if self.pairs else []


@dataclass(frozen=True)
class Surface:
    """A fitted surface.

    Args:
        terms: its terms.
        coefficients: (terms,), in units of the discrepancy.
        intercept: mean margin over grid and items.
        resampled: (resamples, terms) coefficients from resampled items.
        unexplained: variance of the margin that neither concepts nor differences between items explain.
        link: slope and offset that map a mean margin to the logit of the failure rate.
    """

    terms: Terms
    coefficients: np.ndarray
    intercept: float
    resampled: np.ndarray
    unexplained: float
    link: tuple[float, float]

    def margin(self, strengths: np.ndarray) -> np.ndarray:
        """Return the mean margin over items at points (n, concepts): (n,)."""
        return self.terms(strengths) @ self.coefficients + self.intercept

    def rate(self, strengths: np.ndarray) -> np.ndarray:
        """Return the failure rate over items at points (n, concepts): (n,)."""
        slope, offset = self.link
        return 1 / (1 + np.exp(-(slope * self.margin(strengths) + offset)))

    @property
    def variance(self) -> float:
        """Variance of the margin over the grid within an item: explained by concepts, plus unexplained."""
        return float(np.clip(self.coefficients**2 - self._sampling, 0, None).sum()) + self.unexplained

    @property
    def _sampling(self) -> np.ndarray:
        return self.resampled.var(axis=0, ddof=1)

    def shares(self) -> list[Rate]:
        """Return the total Sobol index of each concept on the grid: its share of the margin's variance within an item.

        Differences between items are excluded, or many hard items would make any concept look ineffective. A squared
        coefficient is biased upwards by its sampling variance, and a resampled one by twice that, so these are
        subtracted. `n` is 0, as nothing is counted.
        """
        shares = []
        for own in self.terms.owners.T:
            value = (self.coefficients[own] ** 2 - self._sampling[own]).sum() / self.variance
            resampled = (self.resampled[:, own] ** 2 - 2 * self._sampling[own]).sum(axis=1) / self.variance
            low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
            value, low, high = (float(np.clip(x, 0, 1)) for x in (value, low, high))
            shares.append(Rate(value, min(low, value), max(high, value), 0))
        return shares


def fit_surface(
    strengths: np.ndarray,
    items: np.ndarray,
    margins: np.ndarray,
    grid: Sequence[np.ndarray],
    numeric: Sequence[bool],
    *,
    seed: int,
    resamples: int,
) -> Surface:
    """Fit a surface by least squares, with an intercept for every item that ridge shrinks towards zero.

    Args:
        strengths: (n, concepts) strengths of the probes; they may be off the grid.
        items: (n,) item numbers.
        margins: (n,) discrepancies minus the threshold; above 0 the probe failed.
        grid: strengths of the levels of each concept, over which shares are computed.
        numeric: which concepts have strengths.
        seed: seed of the Bayesian bootstrap over items (Rubin 1981).
        resamples: number of its resamples; `shares` needs some.
    """
    from sklearn.linear_model import Ridge, RidgeCV

    terms = Terms(grid, numeric)
    if len(terms.owners) * _PROBES_PER_TERM > len(margins):
        terms = Terms(grid, numeric, pairs=False)
    values = terms(strengths)
    _, codes = np.unique(items, return_inverse=True)
    design = np.hstack([values * _FREE, np.eye(codes.max() + 1)[codes]])
    model = RidgeCV(alphas=np.logspace(-1, 2, 7)).fit(design, margins)
    weights = np.random.default_rng(seed).standard_exponential((resamples, codes.max() + 1))[:, codes]
    refitted = [Ridge(model.alpha_).fit(design, margins, sample_weight=w).coef_ for w in weights]
    width = values.shape[1]
    coefficients, intercept = model.coef_[:width] * _FREE, float(model.intercept_)
    predicted = values @ coefficients + intercept
    return Surface(
        terms,
        coefficients,
        intercept,
        np.array(refitted).reshape(resamples, design.shape[1])[:, :width] * _FREE,
        _noise(model, design, margins),
        _link(predicted, margins > 0),
    )


def _noise(model: RidgeCV, design: np.ndarray, margins: np.ndarray) -> float:
    """Return the residual variance by the degrees of freedom that ridge leaves (Hastie et al. 2009, section 3.4)."""
    values = np.linalg.svd(design - design.mean(axis=0), compute_uv=False) ** 2
    used = 1 + float((values / (values + model.alpha_)).sum())
    return float(((margins - model.predict(design)) ** 2).sum()) / (len(margins) - used)


def _link(margin: np.ndarray, failed: np.ndarray) -> tuple[float, float]:
    """Fit Platt scaling (1999) of mean margins, with a failure and a pass added at zero in case all pass or fail."""
    from sklearn.linear_model import LogisticRegression

    x, y = np.append(margin, [0.0, 0.0]), np.append(failed, [False, True])
    scale = float(margin.std()) or 1.0  # the unit of the discrepancy depends on the task
    model = LogisticRegression(C=100.0, max_iter=1000).fit(x[:, None] / scale, y)
    return float(model.coef_[0, 0]) / scale, float(model.intercept_[0])
