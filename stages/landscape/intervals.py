"""Rates with their intervals: one proportion, many tests, and means over resampled items."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Rate(NamedTuple):
    """A value with its 95% interval and the number of observations behind it; NaN throughout where there are none."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """The rate as plain data, NaN as null."""
        value, low, high = (None if np.isnan(x) else float(x) for x in self[:3])
        return {"value": value, "low": low, "high": high, "n": self.n}


NO_RATE = Rate(np.nan, np.nan, np.nan, 0)


def wilson(failures: int, n: int) -> Rate:
    """A proportion with its Wilson score interval (Wilson 1927), which stays sensible near 0 and 1."""
    if n == 0:
        return NO_RATE
    interval = stats.binomtest(int(failures), int(n)).proportion_ci(LEVEL, method="wilson")
    return Rate(failures / n, float(interval.low), float(interval.high), int(n))


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values (k,) for testing all k at once (Holm 1979); each stays a p-value whatever their dependence."""
    order = np.argsort(p_values, kind="stable")
    k = len(p_values)
    adjusted = np.empty(k)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(k, 0, -1)))
    return adjusted


class Resampler:
    """Means with percentile intervals from resampling whole items, the same items for every quantity.

    Probes of one item go together: what is claimed is claimed for other items like these, not for other probes of them.

    Args:
        items: (n,) item of each pair.
        resamples: bootstrap resamples.
        seed: of the resampling.
    """

    def __init__(self, items: np.ndarray, resamples: int, seed: int) -> None:
        _, self._codes = np.unique(np.asarray(items, dtype=str), return_inverse=True)
        n = int(self._codes.max()) + 1 if len(self._codes) else 0
        rng = np.random.default_rng(seed)
        self._drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples) if n else np.zeros((resamples, 0))

    def mean(self, values: np.ndarray, weights: np.ndarray) -> Rate:
        """Weighted mean of values (n,); pairs of weight 0 do not count."""
        total = float(weights.sum())
        if total <= 0:
            return NO_RATE
        n = self._drawn.shape[1]
        sums = self._drawn @ np.bincount(self._codes, weights * values, n)
        counts = self._drawn @ np.bincount(self._codes, weights, n)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = sums / counts
        low, high = np.nanquantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Rate(float((weights * values).sum() / total), float(low), float(high), int((weights > 0).sum()))
