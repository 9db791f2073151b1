"""Compare people with the automatic measure on the same probes, if people's ratings define what a failure is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from stages.concepts import ConceptSpace
from stages.core.intervals import LEVEL, RESAMPLES, SHARE, Rate, Resampler
from stages.landscape.describe import main_effects, overall_rate
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.landscape.rates import rate_in_use
from stages.ratings.apply import Ratings
from stages.records import RateRecord
from stages.records.landscape import Automatic

ITEM_RESAMPLES = 200  # resamples of items for the rank correlation on an enumerated grid


def against_automatic(
    people: CellRates,
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    *,
    threshold: float,
    seed: int,
    ratings: Ratings,
) -> tuple[Automatic, dict[str, np.ndarray]]:
    """Estimate the automatic measure's landscape from the same probes, and compare.

    Args:
        people: the landscape by people's ratings.
        probes: as in probes.parquet, with `automatic` and `automatic_failed`.
        item_ids: the items that rates are averaged over.
        embeddings: (items, d), in the order of `item_ids`.
        threshold: threshold of the automatic measure.

    Returns:
        The results of the automatic measure, and its columns for landscape.parquet, (cells,) each. Results are
        `threshold`, `overall`, `effects` as for the landscape itself; the shares of the control's probes that both
        measures judge alike (`agree`), that fail by one alone (`only_people`, `only_automatic`), that are outside the
        rated range (`outside`), and whose verdict no rating supports (`unfounded`); and `rank_correlation` of the
        cells' rates (Spearman), null if a measure has the same rate everywhere.
    """
    own = probes.assign(discrepancy=probes["automatic"], failed=probes["automatic_failed"])
    automatic = estimate_landscape(own, item_ids, embeddings, space, threshold=threshold, seed=seed)
    control = probes[probes["role"] == "control"]
    failed, failed_too = (control[c].to_numpy(dtype=bool) for c in ("failed", "automatic_failed"))
    found, valid = control["automatic"].to_numpy(), control["valid"].to_numpy(dtype=bool)

    def of_control(which: np.ndarray) -> RateRecord:
        if not people.exact:
            return RateRecord.from_rate(rate_in_use(space, which, control).rate)
        resampler = Resampler(control["item"], RESAMPLES, seed, control.get("group"))
        use = space.weights(control[space.names].to_numpy(dtype=np.int64), len(item_ids))
        return RateRecord.from_rate(resampler.mean(which.astype(float), use, SHARE))

    summary = Automatic(
        threshold=threshold,
        overall=RateRecord.from_rate(overall_rate(automatic, own, space)),
        effects=main_effects(automatic, space, own),
        agree=of_control(failed == failed_too),
        only_people=of_control(failed & ~failed_too),
        only_automatic=of_control(~failed & failed_too),
        rank_correlation=rank_correlation(people, automatic, seed),
        outside=of_control(ratings.outside(found) & valid),
        unfounded=of_control(ratings.unfounded(found, failed) & valid),
    )
    rates = {f"{name}_automatic": automatic.table[name].to_numpy() for name in ("rate", "low", "high")}
    return summary, rates


def rank_correlation(a: CellRates, b: CellRates, seed: int) -> RateRecord | None:
    """Spearman's correlation of the rates of all cells; None if all cells of one landscape have the same rate.

    For an enumerated grid the interval is over resampled items. Estimates have no interval: draws from them contain
    noise that the estimates do not, so their correlations are lower.
    """
    value = _spearman(a.rates, b.rates)
    if value is None:
        return None
    if a.answers is None or b.answers is None:
        return RateRecord.from_rate(Rate(value, np.nan, np.nan, len(a.rates)))
    rng, n = np.random.default_rng(seed), len(a.answers)
    drawn = [rng.multinomial(n, np.full(n, 1 / n)) for _ in range(ITEM_RESAMPLES)]
    found = [_spearman(weights @ a.answers, weights @ b.answers) for weights in drawn]
    low, high = np.quantile([value if x is None else x for x in found], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return RateRecord(value=value, low=min(float(low), value), high=max(float(high), value), n=len(a.rates))


def _spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)
