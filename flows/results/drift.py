"""Whether the failure rate of a recurring audit drifts, so that looking again each week does not raise false alarms.

52 comparisons at 95% find a drift in six of ten audits that have none. So look k spends 5% / (k (k + 1)) of the chance
of a false alarm, which sums to 5% over any number of looks (alpha spending: Lan and DeMets 1983). It compares the last
1, 2 and 4 results with all before: a drift that stays is seen even if no single result shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan, sqrt
from statistics import NormalDist, fmean
from typing import NamedTuple

from stages.core.intervals import LEVEL, Rate

WINDOWS = (1, 2, 4)  # numbers of the last results that are compared with all before


class Drift(NamedTuple):
    """How the last results differ from those before.

    Args:
        change: in the failure rate, with an interval that holds at all looks together; `n` is the number of results.
        last: how many of the last results it is of: those that differ most clearly.
    """

    change: Rate
    last: int

    @property
    def shown(self) -> int:
        """1 for more failures, -1 for fewer, 0 if no drift is shown."""
        return int(self.change.low > 0) - int(self.change.high < 0)


def spent(look: int) -> float:
    """The share of all error that a look may spend: they sum to 1 over any number of looks."""
    return 1 / (look * (look + 1))


def drift_of(rates: Sequence[Rate]) -> Drift:
    """Compare the last of at least two rates with those before, all with their 95% intervals, oldest first.

    They count as independent and equally precise; audits that probe the same pairs are closer to each other, so false
    alarms are rarer. The interval is NaN if a rate has none.
    """
    look = len(rates) - 1
    windows = [last for last in WINDOWS if last <= look]
    of_95 = NormalDist().inv_cdf((1 + LEVEL) / 2)
    half_widths = [(rate.high - rate.low) / 2 for rate in rates]
    deviation = sqrt(fmean(half**2 for half in half_widths)) / of_95
    tail = (1 - LEVEL) * spent(look) / len(windows) / 2
    found = []
    for last in windows:
        value = fmean(rate.value for rate in rates[-last:]) - fmean(rate.value for rate in rates[:-last])
        scale = deviation * sqrt(1 / last + 1 / (len(rates) - last))
        spread = -NormalDist().inv_cdf(tail) * scale
        found.append((-abs(value) / scale if scale > 0 else 0.0, last, value, spread))
    _, last, value, spread = min(found, key=lambda one: (isnan(one[0]), *one[:2]))
    return Drift(Rate(value, value - spread, value + spread, len(rates)), last)
