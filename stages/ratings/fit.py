"""Learning from scores: which map from the automatic discrepancy predicts them best on items it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from stages.intervals import Rate, Resampler
from stages.ratings.apply import BEST, WORST, Target, badness_of
from stages.ratings.evidence import Scored

MIN_RATINGS, MIN_ITEMS = 20, 10
FOLDS = 10
RESAMPLES = 2000

Kind = Literal["constant", "linear", "isotonic"]
Knots = tuple[np.ndarray, np.ndarray]  # discrepancies, badness
Learn = Callable[[np.ndarray, np.ndarray], Knots]


class Rated(NamedTuple):
    """Scores as numbers: (n,) each."""

    x: np.ndarray  # automatic discrepancy
    y: np.ndarray  # badness
    items: np.ndarray

    def of(self, which: np.ndarray) -> Rated:
        """Some of them."""
        return Rated(self.x[which], self.y[which], self.items[which])


@dataclass(frozen=True)
class Fit:
    """What the scores teach.

    Args:
        kind: of the map with the lowest error; the simpler one where two are equal.
        x, y: its knots, learnt from all scores.
        error: of the map, the choice of its kind included: mean absolute error in rating points on items that neither
            the map nor the choice has seen, `n` scores.
        constant: the same of always saying one thing, the mean or the median, whichever is nearer.
        gain: the error of the constant less that of the map.
    """

    kind: Kind
    x: list[float]
    y: list[float]
    error: Rate
    constant: Rate
    gain: Rate

    @property
    def teaches(self) -> bool:
        """Whether the map says more than one thing, and predicts scores better than a constant does, beyond chance."""
        return self.y[-1] > self.y[0] and self.gain.low > 0


def too_few(scored: Sequence[Scored]) -> str:
    """Why nothing can be learnt from so few scores; "" if something can."""
    items, places = len({s.item for s in scored}), {s.discrepancy for s in scored}
    if len(scored) < MIN_RATINGS or items < MIN_ITEMS:
        return f"expected at least {MIN_RATINGS} ratings of at least {MIN_ITEMS} items, found {len(scored)} of {items}"
    if len(places) == 1:
        return f"all examples rated have the same automatic discrepancy, {places.pop():g}: nothing follows for others"
    return ""


def fit(scored: Sequence[Scored], target: Target) -> Fit:
    """Choose among maps by cross-validation over items, and learn the chosen one from all scores.

    Scores of one item are never on both sides, and intervals are over resampled items.

    Args:
        scored: scores of at least three items.
        target: what was scored.
    """
    scored = sorted(scored, key=lambda s: (s.item, s.discrepancy, s.reviewer, s.score))  # whatever order files are in
    rated = Rated(
        np.array([s.discrepancy for s in scored]),
        badness_of(np.array([s.score for s in scored], dtype=float), target),
        np.array([s.item for s in scored]),
    )
    kind, x, y = _best(rated)
    # An error by which the map was chosen is too low: each group of items is predicted by what the others choose.
    missed = np.abs(_predicted(lambda seen: _best(seen)[1:], rated) - rated.y)
    # Of two-peaked scores the median of all but a few lies on the peak that those few are not on, and looks far worse
    # than it is; of skewed ones the mean is further off.
    constant = min((_missed(learn, rated) for learn in (_median, _mean)), key=np.mean)
    resampler, weights = Resampler(rated.items, RESAMPLES, seed=0), np.ones(len(scored))

    def points(values: np.ndarray) -> Rate:
        values = (BEST - WORST) * values
        # No item not seen is taken to be further off than any that was: see `stages.landscape.compare`.
        return resampler.mean(values, weights, (float(values.min()), float(values.max())))

    return Fit(kind, x.tolist(), y.tolist(), points(missed), points(constant), points(constant - missed))


def _best(rated: Rated) -> tuple[Kind, np.ndarray, np.ndarray]:
    """The kind of map with the lowest cross-validated error, and its knots; the simpler one where two are equal."""
    errors = {kind: round(float(_missed(learn, rated).mean()), 12) for kind, learn in _KINDS.items()}
    kind = min(errors, key=lambda kind: errors[kind])  # the first of equals
    return kind, *_KINDS[kind](rated.x, rated.y)


def _missed(learn: Learn, rated: Rated) -> np.ndarray:
    """How far a map is from each score when it has not seen the item."""
    return np.abs(_predicted(lambda seen: learn(seen.x, seen.y), rated) - rated.y)


def _predicted(learn: Callable[[Rated], Knots], rated: Rated) -> np.ndarray:
    """What is learnt from all other items says of each score."""
    predicted = np.empty(len(rated.y))
    for seen, held in GroupKFold(min(FOLDS, len(np.unique(rated.items)))).split(rated.x, rated.y, rated.items):
        predicted[held] = np.interp(rated.x[held], *learn(rated.of(seen)))
    return predicted


def _median(x: np.ndarray, y: np.ndarray) -> Knots:
    """Of all constants the one with the lowest mean absolute error on what it was learnt from."""
    return np.array([x.min(), x.max()]), np.full(2, np.median(y))


def _mean(x: np.ndarray, y: np.ndarray) -> Knots:
    return np.array([x.min(), x.max()]), np.full(2, y.mean())


def _linear(x: np.ndarray, y: np.ndarray) -> Knots:
    """Least squares over what was rated, never falling and within the scale; flat beyond, where nobody looked."""
    low, high = float(x.min()), float(x.max())
    slope = 0.0 if np.ptp(x) == 0 else float(np.cov(x, y, bias=True)[0, 1] / x.var())
    if slope <= 0:
        return np.array([low, high]), np.full(2, y.mean())
    start = float(y.mean() - slope * x.mean())
    crossings = [(bound - start) / slope for bound in (0.0, 1.0)]
    knots = np.array(sorted({low, high, *(c for c in crossings if low < c < high)}))
    return knots, np.clip(start + slope * knots, 0.0, 1.0)


def _isotonic(x: np.ndarray, y: np.ndarray) -> Knots:
    """Least squares among all that never fall."""
    learnt = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y)
    return learnt.X_thresholds_, learnt.y_thresholds_


_KINDS: dict[Kind, Learn] = {"constant": _median, "linear": _linear, "isotonic": _isotonic}
