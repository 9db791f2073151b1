"""Learning from scores: which map from the automatic discrepancy predicts them best on items it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from stages.landscape.intervals import Rate, Resampler
from stages.ratings.apply import BEST, WORST, Target, badness_of
from stages.ratings.evidence import Scored

MIN_RATINGS, MIN_ITEMS = 10, 5
FOLDS = 10
RESAMPLES = 2000

Kind = Literal["constant", "linear", "isotonic"]
Knots = tuple[np.ndarray, np.ndarray]  # discrepancies, badness
Learn = Callable[[np.ndarray, np.ndarray], Knots]


@dataclass(frozen=True)
class Fit:
    """What the scores teach.

    Args:
        kind: of the map with the lowest error; the simpler one where two are equal.
        x, y: its knots, learnt from all scores.
        errors: kind -> mean absolute error in rating points on items it had not seen, `n` scores.
        gain: the error of the constant less that of the map.
    """

    kind: Kind
    x: list[float]
    y: list[float]
    errors: dict[Kind, Rate]
    gain: Rate

    @property
    def teaches(self) -> bool:
        """Whether the map predicts scores better than a constant does, beyond chance."""
        return self.kind != "constant" and self.gain.low > 0


def too_few(scored: Sequence[Scored]) -> str:
    """Why nothing can be learnt from so few scores; "" if something can."""
    items = len({s.item for s in scored})
    if len(scored) >= MIN_RATINGS and items >= MIN_ITEMS:
        return ""
    return f"expected at least {MIN_RATINGS} ratings of at least {MIN_ITEMS} items, found {len(scored)} of {items}"


def fit(scored: Sequence[Scored], target: Target) -> Fit:
    """Choose among maps by cross-validation over items, and learn the chosen one from all scores.

    Scores of one item are never on both sides, and intervals are over resampled items.

    Args:
        scored: scores of at least two items.
        target: what was scored.
    """
    scored = sorted(scored, key=lambda s: (s.item, s.discrepancy, s.reviewer, s.score))  # whatever order files are in
    x = np.array([s.discrepancy for s in scored])
    y = badness_of(np.array([s.score for s in scored], dtype=float), target)
    items = np.array([s.item for s in scored])
    missed = {kind: np.abs(_predicted(learn, x, y, items) - y) for kind, learn in _KINDS.items()}
    kind = min(missed, key=lambda kind: (round(float(missed[kind].mean()), 12), list(_KINDS).index(kind)))
    resampler, weights = Resampler(items, RESAMPLES, seed=0), np.ones(len(x))

    def points(values: np.ndarray) -> Rate:
        values = (BEST - WORST) * values
        # No item not seen is taken to be further off than any that was: see `stages.landscape.compare`.
        return resampler.mean(values, weights, (float(values.min()), float(values.max())))

    knots = _KINDS[kind](x, y)
    return Fit(
        kind,
        knots[0].tolist(),
        knots[1].tolist(),
        {name: points(values) for name, values in missed.items()},
        points(missed["constant"] - missed[kind]),
    )


def _predicted(learn: Learn, x: np.ndarray, y: np.ndarray, items: np.ndarray) -> np.ndarray:
    """What a map says of each score when it has not seen the item."""
    predicted = np.empty(len(y))
    for seen, held in GroupKFold(min(FOLDS, len(np.unique(items)))).split(x, y, items):
        predicted[held] = np.interp(x[held], *learn(x[seen], y[seen]))
    return predicted


def _constant(x: np.ndarray, y: np.ndarray) -> Knots:
    """The median: no constant has a lower mean absolute error."""
    return np.array([x.min(), x.max()]), np.full(2, np.median(y))


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


_KINDS: dict[Kind, Learn] = {"constant": _constant, "linear": _linear, "isotonic": _isotonic}
