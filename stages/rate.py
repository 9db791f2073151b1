"""A rate with its interval, as all measurements return it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


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


NO_RATE = Rate(np.nan, np.nan, np.nan, 0)
