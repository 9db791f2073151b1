"""Rates in use, from probes that were drawn evenly.

The control draws rare conditions more often than they occur (`Usage.even`), so its probes are weighted. Rates are
stratified by the number of concepts that change at once: each stratum counts by its share of use, and within it a probe
by how common its cell is in use, over the chance to be probed (Horvitz and Thompson 1952; Hájek 1971).
"""

from __future__ import annotations

from functools import partial
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.concepts.usage import Usage
from stages.core.intervals import LEVEL, NO_RATE, RESAMPLES, SHARE, Rate, Resampler, share

EVERYWHERE = Region({})
_SHRUNK = 1.0  # failures at the overall rate, added to a stratum for its variance: no failure in 5 is not certainty


class InUse(NamedTuple):
    """A rate in use, and the number of plain draws from use that would measure it as precisely.

    Args:
        rate: the rate with its interval; `n` counts probes.
        effective: Kish's effective sample size, less what a measured usage may be off; infinite where all pairs were
            probed and the usage was not measured.
    """

    rate: Rate
    effective: float

    @property
    def counts(self) -> tuple[int, int]:
        """Failures and passes of as many plain draws, for tests."""
        n = int(min(self.effective, self.rate.n)) if self.rate.n else 0
        failures = round(n * self.rate.value) if n else 0
        return failures, n - failures


def rate_in_use(
    space: ConceptSpace,
    which: np.ndarray,
    probes: pd.DataFrame,
    *,
    within: Region = EVERYWHERE,
    among: np.ndarray | None = None,
    usage: Usage | None = None,
    level: float = LEVEL,
) -> InUse:
    """Return how often `which` is true in use.

    The interval is Wilson's (1927) at the effective sample size, for querying *these* items; a stratum whose pairs were
    all probed adds nothing to it, and one without a probe may have any rate. If items belong to groups, the interval
    resamples groups, see `Resampler`. The error of a usage that was measured is part of it, see `Usage.error_of_mean`.

    Args:
        space: the grid with its usage.
        which: (n,) bool.
        probes: n draws from the cells of `within` and the items it covers, as the control makes them.
        within: the region that the probes are in.
        among: (n,) bool, of which of them the rate is; None for all.
        usage: another usage of the grid than its own. What it has in cells that were never drawn may have any rate.
        level: of the interval.
    """
    here = space.usage if usage is None else usage
    kept = np.ones(len(probes), dtype=bool) if among is None else among
    if here is None:
        return InUse(share(which[kept], probes[kept], level), float(kept.sum()))
    cells = probes[space.names].to_numpy(dtype=np.int64)
    allowed = {space.names.index(name): levels for name, levels in within.allowed.items()}
    chances = space.chances(cells, probes["item"].nunique(), allowed)
    ratio, mass = here.density(cells) / chances, here.by_changes(allowed)
    changes = here.number_of_changes(cells)
    found = np.bincount(changes, ratio, len(mass))
    known, total = found > 0, float(mass.sum())
    mass = np.where(known, mass if usage is None else here.by_changes(_drawn(space, allowed)), 0.0)
    if mass.sum() <= 0:
        return InUse(NO_RATE, 0.0)
    unknown = max(0.0, 1 - float(mass.sum()) / total)
    weights = ratio * (mass / np.where(known, found, 1.0))[changes] * kept
    if weights.sum() <= 0:
        return InUse(NO_RATE, 0.0)
    effective = weights.sum() ** 2 / float((weights**2).sum())
    error = partial(here.error_of_mean, cells)
    if "group" in probes:
        sampler = Resampler(probes["item"], RESAMPLES, 0, probes["group"], error)
        return InUse(_widened(sampler.mean(which.astype(float), weights, SHARE, level), unknown), effective)
    off = error(which, weights)
    if among is not None:
        value = float(np.average(which, weights=weights))
        effective = _less_sure(effective, value, off)
        return InUse(_widened(_wilson(value, effective, int(among.sum()), level), unknown), effective)
    rates = np.bincount(changes, ratio * which, len(mass)) / np.where(known, found, 1.0)
    squares = np.where(known, np.bincount(changes, ratio**2, len(mass)), 1.0)
    size, left = found**2 / squares, np.bincount(changes, ratio**2 * (1 - chances), len(mass)) / squares
    strata = mass / mass.sum()
    value = float(strata @ rates)
    more = _SHRUNK / max(value * (1 - value), 1 / len(which))
    shrunk = (rates * size + more * value + 0.5 / len(which)) / (size + more)
    variance = float((strata**2 * shrunk * (1 - shrunk) * left / np.where(known, size, 1.0)).sum())
    middle = float(np.clip(strata @ shrunk, 1e-9, 1 - 1e-9))
    effective = _less_sure(middle * (1 - middle) / variance if variance > 0 else float("inf"), value, off)
    return InUse(_widened(_wilson(value, effective, len(which), level), unknown), effective)


def _drawn(space: ConceptSpace, allowed: dict[int, tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """Return the levels of concepts that a control draws, of those allowed."""
    if space.usage is None:
        return allowed
    levels = {j: np.flatnonzero(own > 0) for j, own in enumerate(space.usage.weights)}
    return {j: tuple(np.intersect1d(of, allowed.get(j, of)).tolist()) for j, of in levels.items()}


def rate_under(space: ConceptSpace, probes: pd.DataFrame, usage: Usage | None, *, exact: bool) -> Rate:
    """Return the failure rate under a usage, without a query.

    Args:
        space: the grid with the usage by which the probes were drawn.
        probes: as in probes.parquet; only the control's count.
        usage: any usage of the grid; None for that of the grid. What it has in cells that were never drawn, such as
            more changes at once, may fail at any rate, and widens the interval.
        exact: whether all pairs were probed; then the interval resamples items.
    """
    control = probes[probes["role"] == "control"]
    failed, here = control["failed"].to_numpy(dtype=bool), space.usage if usage is None else usage
    if not exact or here is None:
        return rate_in_use(space, failed, control, usage=usage).rate
    cells = control[space.names].to_numpy(dtype=np.int64)
    weights = here.density(cells)
    error = partial(here.error_of_mean, cells)
    return Resampler(control["item"], RESAMPLES, 0, control.get("group"), error).mean(
        failed.astype(float), weights, SHARE
    )


def _less_sure(effective: float, value: float, error: float) -> float:
    """Return the effective sample size of a rate that has another error, too (standard deviation)."""
    return effective if error == 0 else 1 / (1 / effective + error**2 / (value * (1 - value)))


def _wilson(value: float, effective: float, n: int, level: float) -> Rate:
    """Return a proportion with Wilson's interval at a sample size that need not be a whole number."""
    if effective == float("inf"):
        return Rate(value, value, value, n)
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (value + z**2 / (2 * effective)) / (1 + z**2 / effective)
    spread = z * sqrt(value * (1 - value) / effective + z**2 / (4 * effective**2)) / (1 + z**2 / effective)
    return Rate(value, min(value, max(0.0, centre - spread)), max(value, min(1.0, centre + spread)), n)


def _widened(rate: Rate, unknown: float) -> Rate:
    """Return a rate whose interval allows any rate in the share of use from which no probe was drawn."""
    return rate._replace(low=rate.low * (1 - unknown), high=rate.high * (1 - unknown) + unknown)
