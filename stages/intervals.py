"""Rates with their intervals: one proportion, many tests, and means over resampled items or groups of items."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from stages.rate import NO_RATE, Rate

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CHANGE",
    "COUNTED",
    "LEVEL",
    "NO_RATE",
    "RESAMPLES",
    "SHARE",
    "Rate",
    "Resampler",
    "holm",
    "median",
    "share",
    "wilson",
]

LEVEL = 0.95
RESAMPLES = 2000
COUNTED = 50  # uniform probes of each level of a concept from which its rates are counted, not estimated


def wilson(failures: int, n: int, level: float = LEVEL) -> Rate:
    """A proportion with its Wilson score interval (Wilson 1927), which stays sensible near 0 and 1."""
    return _proportion(failures, n, level, "wilson")


def _proportion(failures: int, n: int, level: float, method: Literal["wilson", "exact"]) -> Rate:
    if n == 0:
        return NO_RATE
    from scipy import stats  # takes a second

    interval = stats.binomtest(int(failures), int(n)).proportion_ci(level, method=method)
    return Rate(failures / n, float(interval.low), float(interval.high), int(n))


def median(values: np.ndarray) -> tuple[float, float, float]:
    """The lower median of values (n > 0) with its 95% interval by order statistics, whatever their distribution.

    Values may be inf; so is a bound that n is too small for.
    """
    from scipy import stats

    ranked, n = np.sort(values), len(values)
    below = int(stats.binom.ppf((1 - LEVEL) / 2, n, 0.5))  # the true median lies above so many, with 97.5%
    low, high = (ranked[below - 1], ranked[n - below]) if below else (-np.inf, np.inf)
    return float(ranked[(n - 1) // 2]), float(low), float(high)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values (k,) for testing all k at once (Holm 1979); each stays a p-value whatever their dependence."""
    order = np.argsort(p_values, kind="stable")
    k = len(p_values)
    adjusted = np.empty(k)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(k, 0, -1)))
    return adjusted


SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)  # what values can be: failed or not, and the difference of two such


class Resampler:
    """Means with intervals from resampling whole groups of items, the same ones for every quantity.

    Probes of one item go together: what is claimed is claimed for other items like these, not for other probes of them.
    So do items of one group (prompts of one template, crops of one photo): whole groups are drawn and nothing within
    them, which is the better of the ways to resample two levels (Davison and Hinkley 1997, section 3.8), for the means
    of groups vary by their items, too. Where all are of one group, what is claimed is claimed for that group, and its
    items are resampled.

    A plain bootstrap knows nothing but what it has seen: where 20 of 20 items did not change it says [0, 0]. So the
    upper bound counts one more item with the largest value there can be, the lower bound one with the smallest, and
    weights are exponential (the Bayesian bootstrap, Rubin 1981). This is the interval of Gaffke (2005), see also
    Learned-Miller and Thomas (2019, "A New Confidence Interval for the Mean of a Bounded Random Variable"): where
    every item says yes or no it is exactly Clopper and Pearson's, so no change in n items gives the rule of three
    (-/+ 3.7 / n at 95% on both sides), and with many items the added one does not matter.

    Args:
        items: (n,) item of each pair.
        resamples: bootstrap resamples.
        seed: of the resampling.
        groups: (n,) group of each pair's item; None: each item is one.
    """

    def __init__(
        self, items: np.ndarray | pd.Series, resamples: int, seed: int, groups: np.ndarray | pd.Series | None = None
    ) -> None:
        _, self._items = np.unique(np.asarray(items, dtype=str), return_inverse=True)
        self._codes = self._items
        if groups is not None and len(names := np.unique(of := np.asarray(groups, dtype=str))) > 1:
            self._codes = np.searchsorted(names, of)
        n = int(self._codes.max()) + 1 if len(self._codes) else 0
        self._drawn = np.random.default_rng(seed).standard_exponential((resamples, n + 1))  # the last: the added item

    def mean(
        self, values: np.ndarray, weights: np.ndarray, bounds: tuple[float, float] = CHANGE, level: float = LEVEL
    ) -> Rate:
        """Weighted mean of values (n,) that lie within `bounds`; pairs of weight 0 do not count."""
        total = float(weights.sum())
        if total <= 0:
            return NO_RATE
        value = float((weights * values).sum() / total)
        tail = (1 - level) / 2
        low = float(np.quantile(self._means(values, weights, bounds[0]), tail))
        high = float(np.quantile(self._means(values, weights, bounds[1]), 1 - tail))
        return Rate(value, min(low, value), max(high, value), int((weights > 0).sum()))

    def samples(self, values: np.ndarray) -> np.ndarray:
        """The mean of values (n,) in each resample, with nothing added: (resamples,)."""
        drawn = self._drawn[:, self._codes]
        return (drawn @ values) / drawn.sum(axis=1)

    def p_value(self, values: np.ndarray, weights: np.ndarray, above: float, lowest: float) -> float:
        """One-sided p-value against a mean of at most `above`, for values of at least `lowest`; 1 without any.

        It belongs to the lower bound of `mean`; where every item says yes or no it is the exact binomial test's.
        """
        if float(weights.sum()) <= 0:
            return 1.0
        below = int((self._means(values, weights, lowest) <= above).sum())
        return (1 + below) / (1 + len(self._drawn))

    def _means(self, values: np.ndarray, weights: np.ndarray, extreme: float) -> np.ndarray:
        """The mean in each resample, with one item more that has this value and the weight items typically have."""
        n = self._drawn.shape[1] - 1
        by_item = np.bincount(self._items, weights)
        added = float((by_item**2).sum() / by_item.sum())  # so that it is 1 of Kish's effective number of items
        sums = self._drawn @ np.append(np.bincount(self._codes, weights * values, n), added * extreme)
        return sums / (self._drawn @ np.append(np.bincount(self._codes, weights, n), added))


def share(
    which: np.ndarray, probes: pd.DataFrame, level: float = LEVEL, method: Literal["wilson", "exact"] = "wilson"
) -> Rate:
    """The share (n,) bool of n uniform probes, with an interval.

    It is that of a proportion, for what asking *these* items in all cells would show: Wilson's, or the exact one
    (Clopper and Pearson 1934), which of a few draws never holds in less than 95%. Where items belong to groups (column
    `group`), it is for other groups like these, see `Resampler`.
    """
    if "group" not in probes:
        return _proportion(int(which.sum()), len(which), level, method)
    sampler = Resampler(probes["item"], RESAMPLES, 0, probes["group"])
    return sampler.mean(which.astype(float), np.ones(len(which)), SHARE, level)
