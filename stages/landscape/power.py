"""Estimate which changes by a repair the test items can detect, before its training takes time."""

from math import ceil, sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from stages.core.intervals import LEVEL

POWER = 0.8  # share of repairs with such a change whose interval detects it
CHURN = 0.02  # share of all pairs that fail newly; repairs measured so far had one or two in a hundred
APART = 0.04  # share of the pairs in target modes that only the control repairs: two to seven in a hundred so far
_ADDED = 2.0  # items by which an interval is wider than its standard error, see `stages.core.intervals.Resampler`
_REACH = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(POWER)


class Power(NamedTuple):
    """The changes of a failure rate that a number of test items can detect.

    The paired change of m pairs of n items has the variance v/m (1 + (m/n - 1) alike), where v is that of one pair and
    the rest is the design effect of clusters (Kish 1965, section 5.4). A fixed pair changes by 1, a newly failing one
    by -1.

    Args:
        rate: share of the pairs that fail before the repair.
        pairs: number of pairs of these items and cells.
        alike: intraclass correlation of the failures of one item or group; that of changes is at most as high.
        groups: number of groups resampled together; None if items are resampled individually.
        churn: share of the pairs that change by -1 whatever the drop. Between a repair and its control, pairs that fail
            under the repair alone: elsewhere they are as many as fail newly, in the target modes `APART`.
    """

    rate: float
    items: int
    pairs: int
    alike: float
    groups: int | None = None
    churn: float = CHURN

    def margin(self, drop: float) -> float:
        """Distance beyond a bound that a true drop needs for the interval to be beyond it in `POWER` of repairs."""
        changes = drop + 2 * min(self.churn, 1 - self.rate)
        each = self.pairs / (self.groups or self.items)
        variance = max(changes - drop**2, 0.0) / self.pairs * (1 + max(each - 1, 0.0) * self.alike)
        return _REACH * sqrt(variance) + _ADDED / self.items

    def least_drop(self, bound: float = 0.0) -> float | None:
        """Smallest drop that can be shown to exceed `bound`; None if none can."""
        drops = np.linspace(max(bound, 0.0), self.rate, 201)
        return next((float(drop) for drop in drops if drop - self.margin(drop) >= bound), None)

    def items_for(self, drop: float, bound: float = 0.0) -> int:
        """Number of test items needed to show that a drop exceeds `bound`, with the current number of pairs per item.

        Args:
            drop: the true drop, larger than the bound.
            bound: negative if failures may rise by that much.
        """
        # margin = a / sqrt(items) + b / items has to equal the distance from drop to bound.
        a, b = (self.margin(drop) - _ADDED / self.items) * sqrt(self.items), _ADDED
        root = (a + sqrt(a**2 + 4 * b * (drop - bound))) / (2 * (drop - bound))
        return ceil(root**2)


def alike(failed: np.ndarray, items: np.ndarray) -> float:
    """Return how much more alike probes of one item are than those of different ones, from 0 to 1.

    The intraclass correlation by analysis of variance (Donner 1986, "A Review of Inference Procedures for the
    Intraclass Correlation Coefficient in the One-Way Random Effects Model").

    Args:
        failed: (n,) bool.
        items: (n,) item of each probe.
    """
    _, codes, counts = np.unique(np.asarray(items, dtype=str), return_inverse=True, return_counts=True)
    n, k = len(codes), len(counts)
    if not 1 < k < n:
        return 1.0  # one probe per item, or one item: nothing separates them
    means = np.bincount(codes, failed, k) / counts
    between = float((counts * (means - failed.mean()) ** 2).sum()) / (k - 1)
    within = float(((failed - means[codes]) ** 2).sum()) / (n - k)
    size = (n - (counts**2).sum() / n) / (k - 1)
    total = between + (size - 1) * within
    return float(np.clip((between - within) / total, 0, 1)) if total > 0 else 0.0
