"""Estimate the landscape: a failure rate with an interval for every cell, from fewer probes than cells.

Raw frequencies are useless for cells with at most one probe. Estimators of the *margin* (how far a probe is from
failing, not only whether it failed) over items and concepts borrow strength from other cells and similar items;
averaged over the audit's items they give a rate. Because they model the margin given item and cell, it hardly matters
that an explorer drew most probes where it expected failures. The choice of estimator, and its calibration to
probabilities, use evenly drawn probes, or all, weighted to stand for use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Self

import numpy as np
import pandas as pd
from scipy import stats
from scipy.ndimage import binary_dilation
from threadpoolctl import threadpool_limits

from stages.concepts import ConceptSpace
from stages.core.intervals import LEVEL, NO_RATE, RESAMPLES, SHARE, Rate, Resampler, wilson
from stages.explorers.kernel import ProbeArrays, landmarks
from stages.landscape.calibrate import (
    CalibrationProbes,
    EstimateRecipe,
    blocks_of,
    choose_estimator,
    folds_of,
    importance,
    rebuild,
)
from stages.landscape.estimators import DRAWS, Gridded, Link

MAX_CELLS = 20_000  # larger grids are sampled
MAX_PROBES = 100_000  # most probes for estimators, a sample if there are more: further ones teach them almost nothing
CHUNK, CHUNK_PAIRS = 1024, 2**17  # cells, and (item, cell) pairs, for which all members are in memory at once
CERTAIN_WIDTH = 0.2


@dataclass(frozen=True)
class CellRates:
    """Failure rates over the grid, averaged over the items of the audit.

    Args:
        table: one row per cell that occurs in use: one column per concept (level index), `use`, `probes`, `failures`,
            `rate`, `low`, `high`, `certain` (interval no wider than 0.2). In 95% of the cells the interval should
            contain the rate that querying the model with *these* items would give. It covers the estimator's
            uncertainty and chance; for other items see the test split. An enumerated landscape is exact for these
            items, and its interval is for other items like them.
        draws: (draws, cells) float32 plausible rates, with correlated errors in neighbouring cells.
        exact: whether every (item, cell) pair was probed, so that nothing is estimated.
        sampled: whether the grid is too large to estimate, so that the cells are a seeded sample of it.
        averaged: number of items that rates are averaged over, a sample if the audit has very many.
        recipe: components of the estimate, to estimate another landscape in the same way.
        diagnostics: the estimator chosen, and how well it and the others predict held-out probes; see
            `choose_estimator`.
        answers: (items, cells) share of repeats that failed, for an enumerated landscape, which needs no draws.
        groups: (items,) the group of each, if items belong to groups; see `Items`.

    The column `use` of the table is the share of use of each cell, or of what it stands for in a sample; it sums to 1.
    """

    table: pd.DataFrame
    draws: np.ndarray
    exact: bool
    sampled: bool
    recipe: EstimateRecipe | None
    diagnostics: dict[str, object]
    answers: np.ndarray | None = None
    averaged: int | None = None
    groups: np.ndarray | None = None

    def cells(self, space: ConceptSpace) -> np.ndarray:
        """Return the cells of the rows, (cells, concepts) level indices."""
        return self.table[space.names].to_numpy(dtype=np.int64, copy=True)  # pandas returns read-only views

    @property
    def rates(self) -> np.ndarray:
        return self.table["rate"].to_numpy(dtype=float)

    @property
    def use(self) -> np.ndarray:
        """Share of use of each row, (cells,)."""
        return self.table["use"].to_numpy(dtype=float)

    def mean_rate(self, inside: np.ndarray | None = None) -> Rate:
        """Failure rate in use over some of the cells (mask), or over all; `n` counts cells."""
        rows = np.ones(len(self.table), dtype=bool) if inside is None else inside
        use = self.use[rows]
        if use.sum() <= 0:
            return NO_RATE
        use = use / use.sum()
        if self.answers is not None:
            by_item = self.answers[:, rows] @ use
            return self._resampler.mean(by_item, np.ones(len(by_item)), SHARE)._replace(n=int(rows.sum()))
        means = self.draws[:, rows] @ use
        value = float(self.rates[rows] @ use)
        spread = stats.norm.ppf((1 + LEVEL) / 2) * float(means.std(ddof=1))
        return Rate(value, max(0.0, value - spread), min(1.0, value + spread), int(rows.sum()))

    @cached_property
    def _resampler(self) -> Resampler:
        assert self.answers is not None
        return Resampler(np.arange(len(self.answers)), RESAMPLES, 0, self.groups)


def as_data(probes: pd.DataFrame, item_ids: Sequence[str], space: ConceptSpace, threshold: float) -> ProbeArrays:
    """Convert probes to arrays, with items numbered as in `item_ids`."""
    items = pd.Index(item_ids).get_indexer(pd.Index(probes["item"]))
    cells = probes[space.names].to_numpy(dtype=np.int64)
    margin = probes["discrepancy"].to_numpy(dtype=float) - threshold
    return ProbeArrays(items, cells, margin, probes["failed"].to_numpy(dtype=bool))


def drawn_evenly(probes: pd.DataFrame) -> np.ndarray:
    """Return which probes are known to be drawn evenly, (n,) bool: the control's, and those marked by an explorer."""
    known = np.zeros(len(probes), dtype=bool)
    if "role" in probes:
        known |= (probes["role"] == "control").to_numpy()
    if "uniform" in probes:
        known |= probes["uniform"].to_numpy(dtype=bool)
    return known


def estimate_landscape(
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    *,
    threshold: float,
    seed: int,
    like: CellRates | None = None,
    spread: bool = True,
    every: int = 1,
) -> CellRates:
    """Estimate the landscape from probes, wherever they were drawn.

    Raises a ValueError without probes, or for items that are not in `item_ids`.

    Args:
        probes: as in probes.parquet. Estimators are judged and calibrated on those known to be drawn evenly (`role`
            control, or true in a column `uniform`); with fewer than 50, on all, weighted to represent use.
        item_ids: the items that rates are averaged over.
        embeddings: (items, d), in the order of `item_ids`.
        threshold: discrepancies above it are failures.
        like: landscape whose estimator, hyperparameters and calibration to use instead of choosing them.
        spread: False skips intervals and draws of estimated rates, which is several times faster.
        every: k, to estimate only every k-th cell.
    """
    # A second thread spins more than it computes here (2 CPU-seconds against 10, measured), and sums with a fixed
    # number of threads are the same everywhere.
    with threadpool_limits(1):
        return _estimate(probes, item_ids, embeddings, space, threshold, seed, like, spread, every)


def _estimate(
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    threshold: float,
    seed: int,
    like: CellRates | None,
    spread: bool,
    every: int,
) -> CellRates:
    if probes.empty:
        raise ValueError("a landscape is estimated from probes, found none")
    probes = _unique(probes, space)
    data = as_data(probes, item_ids, space, threshold)
    rng = np.random.default_rng(seed)
    pairs = probes.drop_duplicates(["item", *space.names])[space.names].to_numpy(dtype=np.int64)
    enumerated = int((space.density(pairs) > 0).sum()) == space.n_used * len(item_ids)
    sampled = space.n_used > MAX_CELLS and not enumerated
    cells, use = space.used(space.n_used if enumerated else MAX_CELLS, rng)
    cells, use = cells[::every], use[::every] / use[::every].sum()
    numbers = space.flat(cells)
    if enumerated:
        seen = _Seen.of(data, space, numbers, np.arange(len(item_ids)), len(item_ids))
        return _exact(cells, use, space, seen, _groups(probes, item_ids))
    averaged = landmarks(len(item_ids))
    seen = _Seen.of(data, space, numbers, averaged, len(item_ids))
    probed = data.cells
    if len(data) > MAX_PROBES:
        # Probes of items averaged over come first, because only an item's own probes show its own deviation.
        others = ~np.isin(data.items, averaged)
        kept = np.sort(np.lexsort((rng.random(len(data)), others))[:MAX_PROBES])
        data, probes = data.take(kept), probes.iloc[kept]
    fold, held_out = folds_of(data.cells, space, seed)
    weights, judged_on = importance(data, drawn_evenly(probes), fold, space, embeddings, seed)
    evidence = CalibrationProbes(data, weights, fold, space, embeddings, seed)
    if like is not None and like.recipe is not None:
        recipe, diagnostics = like.recipe, like.diagnostics
        estimator = rebuild(recipe, evidence, spread)
    else:
        estimator, recipe, diagnostics = choose_estimator(evidence)
        diagnostics |= {"judged_on": judged_on, "held_out_together": held_out}
    link = recipe.link
    rate, chance, members, sampling = _rates(estimator, link, cells, seen, spread, seed)
    if not spread:
        unknown = np.full(len(cells), np.nan)
        none = np.empty((0, len(cells)), dtype=np.float32)
        table = _table(cells, use, space, seen, rate, unknown, unknown)
        return CellRates(table, none, False, sampled, recipe, {}, averaged=len(averaged))
    misfit = link.misfit * rate * (1 - rate)
    low, high = _beta_interval(rate, (members**2).sum(axis=0) + misfit + chance + (sampling**2).mean(axis=0))
    step = 0.5 / len(averaged)  # the true rate is a share of this many items: a continuity correction
    low, high = np.maximum(0.0, low - step), np.minimum(1.0, high + step)
    # A cell whose levels were not probed together pairwise, even nearly, may have any rate of the grid.
    alone = ~_supported(cells, probed, space)
    bounds = np.quantile(rate, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    low[alone], high[alone] = np.minimum(low[alone], bounds[0]), np.maximum(high[alone], bounds[1])
    blocks = blocks_of(cells, space)
    together = rng.standard_normal((DRAWS, len(members))) @ members + sampling
    shared = rng.standard_normal((DRAWS, blocks.max() + 1))[:, blocks] * np.sqrt(misfit)
    chances = rng.standard_normal(together.shape) * np.sqrt(chance)
    draws = np.clip(rate + together + shared + chances, 0, 1).astype(np.float32)
    table = _table(cells, use, space, seen, rate, low, high)
    return CellRates(table, draws, False, sampled, recipe, diagnostics, averaged=len(averaged))


def _groups(probes: pd.DataFrame, item_ids: Sequence[str]) -> np.ndarray | None:
    if "group" not in probes:
        return None
    return probes.drop_duplicates("item").set_index("item")["group"].loc[list(item_ids)].to_numpy()


def _supported(cells: np.ndarray, probed: np.ndarray, space: ConceptSpace) -> np.ndarray:
    """Whether each cell (n, concepts) has probes with every pair of its levels, up to one level off: (n,) bool.

    Two-way combinatorial coverage (Kuhn, Mendoza, Kacker and Lei 2013, "Combinatorial Coverage Measurement Concepts and
    Applications"): on a large grid every cell is far from all probes, but it may still be within what they show.
    """
    supported = np.ones(len(cells), dtype=bool)
    for concepts in combinations(range(len(space)), min(2, len(space))):
        seen = np.zeros([space.sizes[j] for j in concepts], dtype=bool)
        seen[tuple(probed[:, j] for j in concepts)] = True
        near = np.ones([3 if space.concepts[j].ordered else 1 for j in concepts], dtype=bool)
        supported &= binary_dilation(seen, near)[tuple(cells[:, j] for j in concepts)]
    return supported


def _unique(probes: pd.DataFrame, space: ConceptSpace) -> pd.DataFrame:
    """Keep each probe once, as an even draw if it is also one.

    The control's probes are even by how they were drawn. Without those that the agent probed too, most of them
    failures, they would not be.
    """
    even_first = np.argsort(~drawn_evenly(probes), kind="stable")
    again = probes.iloc[even_first].duplicated(["item", *space.names, "repeat"]).to_numpy()
    return probes.iloc[np.sort(even_first[~again])]


@dataclass(frozen=True)
class _Seen:
    """The answered (item, cell) pairs, with repeats averaged into one outcome.

    Pairs are only of the items averaged over; `probes` and `failures` count those of all items.
    """

    items: np.ndarray  # (pairs,) number among the items averaged over
    rows: np.ndarray  # row in the landscape
    cells: np.ndarray  # (pairs, concepts)
    outcome: np.ndarray  # (pairs,) share of repeats that failed
    probes: np.ndarray  # (cells,)
    failures: np.ndarray  # (cells,)
    n_items: int  # number of items averaged over
    total: int  # number of items of the audit

    @classmethod
    def of(cls, data: ProbeArrays, space: ConceptSpace, numbers: np.ndarray, averaged: np.ndarray, total: int) -> Self:
        flat = space.flat(data.cells)
        row = np.searchsorted(numbers, flat)
        row = np.where(row < len(numbers), row, 0)
        known = numbers[row] == flat  # on a sampled grid most probes are in other cells
        row, items, failed, cells = row[known], data.items[known], data.failed[known], data.cells[known]
        count = np.bincount(row, minlength=len(numbers))
        failures = np.bincount(row, weights=failed, minlength=len(numbers)).astype(np.int64)
        place = np.searchsorted(averaged, items)
        place = np.where(place < len(averaged), place, 0)
        among = averaged[place] == items
        row, items, failed, cells = row[among], place[among], failed[among], cells[among]
        pair, first, inverse = np.unique(row * len(averaged) + items, return_index=True, return_inverse=True)
        outcome = np.bincount(inverse, weights=failed, minlength=len(pair)) / np.bincount(inverse, minlength=len(pair))
        return cls(items[first], row[first], cells[first], outcome, count, failures, len(averaged), total)


def _rates(
    estimator: Gridded, link: Link, cells: np.ndarray, seen: _Seen, spread: bool, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return rates over the items, their variance by chance, the members' deviations, and those of other samples.

    Rates and variances are (cells,), the members' deviations (m, cells). If the items averaged over are a sample,
    (DRAWS, cells) are the deviations of other samples, by a Bayesian bootstrap (Rubin 1981). The sample is the same for
    all cells, so these errors are correlated. For all items they are 0.

    An observed answer replaces the prediction for its pair, so with more probes the estimate converges to the
    enumeration. The squared deviations sum to the variance of the estimate.
    """
    left_out = 1 - seen.n_items / seen.total
    drawn = np.random.default_rng(seed).dirichlet(np.ones(seen.n_items), DRAWS)
    others = np.sqrt(left_out) * (drawn - 1 / seen.n_items)  # the sample's own share of the items is known
    size = min(CHUNK, max(16, CHUNK_PAIRS // seen.n_items))
    order = np.argsort(seen.rows, kind="stable")
    bounds = np.searchsorted(seen.rows[order], np.arange(0, len(cells) + size, size))

    def of_chunk(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        start, asked = k * size, order[bounds[k] : bounds[k + 1]]
        at = (seen.items[asked], seen.rows[asked] - start)

        def answered(margin: np.ndarray) -> np.ndarray:
            p = link.probability(margin)
            p[at] = seen.outcome[asked]
            return p

        margin, spread_of = estimator.over_items(cells[start : start + size])
        p = answered(margin)
        rate, unknown = p.mean(axis=0), p * (1 - p)
        unknown[at] = 0.0
        chance = unknown.sum(axis=0) / (seen.n_items * seen.total)
        if not spread:
            return rate, chance, p[:0], p[:0]
        slopes = unknown * (link.slope / seen.n_items)
        return rate, chance, spread_of(lambda margin: answered(margin).mean(axis=0) - rate, slopes), others @ p

    rate, chance, members, sampling = zip(*map(of_chunk, range(len(bounds) - 1)), strict=True)
    return np.concatenate(rate), np.concatenate(chance), np.hstack(members), np.hstack(sampling)


def _exact(
    cells: np.ndarray, use: np.ndarray, space: ConceptSpace, seen: _Seen, groups: np.ndarray | None
) -> CellRates:
    """The landscape of an enumerated grid: nothing is estimated, and intervals are for other items like these."""
    n = seen.n_items
    answers = np.zeros((n, len(cells)))
    answers[seen.items, seen.rows] = seen.outcome
    rate = answers.mean(axis=0)
    if groups is None:
        bounds = np.array([wilson(round(r * n), n)[1:3] for r in np.unique(rate)])
        low, high = bounds[np.unique(rate, return_inverse=True)[1]].T
    else:
        sampler, ones = Resampler(np.arange(n), RESAMPLES, 0, groups), np.ones(n)
        low, high = np.array([sampler.mean(of_cell, ones, SHARE)[1:3] for of_cell in answers.T]).T
    table, draws = _table(cells, use, space, seen, rate, low, high), np.empty((0, len(cells)), dtype=np.float32)
    return CellRates(table, draws, True, False, None, {"held_out_probes": 0}, answers, groups=groups)


def _beta_interval(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central 95% interval of beta distributions with these moments, which stays within [0, 1]."""
    mean = np.clip(mean, 1e-4, 1 - 1e-4)
    variance = np.clip(variance, 1e-9, 0.98 * mean * (1 - mean))
    size = mean * (1 - mean) / variance - 1
    tail = (1 - LEVEL) / 2
    return stats.beta.ppf(tail, mean * size, (1 - mean) * size), stats.beta.ppf(
        1 - tail, mean * size, (1 - mean) * size
    )


def _table(
    cells: np.ndarray,
    use: np.ndarray,
    space: ConceptSpace,
    seen: _Seen,
    rate: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> pd.DataFrame:
    table = pd.DataFrame(cells, columns=space.names).assign(use=use)
    table["probes"], table["failures"] = seen.probes, seen.failures
    table["rate"], table["low"], table["high"] = rate, np.minimum(low, rate), np.maximum(high, rate)
    table["certain"] = table["high"] - table["low"] <= CERTAIN_WIDTH
    return table
