"""Describe a model from its probes: overall rate, effects of single concepts, failure modes.

If people's ratings define what a failure is, they are compared with the automatic measure on the same probes.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from stages.concepts import ConceptSpace, Region
from stages.core.intervals import COUNTED, LEVEL, SHARE, Rate, less_sure, share
from stages.landscape.confirm import Fresh, Mode, confirm, confirm_exactly, no_fresh
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.landscape.kinds import rates_of
from stages.landscape.modes import find_regions
from stages.landscape.pairs import UNKNOWN, half_of, probes_inside
from stages.landscape.rates import rate_in_use
from stages.params import SummarizeConfig
from stages.ratings.apply import Ratings
from stages.records import Effect, RateRecord
from stages.records.landscape import Automatic, Invalid, InvalidLevel, LevelAlone
from stages.tasks.contract import NOT_VALID


def overall_rate(landscape: CellRates, probes: pd.DataFrame, space: ConceptSpace) -> Rate:
    """Failure rate in use: from the control's probes alone, without an estimator; exact if enumerated."""
    if landscape.exact or not (probes["role"] == "control").any():
        error = space.error_of_mean(landscape.cells(space), landscape.rates, landscape.use)
        return less_sure(landscape.mean_rate(), error, SHARE)
    control = probes[probes["role"] == "control"]
    return rate_in_use(space, control["failed"].to_numpy(dtype=bool), control).rate


def alone(
    space: ConceptSpace, probes: pd.DataFrame, regions: Sequence[Region], attributes: pd.DataFrame
) -> list[LevelAlone]:
    """Measure the failure rate at each level of each concept while everything else is unchanged: its curve.

    Rates are counted on the control's probes, which are even draws, for all items; for concepts of regions that are
    about some items, also for these.

    Returns:
        Nothing for a grid without an unchanged cell.
    """
    if space.neutral is None:
        return []
    control = probes[probes["role"] == "control"]
    cells = control[space.names].to_numpy(dtype=np.int64)
    differs = cells != space.neutral
    found = []
    for j, concept in enumerate(space.concepts):
        others = np.delete(differs, j, axis=1).any(axis=1)
        kinds = [("", "")]
        for region in regions:
            if concept.name in region.allowed:
                kinds += [(name, value) for name, values in region.items.items() for value in values]
        for name, value in dict.fromkeys(kinds):
            about = control["item"].map(attributes[name]).eq(value).to_numpy() if name else np.ones(len(control), bool)
            for level in range(len(concept)):
                at = ~others & (cells[:, j] == level) & about
                rate = share(control["failed"].to_numpy(dtype=bool)[at], control[at])
                found.append(
                    LevelAlone(concept=concept.name, level=level, attribute=name, value=value, **rate.of_probes)
                )
    return found


def main_effects(landscape: CellRates, space: ConceptSpace, probes: pd.DataFrame) -> list[Effect]:
    """Compute the failure rate in use at each level of each concept, averaged over all others.

    `probes` and `failures` count the control's probes at that level. If all levels of a concept have enough of them,
    rate and interval come from these counts, as the overall rate does: a landscape is smooth, and its interval does not
    account for smoothing a jump from one level to the next. Otherwise they come from the landscape.
    """
    control = probes[probes["role"] == "control"]
    rows = []
    for concept in space.concepts:
        level_of_cell = landscape.table[concept.name].to_numpy()
        failed = control["failed"].groupby(control[concept.name]).agg(["size", "sum"])
        failed = failed.reindex(range(len(concept)), fill_value=0)
        counted = not landscape.exact and failed["size"].min() >= COUNTED
        for level, (probed, failing) in enumerate(failed.itertuples(index=False)):
            at = control[control[concept.name] == level]
            own = (
                rate_in_use(space, at["failed"].to_numpy(dtype=bool), at, within=Region({concept.name: (level,)})).rate
                if counted
                else landscape.mean_rate(level_of_cell == level)
            )
            measured = own._replace(n=probed).of_probes  # a level that never occurs has no rate
            rows.append(
                Effect(concept=concept.name, level=level, label=concept.label(level), failures=failing, **measured)
            )
    return rows


def invalid_probes(space: ConceptSpace, probes: pd.DataFrame, what: str = NOT_VALID) -> Invalid:
    """Count the probes that are not held against the model; `what` describes them.

    Their share is that in use; `levels` lists the levels at which the control met any.
    """
    control = probes[probes["role"] == "control"]
    invalid = _invalid(control)
    levels = []
    for concept in space.concepts:
        for level, at in control[invalid].groupby(concept.name):
            there = control[concept.name] == level
            here = Region({concept.name: (int(level),)})
            found = rate_in_use(space, invalid[there].to_numpy(), control[there], within=here).rate.to_json()
            label = concept.label(int(level))
            levels.append(InvalidLevel(concept=concept.name, level=level, label=label, invalid=len(at), **found))
    failed = control["failed"].astype(bool)

    def in_use(which: pd.Series, among: pd.Series | None = None) -> Rate:
        kept = None if among is None else among.to_numpy(dtype=bool)
        return rate_in_use(space, which.to_numpy(dtype=bool), control, among=kept).rate

    return Invalid(
        what=what,
        count=_invalid(probes).sum(),
        probes=len(probes),
        levels=levels,
        left_out=RateRecord.from_rate(in_use(failed, ~invalid)),
        as_failures=RateRecord.from_rate(in_use(failed | invalid)),
        **in_use(invalid).to_json(),
    )


def invalid_share(
    space: ConceptSpace, region: Region, probes: pd.DataFrame, attributes: pd.DataFrame = UNKNOWN
) -> float | None:
    """The share in use of a region's probes that are invalid; None if none of the control's fell there."""
    control = probes[probes["role"] == "control"]
    inside = probes_inside(space, region, control, attributes)
    if not inside.any():
        return None
    return rate_in_use(space, _invalid(control)[inside].to_numpy(), control[inside], within=region).rate.value


def shares_of_failures(
    space: ConceptSpace, probes: pd.DataFrame, regions: Sequence[Region], attributes: pd.DataFrame
) -> list[float | None]:
    """Return the share of all failures in use that lie in each region but in none before it, so that they add up."""
    control = probes[probes["role"] == "control"]
    cells = control[space.names].to_numpy(dtype=np.int64)
    weights = space.weights(cells, control["item"].nunique())
    weights = weights * control["failed"].to_numpy(dtype=bool)
    total, found = float(weights.sum()), []
    for region in regions:
        inside = probes_inside(space, region, control, attributes)
        found.append(float(weights[inside].sum()) / total if total > 0 else None)
        weights = np.where(inside, 0.0, weights)
    return found


def _invalid(probes: pd.DataFrame) -> pd.Series:
    """Return which probes are not valid; without a column `valid`, all are valid."""
    return ~probes["valid"].astype(bool) if "valid" in probes else pd.Series(False, index=probes.index)


def name_modes(
    landscape: CellRates,
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    config: SummarizeConfig,
    *,
    threshold: float,
    seed: int,
    fresh: Fresh,
    attributes: pd.DataFrame,
) -> tuple[list[Mode], pd.DataFrame]:
    """Find regions on the landscape, and query the model again inside each.

    On an enumerated grid every pair was probed: a region is named on half of the items, confirmed on the other half,
    and its rate is that of all items.

    Args:
        landscape: the landscape from all probes.
        probes: probes of agent and control, as in probes.parquet.
        item_ids: the items that rates are averaged over.
        embeddings: (items, d), in the order of `item_ids`.
        config: the number of regions, of their conditions, and their support.
        threshold: discrepancies above it are failures.
        fresh: probes kept back from the search.
        attributes: attributes that conditions on items may use, one row per item, indexed by id.

    Returns:
        The same as `confirm`.
    """
    if not landscape.exact:
        rates = rates_of(landscape, space, probes, attributes)
        control = probes[probes["role"] == "control"]
        return confirm(rates, find_regions(rates, config), control, fresh, seed)
    held = half_of(item_ids, probes, np.random.default_rng(seed))
    kept = np.flatnonzero(~held)
    others = probes["item"].isin(np.asarray(item_ids)[held])
    ids = [item_ids[int(i)] for i in kept]
    half = estimate_landscape(probes[~others], ids, embeddings[kept], space, threshold=threshold, seed=seed)
    rates = rates_of(half, space, probes[~others], attributes.loc[ids])
    return confirm_exactly(rates, find_regions(rates, config), landscape, probes[others], attributes), no_fresh(probes)


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
        return RateRecord.from_rate(rate_in_use(space, which, control).rate)

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
