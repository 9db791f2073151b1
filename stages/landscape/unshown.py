"""Bound the failures that an audit has not shown: those outside of its failure modes.

Counted on the control's probes they would be too few, because the same probes helped to choose the modes: a region is
named where they happened to fail. So what fresh probes found inside the modes, after these were chosen, is subtracted
from the rate in use. The error of that rate depends on no region, and that of the fresh probes on no choice, so the
bound holds however modes are chosen.
"""

from collections.abc import Sequence
from math import hypot
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from stages.concepts import ConceptSpace, Region
from stages.core.intervals import LEVEL, RESAMPLES, SHARE, Resampler
from stages.landscape.confirm import rate_inside
from stages.landscape.pairs import half_of, inside_any
from stages.landscape.rates import rate_in_use
from stages.records.landscape import Unshown

ONE_SIDED = 2 * LEVEL - 1  # level of a two-sided interval whose upper end is a bound at LEVEL


class ShownMode(NamedTuple):
    """What has to be known of a failure mode: its id, its cells, and its share of use."""

    id: str
    cells: Region
    share: float


def bound_unshown(
    space: ConceptSpace,
    probes: pd.DataFrame,
    fresh: pd.DataFrame,
    modes: Sequence[ShownMode],
    attributes: pd.DataFrame,
    *,
    exact: bool,
    seed: int,
) -> Unshown | None:
    """Return the most that fails in use outside of the failure modes, with 95% confidence.

    It is never below what the control's probes alone would give. On an enumerated grid the items that did not name the
    modes are counted, and the bound is for other items like these.

    Args:
        probes: as in probes.parquet; only the control's count.
        fresh: as in fresh.parquet; only those that measure a mode count.
        attributes: attributes that modes may be about, indexed by item.
        exact: whether all pairs were probed.
        seed: seed by which the modes of an enumerated grid were named.

    Returns:
        None without a control.
    """
    control = probes[probes["role"] == "control"]
    if control.empty:
        return None
    outside = control["failed"].to_numpy(dtype=bool) & ~_shown(space, modes, control, attributes)
    if exact:
        ids = attributes.index.tolist()
        unseen = half_of(ids, probes, np.random.default_rng(seed)) if modes else np.ones(len(ids), dtype=bool)
        counted = control["item"].isin(attributes.index[unseen]).to_numpy()
        use = space.weights(control[space.names].to_numpy(dtype=np.int64), len(ids)) * counted
        rate = Resampler(control["item"], RESAMPLES, seed, control.get("group")).mean(
            outside.astype(float), use, SHARE, ONE_SIDED
        )
        return Unshown(at_most=rate.high, probes=rate.n)
    everywhere, direct = (_most(space, which, control) for which in (_failed(control), outside))
    inside, spread, n = 0.0, 0.0, len(control)
    for k, mode in enumerate(modes):
        behind = fresh[(fresh["mode"] == mode.id) & (fresh["role"] == "measure")]
        own = _failed(behind) & ~_shown(space, modes[:k], behind, attributes)
        rate = rate_inside(space, mode.cells, attributes, behind, own, ONE_SIDED).rate
        inside, spread = inside + mode.share * rate.value, hypot(spread, mode.share * (rate.value - rate.low))
        n += rate.n
    value, high = everywhere
    return Unshown(at_most=max(direct[1], value - inside + hypot(high - value, spread)), probes=n)


def _most(space: ConceptSpace, which: np.ndarray, control: pd.DataFrame) -> tuple[float, float]:
    """Return a rate in use and its upper bound, which holds for rare failures, too.

    Resampling says too little if none or few of the probes fail: others may all be of the kind that counts most. So one
    more failure of the largest weight is added to those found, as Fay and Feuer (1997, "Confidence intervals for
    directly standardized rates") do, with a beta distribution in place of their gamma.
    """
    found = rate_in_use(space, which, control, level=ONE_SIDED).rate
    weights = space.weights(control[space.names].to_numpy(dtype=np.int64), control["item"].nunique())
    mean = found.value + float(weights.max())
    variance = (float(weights**2 @ which) + float(weights.max()) ** 2) * (1 - mean)
    if not 0 < variance < mean * (1 - mean):
        return found.value, found.high
    size = mean * (1 - mean) / variance - 1
    return found.value, max(found.high, float(stats.beta.ppf(LEVEL, mean * size, (1 - mean) * size)))


def _shown(
    space: ConceptSpace, modes: Sequence[ShownMode], probes: pd.DataFrame, attributes: pd.DataFrame
) -> np.ndarray:
    """Return which probes are in a mode, (n,) bool."""
    cells = probes[space.names].to_numpy(dtype=np.int64)
    return inside_any(space, [mode.cells for mode in modes], cells, attributes.reindex(probes["item"]))


def _failed(probes: pd.DataFrame) -> np.ndarray:
    return probes["failed"].to_numpy(dtype=bool)
