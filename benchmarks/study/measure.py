"""Measures of the study, always against the exact truth."""

import contextlib
import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.study.landscapes import KnownLandscape
from stages.explorers.policy import Policy
from stages.landscape.estimate import estimate_landscape
from stages.landscape.kinds import Rates
from stages.landscape.modes import find_regions
from stages.params import SummarizeConfig
from stages.tasks.contract import ProbeBatch

HIGH = 0.5  # failure rate from which an audit must not miss a cell
NAMED = 10  # number of failing probes only in this mode for it to count as found; fewer would not reveal a region
MODES = 4  # number of regions named per landscape
PICKS = 5  # number of cells a policy chooses for a held-out item
ENUMERABLE = 30_000  # cells; with more, coverage is not informative and landscapes are compared on a sample


@dataclass
class Truth:
    """The truth of a landscape, known only to the evaluation; computed once and cached."""

    task: KnownLandscape
    _rates: dict[bytes, np.ndarray] = field(default_factory=dict)

    def rates(self, cells: np.ndarray) -> np.ndarray:
        """Return true failure rates of cells (n, concepts) over the searched items: (n,)."""
        key = self.task.concepts.flat(cells).tobytes()
        if key not in self._rates:
            self._rates[key] = self.task.true_rates(self.task.items.ids("discover"), cells)
        return self._rates[key]


class Clock:
    """CPU seconds of an explorer itself, without those of the model under test."""

    def __init__(self, task: KnownLandscape) -> None:
        self.task, self._probing = task, 0.0
        self.seconds = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        probe = self.task.probe

        def timed(*args: Any, **kwargs: Any) -> ProbeBatch:
            start = time.process_time()
            try:
                return probe(*args, **kwargs)
            finally:
                self._probing += time.process_time() - start

        self.task.probe = timed  # type: ignore[method-assign]
        start = time.process_time()
        try:
            yield
        finally:
            self.task.probe = probe  # type: ignore[method-assign]
            self.seconds = time.process_time() - start - self._probing


def search_quality(truth: Truth, probes: pd.DataFrame) -> dict[str, float]:
    """Return failures, distinct failing cells, coverage of cells that fail often, share of planted modes found."""
    space = truth.task.concepts
    failing = probes[probes["failed"]][space.names].to_numpy(dtype=np.int64)
    numbers = {
        "failures": float(len(failing)),
        "failing_cells": float(len(np.unique(space.flat(failing)))),
        "coverage": np.nan,
        "modes_found": modes_found(truth.task, failing),
    }
    if space.n_cells <= ENUMERABLE:
        high = np.flatnonzero(truth.rates(space.cells()) >= HIGH)
        numbers["coverage"] = float(np.isin(high, space.flat(failing)).mean()) if len(high) else np.nan
    return numbers


def modes_found(task: KnownLandscape, failing: np.ndarray) -> float:
    """Return the share of the planted modes that alone contain at least `NAMED` of the failing cells (n, concepts)."""
    if not task.modes:
        return np.nan
    inside = np.stack([mode.contains(task.concepts, failing) for mode in task.modes])
    own = inside & (inside.sum(axis=0) == 1)
    return float((own.sum(axis=1) >= NAMED).mean())


def landscape_quality(truth: Truth, probes: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Compare the landscape estimated from these probes with the truth, over cells, and the regions it names."""
    task = truth.task
    ids = task.items.ids("discover")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the rank correlation of a constant landscape is NaN, and is reported as such
        found = estimate_landscape(probes, ids, task.embed(ids), task.concepts, threshold=task.threshold, seed=seed)
        rates = truth.rates(found.cells(task.concepts))
        rank = float(stats.spearmanr(found.rates, rates).statistic)
    low, high = (found.table[name].to_numpy(dtype=float) for name in ("low", "high"))
    limits = SummarizeConfig(modes=MODES, max_conditions=3, min_support=0.02)
    named = find_regions(Rates.of_cells(task.concepts, found.cells(task.concepts), found.rates), limits)
    return {
        "named": json.dumps([region.to_json() for region in named]),
        "mae": float(np.abs(found.rates - rates).mean()),
        "rank": rank,
        "interval_coverage": float(((low <= rates) & (rates <= high)).mean()),
        "bias": float(found.rates.mean() - rates.mean()),
        "constant_mae": float(np.abs(rates - rates.mean()).mean()),
    }


def unseen_quality(task: KnownLandscape, policy: Policy | None, seed: int) -> dict[str, float]:
    """Return how often cells the policy chooses for held-out items fail; the policy makes no queries."""
    if policy is None:
        return {"unseen_picks": np.nan, "unseen_drawn": np.nan}
    ids = task.items.ids("test")
    embeddings = task.embed(ids)
    picks = policy.propose(embeddings, PICKS)  # (items, PICKS, concepts)
    drawn = policy.sample(embeddings, PICKS, seed)
    return {"unseen_picks": _fail_rate(task, ids, picks), "unseen_drawn": _fail_rate(task, ids, drawn)}


def _fail_rate(task: KnownLandscape, ids: list[str], cells: np.ndarray) -> float:
    flat = cells.reshape(-1, cells.shape[-1])
    return float(task.probe(np.repeat(ids, cells.shape[1]).tolist(), flat).failed.mean())
