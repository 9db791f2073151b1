"""The landscape: a failure rate with an interval for every cell, from fewer probes than there are cells.

Raw frequencies are useless where a cell has one probe or none. A Gaussian process on the *margins* (how far a probe
is from failing, not only whether it failed), over items and concepts together, borrows strength from neighbouring
cells and similar items; averaged over the audit's items it gives a rate. Because it models the margin given item and
cell, it hardly matters that the agent drew most probes where it expected failures.

Measured on three enumerated truths (MNIST, 2,401 cells x 200 items, two seeds each): from 4,000 uniform and 4,000
adaptive probes a mean error of .024 to .029 and a rank correlation of .94 to .99, with 94 to 97% of the true rates in
their 95% intervals; from 1,000 uniform probes .030 to .044, .91 to .99 and 90 to 97%. On one of them a logistic
regression on factors and items had .057, scikit-learn's Gaussian process on 1,200 of the probes .051 in ten times the
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats
from threadpoolctl import threadpool_limits

from stages.concepts import ConceptSpace
from stages.landscape.calibrate import DRAWS, Link, assess, blocks_of
from stages.landscape.intervals import LEVEL, SHARE, Rate, Resampler, wilson
from stages.landscape.kernel import Data, Features, Hyper, Posterior, choose_hyper, fit

MAX_CELLS = 30_000  # about 15 s with 200 items; larger grids are sampled
RANK, SEARCH_RANK, SEARCH_PROBES = 900, 300, 2000
CHUNK = 1024
RESAMPLES = 2000  # of the items of an enumerated grid
CERTAIN_WIDTH = 0.2


@dataclass(frozen=True)
class Landscape:
    """Failure rates over the grid, averaged over the items of the audit.

    Args:
        table: one row a cell: one column per concept (level index), `probes`, `failures`, `rate`, `low`, `high`,
            `certain` (interval no wider than 0.2). The interval is meant to hold, in 95% of the cells, the rate that
            asking the model about *these* items would show. It covers what the process does not know and chance; for
            other items see the test split. An enumerated landscape is exact for these items, and its interval is for
            other items like them.
        draws: (draws, cells) float32 rates that could also be true, errors of neighbouring cells going together.
        exact: every (item, cell) pair was asked; nothing is estimated.
        sampled: the grid is too large, the cells are a seeded sample of it.
        hyper, link: what the estimate was made with; pass both on to estimate another landscape alike.
        diagnostics: how well held-out uniform probes are predicted; see `assess`.
        answers: (items, cells) share of repeats that failed, of an enumerated landscape; it needs no draws.
    """

    table: pd.DataFrame
    draws: np.ndarray
    exact: bool
    sampled: bool
    hyper: Hyper | None
    link: Link | None
    diagnostics: dict[str, object]
    answers: np.ndarray | None = None

    def cells(self, space: ConceptSpace) -> np.ndarray:
        """The cells of the rows, (cells, concepts) level indices."""
        return self.table[space.names].to_numpy(dtype=np.int64, copy=True)  # pandas hands out read-only views

    @property
    def rates(self) -> np.ndarray:
        """Estimated failure rate of each row."""
        return self.table["rate"].to_numpy(dtype=float)

    def mean_rate(self, inside: np.ndarray | None = None) -> Rate:
        """Failure rate over some of the cells (mask), or over all; `n` counts cells."""
        rows = np.ones(len(self.table), dtype=bool) if inside is None else inside
        if self.answers is not None:
            by_item = self.answers[:, rows].mean(axis=1)
            return self._resampler.mean(by_item, np.ones(len(by_item)), SHARE)._replace(n=int(rows.sum()))
        means = self.draws[:, rows].mean(axis=1)
        value = float(self.rates[rows].mean())
        spread = stats.norm.ppf((1 + LEVEL) / 2) * float(means.std(ddof=1))
        return Rate(value, max(0.0, value - spread), min(1.0, value + spread), int(rows.sum()))

    @cached_property
    def _resampler(self) -> Resampler:
        assert self.answers is not None
        return Resampler(np.arange(len(self.answers)), RESAMPLES, 0)


def as_data(probes: pd.DataFrame, item_ids: Sequence[str], space: ConceptSpace, threshold: float) -> Data:
    """Probes as arrays, with items numbered as in `item_ids`."""
    items = pd.Index(item_ids).get_indexer(pd.Index(probes["item"]))
    cells = probes[space.names].to_numpy(dtype=np.int64)
    margin = probes["discrepancy"].to_numpy(dtype=float) - threshold
    return Data(items, cells, margin, probes["failed"].to_numpy(dtype=bool))


def estimate(
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    *,
    threshold: float,
    seed: int,
    like: Landscape | None = None,
    spread: bool = True,
) -> Landscape:
    """Estimate the landscape from the probes of agent and control.

    Args:
        probes: as in probes.parquet; `role` control marks the uniformly drawn ones, on which all is calibrated.
        item_ids: the items rates are averaged over.
        embeddings: (items, d), in the order of `item_ids`.
        space: the grid.
        threshold: discrepancies above it are failures.
        seed: of the posterior draws and, on large grids, of the sample of cells.
        like: take hyperparameters and calibration from this landscape instead of choosing them.
        spread: False leaves intervals and draws out where rates have to be estimated; five times as fast.
    """
    # A second thread spins more than it computes here (2 CPU-seconds against 10, measured), and sums of a fixed number
    # of threads are the same everywhere.
    with threadpool_limits(1):
        return _estimate(probes, item_ids, embeddings, space, threshold, seed, like, spread)


def _estimate(
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    embeddings: np.ndarray,
    space: ConceptSpace,
    threshold: float,
    seed: int,
    like: Landscape | None,
    spread: bool,
) -> Landscape:
    probes = _unique(probes, space)
    data = as_data(probes, item_ids, space, threshold)
    rng = np.random.default_rng(seed)
    sampled = space.n_cells > MAX_CELLS
    numbers = np.sort(rng.choice(space.n_cells, MAX_CELLS, replace=False)) if sampled else np.arange(space.n_cells)
    cells = space.cells(numbers)
    seen = _Seen.of(data, space, numbers, len(item_ids))
    if seen.complete:
        return _exact(cells, space, seen)
    if like is not None and like.hyper is not None and like.link is not None:
        hyper, link, diagnostics = like.hyper, like.link, like.diagnostics
    else:
        some = data.take(np.sort(rng.choice(len(data), min(len(data), SEARCH_PROBES), replace=False)))
        hyper = choose_hyper(space, embeddings, some, rank=SEARCH_RANK)
        features = Features(space, embeddings, hyper, RANK)
        link, diagnostics = assess(features, data, (probes["role"] == "control").to_numpy(), space, hyper.noise, seed)
        diagnostics |= {"hyperparameters": asdict(hyper), "calibration": asdict(link)}
    posterior = fit(Features(space, embeddings, hyper, RANK), data, hyper.noise)
    rate, chance, draws = _rates(posterior, link, cells, seen, rng, DRAWS if spread else 0)
    if not spread:
        unknown = np.full(len(cells), np.nan)
        return Landscape(_table(cells, space, seen, rate, unknown, unknown), draws, False, sampled, hyper, link, {})
    misfit = link.misfit * rate * (1 - rate)
    low, high = _beta_interval(rate, draws.var(axis=0, ddof=1) + misfit + chance)
    step = 0.5 / len(item_ids)  # the true rate is a share of so many items: a continuity correction
    low, high = np.maximum(0.0, low - step), np.minimum(1.0, high + step)
    blocks = blocks_of(cells)
    shared = rng.standard_normal((DRAWS, blocks.max() + 1))[:, blocks] * np.sqrt(misfit)
    alone = rng.standard_normal(draws.shape) * np.sqrt(chance)
    draws = np.clip(rate + draws - draws.mean(axis=0) + shared + alone, 0, 1).astype(np.float32)
    table = _table(cells, space, seen, rate, low, high)
    return Landscape(table, draws, False, sampled, hyper, link, diagnostics)


def _unique(probes: pd.DataFrame, space: ConceptSpace) -> pd.DataFrame:
    """Each probe once, as the control's where both asked it.

    What makes the control's probes uniform is how they were drawn. Without those that the agent asked too, most of
    them failures, they would not be.
    """
    control_first = np.argsort((probes["role"] != "control").to_numpy(), kind="stable")
    again = probes.iloc[control_first].duplicated(["item", *space.names, "repeat"]).to_numpy()
    return probes.iloc[np.sort(control_first[~again])]


@dataclass(frozen=True)
class _Seen:
    """What was asked of each cell: answered (item, cell) pairs, with repeats averaged into one outcome."""

    items: np.ndarray  # (pairs,) item number
    rows: np.ndarray  # (pairs,) row of the landscape
    cells: np.ndarray  # (pairs, concepts)
    outcome: np.ndarray  # (pairs,) share of repeats that failed
    probes: np.ndarray  # (cells,)
    failures: np.ndarray  # (cells,)
    n_items: int

    @classmethod
    def of(cls, data: Data, space: ConceptSpace, numbers: np.ndarray, n_items: int) -> _Seen:
        flat = space.flat(data.cells)
        row = np.searchsorted(numbers, flat)
        row = np.where(row < len(numbers), row, 0)
        known = numbers[row] == flat  # on a sampled grid most probes lie elsewhere
        row, items, failed, cells = row[known], data.items[known], data.failed[known], data.cells[known]
        pair, first, inverse = np.unique(row * n_items + items, return_index=True, return_inverse=True)
        outcome = np.bincount(inverse, weights=failed, minlength=len(pair)) / np.bincount(inverse, minlength=len(pair))
        count = np.bincount(row, minlength=len(numbers))
        failures = np.bincount(row, weights=failed, minlength=len(numbers)).astype(np.int64)
        return cls(items[first], row[first], cells[first], outcome, count, failures, n_items)

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.probes) * self.n_items


def _rates(
    posterior: Posterior, link: Link, cells: np.ndarray, seen: _Seen, rng: np.random.Generator, n_draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rate of each cell over the items, the variance chance adds to it, and draws of it (draws, cells).

    Where a pair was asked, its answer takes the place of the prediction: with ever more probes the estimate becomes
    the enumeration.
    """
    weights = posterior.draw(n_draws, rng)
    rate, chance = np.empty(len(cells)), np.empty(len(cells))
    draws = np.empty((n_draws, len(cells)), dtype=np.float32)
    order = np.argsort(seen.rows, kind="stable")
    bounds = np.searchsorted(seen.rows[order], np.arange(0, len(cells) + CHUNK, CHUNK))
    for k, start in enumerate(range(0, len(cells), CHUNK)):
        chunk = slice(start, start + CHUNK)
        asked = order[bounds[k] : bounds[k + 1]]
        at = (seen.items[asked], seen.rows[asked] - start)
        features = posterior.features.of_cells(cells[chunk])

        def probability(w: np.ndarray, features: np.ndarray = features) -> np.ndarray:
            return link.probability(posterior.offset + posterior.features.over_items(w, features), posterior.noise)

        p = probability(posterior.weights)
        p[at] = seen.outcome[asked]
        rate[chunk] = p.mean(axis=0)
        unknown = p * (1 - p)
        unknown[at] = 0.0
        chance[chunk] = unknown.sum(axis=0) / seen.n_items**2
        for d, w in enumerate(weights):
            p = probability(w)
            p[at] = seen.outcome[asked]
            draws[d, chunk] = p.mean(axis=0)
    return rate, chance, draws


def _exact(cells: np.ndarray, space: ConceptSpace, seen: _Seen) -> Landscape:
    """The landscape of an enumerated grid: nothing to estimate, the intervals are for other items like these."""
    n = seen.n_items
    rate = np.bincount(seen.rows, weights=seen.outcome, minlength=len(cells)) / n
    bounds = np.array([wilson(round(r * n), n)[1:3] for r in np.unique(rate)])
    low, high = bounds[np.unique(rate, return_inverse=True)[1]].T
    answers = np.zeros((n, len(cells)))
    answers[seen.items, seen.rows] = seen.outcome
    table, draws = _table(cells, space, seen, rate, low, high), np.empty((0, len(cells)), dtype=np.float32)
    return Landscape(table, draws, True, False, None, None, {"held_out_probes": 0}, answers)


def _beta_interval(mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Central 95% interval of beta distributions with these moments: it stays within [0, 1]."""
    mean = np.clip(mean, 1e-4, 1 - 1e-4)
    variance = np.clip(variance, 1e-9, 0.98 * mean * (1 - mean))
    size = mean * (1 - mean) / variance - 1
    tail = (1 - LEVEL) / 2
    return stats.beta.ppf(tail, mean * size, (1 - mean) * size), stats.beta.ppf(
        1 - tail, mean * size, (1 - mean) * size
    )


def _table(
    cells: np.ndarray, space: ConceptSpace, seen: _Seen, rate: np.ndarray, low: np.ndarray, high: np.ndarray
) -> pd.DataFrame:
    table = pd.DataFrame(cells, columns=space.names)
    table["probes"], table["failures"] = seen.probes, seen.failures
    table["rate"], table["low"], table["high"] = rate, np.minimum(low, rate), np.maximum(high, rate)
    table["certain"] = table["high"] - table["low"] <= CERTAIN_WIDTH
    return table
