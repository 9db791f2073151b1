"""Rates with intervals: single proportions, multiple tests, and means over resampled items or groups of items."""

from __future__ import annotations

from collections.abc import Callable
from math import hypot
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
RESAMPLES = 2000
IN_TAIL = 25  # resamples beyond each end of an interval of a higher level
MOST_HELD = 100_000_000  # items times resamples, 800 MB
FEWEST_RESAMPLES = 400  # ten beyond each end of a 95% interval, which is narrow with so many items
COUNTED = 50  # control's probes per level of a concept from which rates are counted rather than estimated


class Rate(NamedTuple):
    """A value with its 95% interval and the number of observations behind it; NaN throughout if there are none."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the rate as plain data, NaN as null."""
        value, low, high = (None if np.isnan(x) else float(x) for x in self[:3])
        return {"value": value, "low": low, "high": high, "n": self.n}

    @property
    def of_probes(self) -> dict[str, Any]:
        """The rate as fields of a record that counts probes."""
        value, low, high, n = self.to_json().values()
        return {"rate": value, "low": low, "high": high, "probes": n}


NO_RATE = Rate(np.nan, np.nan, np.nan, 0)


def wilson(failures: int, n: int, level: float = LEVEL) -> Rate:
    """Return a proportion with its Wilson score interval (Wilson 1927), which behaves well near 0 and 1."""
    return _proportion(failures, n, level, "wilson")


def _proportion(failures: int, n: int, level: float, method: Literal["wilson", "exact"]) -> Rate:
    if n == 0:
        return NO_RATE
    from scipy import stats  # takes a second

    interval = stats.binomtest(int(failures), int(n)).proportion_ci(level, method=method)
    return Rate(failures / n, float(interval.low), float(interval.high), int(n))


def median(values: np.ndarray) -> tuple[float, float, float]:
    """Return the lower median of values (n > 0) with its distribution-free 95% interval from order statistics.

    Values may be infinite; a bound is infinite if n is too small for it.
    """
    from scipy import stats

    ranked, n = np.sort(values), len(values)
    below = int(stats.binom.ppf((1 - LEVEL) / 2, n, 0.5))  # the true median exceeds this many values with 97.5%
    low, high = (ranked[below - 1], ranked[n - below]) if below else (-np.inf, np.inf)
    return float(ranked[(n - 1) // 2]), float(low), float(high)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values (k,) for k simultaneous tests (Holm 1979), valid under any dependence between them."""
    order = np.argsort(p_values, kind="stable")
    k = len(p_values)
    adjusted = np.empty(k)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(k, 0, -1)))
    return adjusted


def less_sure(rate: Rate, error: float, bounds: tuple[float, float], level: float = LEVEL) -> Rate:
    """Return a rate whose interval also has another, independent error, given as a standard deviation."""
    if not error > 0:
        return rate
    margin = NormalDist().inv_cdf((1 + level) / 2) * error
    low, high = rate.value - hypot(rate.value - rate.low, margin), rate.value + hypot(rate.high - rate.value, margin)
    return rate._replace(low=max(bounds[0], low), high=min(bounds[1], high))


SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)  # ranges of values: failed or not, and the difference of two such values


class Resampler:
    """Means with intervals from resampling whole groups of items, with the same resamples for every quantity.

    Probes of one item are resampled together: claims generalize to other items like these, not to other probes of them.
    So are items of one group (prompts of one template, crops of one photo): whole groups are drawn, and nothing within
    them. This is the better way to resample two levels (Davison and Hinkley 1997, section 3.8), because the means of
    groups already vary with their items. If all items are of one group, claims hold for that group, and its items are
    resampled.

    A plain bootstrap cannot exceed what it has seen: if 20 of 20 items did not change, its interval is [0, 0]. So the
    upper bound adds one item with the largest possible value, the lower bound one with the smallest, and weights are
    exponential (the Bayesian bootstrap, Rubin 1981). This is the interval of Gaffke (2005), see also Learned-Miller and
    Thomas (2019, "A New Confidence Interval for the Mean of a Bounded Random Variable"). For binary items it equals
    Clopper and Pearson's, so no change in n items gives the rule of three (-/+ 3.7 / n at 95% on both sides), and with
    many items the added one is negligible.

    Args:
        items: (n,) item of each pair.
        groups: (n,) group of each pair's item; None if each item is its own group.
        error: by values (n,) and weights (n,), the standard deviation of another error of means, which is added to
            their intervals; None if there is none.
    """

    def __init__(
        self,
        items: np.ndarray | pd.Series,
        resamples: int,
        seed: int,
        groups: np.ndarray | pd.Series | None = None,
        error: Callable[[np.ndarray, np.ndarray], float] | None = None,
    ) -> None:
        self._error = error
        _, self._items = np.unique(np.asarray(items, dtype=str), return_inverse=True)
        self._codes = self._items
        if groups is not None and len(names := np.unique(of := np.asarray(groups, dtype=str))) > 1:
            self._codes = np.searchsorted(names, of)
        n = int(self._codes.max()) + 1 if len(self._codes) else 0
        self._drawn = np.random.default_rng(seed).standard_exponential((resamples, n + 1))  # last: the added item

    def mean(
        self, values: np.ndarray, weights: np.ndarray, bounds: tuple[float, float] = CHANGE, level: float = LEVEL
    ) -> Rate:
        """Return the weighted mean of values (n,) that lie within `bounds`; pairs of weight 0 do not count."""
        total = float(weights.sum())
        if total <= 0:
            return NO_RATE
        value = float((weights * values).sum() / total)
        tail = (1 - level) / 2
        low = float(np.quantile(self._means(values, weights, bounds[0]), tail))
        high = float(np.quantile(self._means(values, weights, bounds[1]), 1 - tail))
        rate = Rate(value, min(low, value), max(high, value), int((weights > 0).sum()))
        return rate if self._error is None else less_sure(rate, self._error(values, weights), bounds, level)

    def samples(self, values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the weighted mean of values (n,) in each resample, without an added item: (resamples,)."""
        drawn = self._drawn[:, self._codes]
        counted = np.ones(len(values)) if weights is None else weights
        return (drawn @ (counted * values)) / (drawn @ counted)

    def p_value(self, values: np.ndarray, weights: np.ndarray, above: float, lowest: float) -> float:
        """One-sided p-value against a mean of at most `above`, for values of at least `lowest`; 1 without data.

        It matches the lower bound of `mean`; for binary items it equals that of the exact binomial test.
        """
        if float(weights.sum()) <= 0:
            return 1.0
        below = int((self._means(values, weights, lowest) <= above).sum())
        return (1 + below) / (1 + len(self._drawn))

    def _means(self, values: np.ndarray, weights: np.ndarray, extreme: float) -> np.ndarray:
        """Return the mean in each resample, with one added item of value `extreme` and a typical weight."""
        n = self._drawn.shape[1] - 1
        by_item = np.bincount(self._items, weights)
        added = float((by_item**2).sum() / by_item.sum())  # so that it counts as 1 in Kish's effective number of items
        sums = self._drawn @ np.append(np.bincount(self._codes, weights * values, n), added * extreme)
        return sums / (self._drawn @ np.append(np.bincount(self._codes, weights, n), added))


def resamples_for(level: float, items: int) -> int:
    """Return the number of resamples for an interval of this level, as far as memory allows for the number of items."""
    wanted = int(min(20_000, max(RESAMPLES, np.ceil(2 * IN_TAIL / (1 - level)))))
    return max(FEWEST_RESAMPLES, min(wanted, MOST_HELD // max(1, items)))


def share(
    which: np.ndarray,
    probes: pd.DataFrame,
    level: float = LEVEL,
    weights: np.ndarray | None = None,
    error: Callable[[np.ndarray, np.ndarray], float] | None = None,
) -> Rate:
    """Return the share of True in which (n,), given n probes, with an interval for other items like these.

    Items, or groups of them (column `group`), are resampled with all their probes, see `Resampler`, which also explains
    `error`. By default, all probes count alike; if each is of another item, the interval is Clopper and Pearson's
    (1934), which resampling approximates.
    """
    if weights is None and error is None and "group" not in probes and probes["item"].is_unique:
        return _proportion(int(which.sum()), len(which), level, "exact")
    resamples = resamples_for(level, probes["item"].nunique())
    sampler = Resampler(probes["item"], resamples, 0, probes.get("group"), error)
    return sampler.mean(which.astype(float), np.ones(len(which)) if weights is None else weights, SHARE, level)
