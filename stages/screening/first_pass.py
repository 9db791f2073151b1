"""The screening procedure: choose probes, and derive effects and proposed levels from their answers.

1. *Alone*: probe the same items unchanged and with one concept at its strongest level, all others at their base.
2. *Combined*: probe a Latin hypercube (McKay, Beckman, Conover 1979) over items and all concepts.
3. *Ranges*: if too many or too few of those fail, narrow or widen the levels by the surface fitted so far, try them on
   a few uniform probes, and fit the surface again.
4. *Removed*: remove concepts without apparent effect from combined probes, one at a time and then all at once.
5. *Check*: probe the proposed grid uniformly, without the dropped concepts. No choice depends on these probes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from math import ceil
from typing import Any

import numpy as np
from scipy.stats import qmc
from threadpoolctl import threadpool_limits

from stages.concepts import Concept, Level
from stages.errors import UsageError
from stages.intervals import LEVEL, NO_RATE, Rate, Resampler, wilson
from stages.ledger import Ledger
from stages.screening.probes import Levels, Probes
from stages.screening.ranges import Axis
from stages.screening.record import (
    Change,
    ConceptScreening,
    Screening,
    ScreenSettings,
    Verdict,
    off_zero,
    points,
    within,
)
from stages.screening.surface import Surface, fit_surface
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

ALONE, COMPANY = "alone", "combined"
_ALONE, _COMPANY, _TRIAL, _CHECK = 0.2, 0.3, 0.1, 0.2  # shares of the budget; the check gets all that is left
_TRIALS = 2
_FEWEST_ITEMS = 8
_POINTS = 2048  # points of a grid at which its failure rate is predicted
_NARROWEST, _STEP = 0.1, 2.0  # smallest factor of a range, and largest factor of one widening
_RESAMPLES, _REFITS = 1000, 200  # resamples of items, for means and for the surface
_CHANCE = 0.01  # a share of the variance that any concept may get because the surface cannot follow sharp bends
_TOO_FEW = "too few probes"
_STRENGTHS = np.linspace(0, 1, 41)


def screen(
    load: Callable[[Levels], LoadedTask],
    levels: Levels,
    settings: ScreenSettings,
    *,
    seed: int,
    ledger: Callable[[Levels], Ledger] = lambda _levels: Ledger(),
    compute: Compute | None = None,
    tell: Callable[[int, str], None] = lambda _spent, _note: None,
    droppable: bool = True,
    only: Collection[str] | None = None,
) -> Screening:
    """Screen the concepts of a task on its discover items.

    Args:
        load: loads the task with other levels of its concepts.
        levels: the levels in params.yaml.
        settings: budget and bounds.
        seed: seed of all random choices.
        ledger: opens the ledger of a grid; if it is on disk, a screening can be resumed.
        compute: threads and batch size of the model.
        tell: called with (unique probes spent, their purpose).
        droppable: whether the task can do without some of its concepts.
        only: names of the concepts to judge and to re-range; the others stay in the grid unchanged. None: all.

    Raises:
        UsageError: if there are no items to screen on, or too few probes to measure every concept.
    """
    probes = Probes(load, levels, settings.probes, ledger, compute, tell)
    return _Screen(probes, settings, seed, droppable, only).run()


def fewest_probes(concepts: Sequence[Concept]) -> int:
    """Return the minimum number of unique probes that measures each of these concepts alone on enough items."""
    return _fewest(1 + sum(len(Axis(concept, None).ends) for concept in concepts))


def _fewest(cells: int) -> int:
    return ceil(_FEWEST_ITEMS * cells / _ALONE)


class _Screen:
    """One screening; methods are roughly in the order of the steps in the module docstring."""

    def __init__(
        self, probes: Probes, settings: ScreenSettings, seed: int, droppable: bool, only: Collection[str] | None
    ) -> None:
        self.probes, self.settings, self.seed, self.droppable = probes, settings, seed, droppable
        self.axes = probes.axes
        self.names = [axis.concept.name for axis in self.axes]
        self.judged = [j for j, name in enumerate(self.names) if only is None or name in only]
        # The (concept, level) pairs probed alone, besides the cell with all concepts at their base.
        self.alone = [(j, end) for j in self.judged for end in self.axes[j].ends]
        self.rng = np.random.default_rng(seed)
        self.own = self.grid([1.0] * len(self.axes))
        self.points = qmc.LatinHypercube(d=len(self.axes), seed=seed).random(_POINTS)

    def grid(self, factors: Sequence[float]) -> dict[str, tuple[Level, ...]]:
        """Return the scaled levels of all concepts."""
        return {axis.concept.name: axis.scaled(f) for axis, f in zip(self.axes, factors, strict=True)}

    def run(self) -> Screening:
        clean = self.ask_alone()
        now = self.ask_company()
        factors = self.ranges(now)
        grid, surface = self.grid(factors), self.fit(factors, _REFITS)
        spread = float(np.sqrt(surface.variance))
        shares = surface.shares()
        seen = [self.judge(j, shares[j], spread, now) for j in self.judged]
        together = self.take_out(seen, grid)
        dropped = {concept.name for concept in seen if concept.verdict == "no larger effect"}
        if not self.droppable or len(dropped) == len(seen):  # an audit needs something to search
            dropped = set()
        kept = {name: levels for name, levels in grid.items() if name not in dropped}
        proposed = None if kept == self.own else self.probes.uniform(kept, self.probes.left, self.rng, "check")
        concepts = [
            concept.model_copy(
                update=self.proposal(self.axes[j], kept.get(concept.name, ()), factors[j], (proposed or now).value)
            )
            for j, concept in zip(self.judged, seen, strict=True)
        ]
        return Screening(
            settings=self.settings,
            probes=self.probes.spent,
            items=self.probes.table["item"].nunique(),
            clean=clean,
            now=now,
            proposed=proposed,
            together=together,
            concepts=concepts,
        )

    def ask_alone(self) -> Rate:
        """Probe some items at the base and with each concept at its ends; return the failure rate at the base."""
        base = np.array([axis.base for axis in self.axes])
        cells = [base]
        for j, end in self.alone:
            cells.append(base.copy())
            cells[-1][j] = end
        n_items = min(len(self.probes.item_ids), int(_ALONE * self.settings.probes) // len(cells))
        if n_items < min(_FEWEST_ITEMS, len(self.probes.item_ids)):
            raise UsageError(
                f"{self.settings.probes} probes are too few for {len(self.judged)} concepts with these levels:"
                f" at least {_fewest(len(cells))} (--probes)"
            )
        items = np.sort(self.rng.choice(len(self.probes.item_ids), n_items, replace=False))
        rows = self.probes.ask(self.own, np.repeat(items, len(cells)), np.tile(cells, (n_items, 1)), ALONE)
        shape = (n_items, len(cells))
        self.alone_margin = rows["margin"].to_numpy().reshape(shape)
        self.alone_failed = rows["failed"].to_numpy(dtype=float).reshape(shape)
        return wilson(int(self.alone_failed[:, 0].sum()), n_items)

    def ask_company(self) -> Rate:
        """Probe a space-filling design over items and concepts, and return its failure rate."""
        items, cells = self.design(self.own)
        rows = self.probes.ask(self.own, items, cells, COMPANY)
        first = rows.drop_duplicates(["item", *self.names])  # small grids repeat themselves
        return wilson(int(first["failed"].sum()), len(first))

    def design(self, grid: Levels) -> tuple[np.ndarray, np.ndarray]:
        """Spread probes over items and the cells of a grid, in random order: (n,), (n, concepts)."""
        n = int(_COMPANY * self.settings.probes)
        sizes = np.array([len(self.probes.item_ids), *(len(levels) for levels in grid.values())])
        points = qmc.LatinHypercube(d=len(sizes), seed=self.seed + 1).random(n)
        drawn = (points * sizes).astype(np.int64)
        return drawn[:, 0], drawn[:, 1:]

    def take_out(self, seen: Sequence[ConceptScreening], grid: Levels) -> Rate | None:
        """Test concepts without apparent effect again, by the same probes with and without them.

        The surface has only pairs of concepts, and cannot follow sharp bends. These probes measure directly whether it
        matters to drop a concept and, since one may stand in for another, whether it matters to drop all of them.

        Returns:
            The change if all were removed at once; None if there are fewer than two.
        """
        found = dict(zip(self.judged, seen, strict=True))

        def idle() -> list[int]:
            return [j for j, concept in found.items() if concept.verdict == "no larger effect"]

        def change_without(js: Sequence[int], tests: int) -> Rate:
            """Return the change and set the verdict on these concepts, with an equal share of the budget per test."""
            left = self.probes.left - int(_CHECK * self.settings.probes)
            # On the grid of params.yaml the probes with these concepts are known already, and cost nothing.
            change = self.without(js, grid, left // (tests * (1 if grid == self.own else 2)))
            told = points(change, self.settings.without)
            for j in js:
                if within(change, self.settings.without) and not off_zero(change):
                    found[j].why = f"none over {self.settings.without * 100:g} points"
                elif off_zero(change) and len(js) == 1:
                    found[j].verdict, found[j].why = "effect", f"removed, {told} fail"
                else:
                    found[j].verdict = "not known"
                    found[j].why = _TOO_FEW if len(js) == 1 else "one may stand in for another"
            return change

        first = idle()
        for k, j in enumerate(first):
            change = change_without([j], len(first) - k + (len(first) > 1))
            found[j].without = change if change.n > 0 else None
        still = idle()
        return change_without(still, 1) if len(still) > 1 else None

    def without(self, js: Sequence[int], grid: Levels, n: int) -> Rate:
        """Return how the failure rate of n combined probes changes with concepts at their base; interval over items."""
        items, cells = self.design(grid)
        bare = cells.copy()
        for j in js:
            bare[:, j] = np.abs(self.axes[j].strengths(list(grid.values())[j])).argmin()
        acts = np.flatnonzero((cells != bare).any(axis=1))[: max(n, 0)]
        if len(acts) == 0:
            return NO_RATE
        asked = [self.probes.ask(grid, items[acts], c[acts], "removed") for c in (cells, bare)]
        before, after = (rows["failed"].to_numpy(dtype=float) for rows in asked)
        return Resampler(items[acts], _RESAMPLES, self.seed).mean(after - before, np.ones(len(acts)))

    def fit(self, factors: Sequence[float], resamples: int = 0) -> Surface:
        """Fit the surface to all probes so far, for the grid of these factors."""
        table = self.probes.table
        with threadpool_limits(1):  # so that sums do not depend on the number of threads
            return fit_surface(
                table[self.names].to_numpy(dtype=float),
                table["item"].to_numpy(),
                table["margin"].to_numpy(),
                [axis.strengths(axis.scaled(f)) for axis, f in zip(self.axes, factors, strict=True)],
                [axis.numeric for axis in self.axes],
                seed=self.seed,
                resamples=resamples,
            )

    def ranges(self, now: Rate) -> list[float]:
        """Narrow or widen the ranges until the failure rate is near the target, or all trials are spent.

        Returns:
            For each concept the factor of its strengths.
        """
        factors, rate = [1.0] * len(self.axes), now.value
        if self.settings.holds(rate):
            return factors
        surface = self.fit(factors)
        for _ in range(_TRIALS):
            drawn = self.proposed_factors(surface, factors, rate)
            if self.grid(drawn) == self.grid(factors):  # the limit is reached
                return factors
            factors = drawn
            n = int(_TRIAL * self.settings.probes)
            tried = self.probes.uniform(self.grid(factors), n, self.rng, "trial")
            surface = self.fit(factors)
            # A trial is small, and the surface is fitted to all probes so far: each counts half.
            rate = (tried.value + self.predicted(surface, factors)) / 2
            if self.settings.is_near(rate):
                return factors
        return self.proposed_factors(surface, factors, rate)

    def proposed_factors(self, surface: Surface, factors: Sequence[float], rate: float) -> list[float]:
        """Return factors at which the surface, corrected for its error at the present ones, predicts the target rate.

        If the grid is too harsh, every concept is narrowed until its harm alone is within a common bound, so the
        harshest are narrowed first. If it is too mild, all are widened by the same factor, which keeps the user's
        proportions; one that reaches its bound stays there. Categories cannot be narrowed. If they alone are too harsh,
        weaker levels of the others cannot compensate, so those are narrowed as if all categories were at their base.
        """
        aim = self.settings.aim + self.predicted(surface, factors) - rate
        if self.predicted(surface, [1.0] * len(self.axes)) > aim:
            harms = [self._harm(surface, j) for j in range(len(self.axes))]
            worst = max(float(harm.max()) for harm in harms)
            path = partial(self._narrowed, harms)
            reachable = self.predicted(surface, path(0.0)) <= aim
            return self._bisect(surface, path, 0.0, worst, aim, categories=reachable)
        widest = min(self.settings.widest, _STEP * max(factors))
        return self._bisect(surface, self._widened, 1.0, widest, aim)

    def _bisect(
        self,
        surface: Surface,
        factors_at: Callable[[float], list[float]],
        low: float,
        high: float,
        aim: float,
        categories: bool = True,
    ) -> list[float]:
        """Return the factors nearest to the target on a path along which the failure rate rises."""

        def miss(x: float) -> float:
            return self.predicted(surface, factors_at(x), categories) - aim

        if miss(high) <= 0:
            return factors_at(high)
        for _ in range(20):
            middle = (low + high) / 2
            if miss(middle) > 0:
                high = middle
            else:
                low = middle
        return factors_at(min(low, high, key=lambda x: abs(miss(x))))  # with few levels the rate may jump in between

    def _harm(self, surface: Surface, j: int) -> np.ndarray:
        """Return the largest rise of the margin by concept j alone, up to each of `_STRENGTHS`: (strengths,)."""
        axis = self.axes[j]
        if not self._moves(j):
            return np.zeros(len(_STRENGTHS))
        rises = []
        for sign in np.unique(np.sign(axis.strengths(axis.concept.levels))):
            points = np.tile([float(a.strengths(a.concept.levels)[a.base]) for a in self.axes], (len(_STRENGTHS), 1))
            points[:, j] = sign * _STRENGTHS
            margin = surface.margin(points)
            rises.append(margin - margin[0])
        return np.maximum.accumulate(np.max(rises, axis=0))

    def _narrowed(self, harms: Sequence[np.ndarray], bound: float) -> list[float]:
        far = [_STRENGTHS[harm <= bound].max() for harm in harms]
        return [max(_NARROWEST, float(f)) if self._moves(j) else 1.0 for j, f in enumerate(far)]

    def _widened(self, factor: float) -> list[float]:
        return [min(factor, axis.widest) if self._moves(j) else 1.0 for j, axis in enumerate(self.axes)]

    def _moves(self, j: int) -> bool:
        """Whether concept j may be narrowed or widened."""
        return j in self.judged and self.axes[j].numeric

    def predicted(self, surface: Surface, factors: Sequence[float], categories: bool = True) -> float:
        """Predict the failure rate over a grid by the surface; if not `categories`, with categories at their base."""
        columns = []
        for j, (axis, factor) in enumerate(zip(self.axes, factors, strict=True)):
            strengths = axis.strengths(axis.scaled(factor))
            if not categories and not axis.numeric:
                strengths = strengths[[axis.base]]
            columns.append(strengths[(self.points[:, j] * len(strengths)).astype(np.int64)])
        return float(surface.rate(np.stack(columns, axis=1)).mean())

    def judge(self, j: int, share: Rate, spread: float, now: Rate) -> ConceptScreening:
        """Judge the effect of concept j, alone and combined.

        If all of the user's levels are too mild to cause failures, a concept without effect may only be milder than
        the others, so its effect is not known.
        """
        axis, settings = self.axes[j], self.settings
        columns = [n for n, (k, _) in enumerate(self.alone, 1) if k == j]  # of the probes of concepts alone
        changes = [self.alone_margin[:, column] - self.alone_margin[:, 0] for column in columns]
        fails = [self.alone_failed[:, column] - self.alone_failed[:, 0] for column in columns]
        # All concepts use the same bootstrap draws, as they were probed on the same items.
        draws = np.random.default_rng(self.seed).integers(len(changes[0]), size=(_RESAMPLES, len(changes[0])))
        alone = [_bootstrap(change, draws) for change in changes]
        most = max(range(len(alone)), key=lambda i: (off_zero(alone[i]), abs(alone[i].value)))
        items = np.arange(len(fails[most]))
        bound = settings.effect * spread
        verdict: Verdict = "not known"
        why = _TOO_FEW
        if off_zero(alone[most]):
            verdict, why = "effect", f"alone, discrepancy {_signed(alone[most])}"
        elif share.low > _CHANCE:
            verdict, why = "effect", f"{share.value:.0%} of the variance ({share.low:.0%} to {share.high:.0%})"
        elif now.value < settings.lowest_rate:
            why = "too few probes fail at these levels"
        elif share.high < settings.share and all(within(change, bound) for change in alone):
            verdict, why = "no larger effect", ""
        return ConceptScreening(
            name=axis.concept.name,
            unit=axis.concept.unit,
            alone_at=axis.concept.label(axis.ends[most]),
            alone=alone[most],
            each={axis.concept.label(end): change for end, change in zip(axis.ends, alone, strict=True)},
            alone_fails=Resampler(items, _RESAMPLES, self.seed).mean(fails[most], np.ones(len(items))),
            share=share,
            verdict=verdict,
            why=why,
            levels=list(axis.concept.levels),
            proposed=list(axis.concept.levels),
            change="kept",
        )

    def proposal(self, axis: Axis, levels: Sequence[Level], factor: float, rate: float) -> dict[str, Any]:
        """Return the proposed levels of a concept, how they differ from the user's, and why they go no further."""
        change: Change = "kept"
        if not levels:
            change = "dropped"
        elif tuple(levels) != axis.concept.levels:
            change = "narrowed" if factor < 1 else "widened"
        mild = rate < self.settings.lowest_rate
        furthest = self.settings.widest if mild else _NARROWEST
        at_bound = bool(levels) and not self.settings.holds(rate) and tuple(levels) == axis.scaled(furthest)
        note = ""
        if at_bound and not axis.numeric:
            note = "has no strength, so it stays"
        elif at_bound and not mild:
            note = "no weaker levels are tried"
        elif at_bound and axis.bounds is None:
            note = "its bounds are not declared, so no stronger level is known"
        elif at_bound:
            ends = factor >= axis.widest
            note = "at the bound of its catalogue" if ends else f"{furthest:g} times as strong, no further is tried"
        return {"proposed": list(levels), "change": change, "at_bound": at_bound, "note": note}


def _signed(change: Rate) -> str:
    return f"{change.value:+.3g} ({change.low:+.3g} to {change.high:+.3g})"


def _bootstrap(values: np.ndarray, draws: np.ndarray) -> Rate:
    """Return the mean of one value per item (n,), with the percentile interval over draws of items (resamples, n)."""
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Rate(float(values.mean()), low, high, len(values))
