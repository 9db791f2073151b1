"""What a repair can be shown to do with the test items there are, said before its training costs its time."""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from stages.intervals import LEVEL

POWER = 0.8  # of repairs that change so much, the share whose interval says so
CHURN = 0.02  # of all pairs, those that fail newly; repairs measured so far had one or two in a hundred
_ADDED = 2.0  # items by which an interval is wider than its standard error says, see `stages.intervals.Resampler`
_REACH = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)


class Power(NamedTuple):
    """Which changes of a failure rate are shown by so many test items.

    The paired change of m pairs of n items has the variance v/m (1 + (m/n - 1) alike), where v is that of one pair and
    the rest is the design effect of clusters (Kish 1965, section 5.4). A pair changes by 1 where it is fixed, by -1
    where it fails newly.

    Args:
        rate: share of the pairs that fail before the repair.
        items: test items.
        pairs: of these items and cells.
        alike: intraclass correlation of the failures of one item, or of one group; changes are at most as alike.
        groups: of items that are resampled together; None: each item by itself.
    """

    rate: float
    items: int
    pairs: int
    alike: float
    groups: int | None = None

    def margin(self, drop: float) -> float:
        """How far beyond a bound a true drop has to lie for the interval to lie there in `POWER` of repairs."""
        changes = drop + 2 * min(CHURN, 1 - self.rate)
        each = self.pairs / (self.groups or self.items)
        variance = max(changes - drop**2, 0.0) / self.pairs * (1 + max(each - 1, 0.0) * self.alike)
        return _REACH * sqrt(variance) + _ADDED / self.items

    def least_drop(self, bound: float = 0.0) -> float | None:
        """The smallest drop that is shown to be one by more than `bound`; None where none can be."""
        drops = np.linspace(max(bound, 0.0), self.rate, 201)
        return next((float(drop) for drop in drops if drop - self.margin(drop) >= bound), None)

    def items_for(self, drop: float, bound: float = 0.0) -> int:
        """How many test items show such a drop to be one by more than `bound`, with as many pairs of each as now.

        Args:
            drop: beyond the bound.
            bound: negative where failures may rise by so much.
        """
        # margin = a / sqrt(items) + b / items, to be as large as what lies between drop and bound.
        a, b = (self.margin(drop) - _ADDED / self.items) * sqrt(self.items), _ADDED
        root = (a + sqrt(a**2 + 4 * b * (drop - bound))) / (2 * (drop - bound))
        return ceil(root**2)


def alike(failed: np.ndarray, items: np.ndarray) -> float:
    """How much more alike the probes of one item are than those of different ones, from 0 to 1.

    The intraclass correlation by analysis of variance (Donner 1986, "A Review of Inference Procedures for the
    Intraclass Correlation Coefficient in the One-Way Random Effects Model").

    Args:
        failed: (n,) bool.
        items: (n,) item of each probe.
    """
    _, codes, counts = np.unique(np.asarray(items, dtype=str), return_inverse=True, return_counts=True)
    n, k = len(codes), len(counts)
    if not 1 < k < n:
        return 1.0  # one probe of each item, or one item: nothing tells them apart
    means = np.bincount(codes, failed, k) / counts
    between = float((counts * (means - failed.mean()) ** 2).sum()) / (k - 1)
    within = float(((failed - means[codes]) ** 2).sum()) / (n - k)
    size = (n - (counts**2).sum() / n) / (k - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0
