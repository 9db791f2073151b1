"""Collect people's scores of examples, and learn the map from the automatic discrepancy that best predicts them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import GroupKFold

from stages.core.intervals import Rate, Resampler
from stages.decisions import listed_keys, read_chain, valid_decisions
from stages.decisions.files import DecisionFile
from stages.params import Params
from stages.provenance import scale_of
from stages.ratings.apply import BEST, WORST, Target, badness_of

MIN_RATINGS, MIN_ITEMS = 20, 10
FOLDS = 10
RESAMPLES = 2000

Kind = Literal["constant", "linear", "isotonic"]
Knots = tuple[np.ndarray, np.ndarray]  # discrepancies, badness
Learn = Callable[[np.ndarray, np.ndarray], Knots]


@dataclass(frozen=True)
class ExampleScore:
    """One person's score of one example, 1 to 10, with its automatic discrepancy."""

    discrepancy: float
    score: int
    item: str
    reviewer: str


@dataclass(frozen=True)
class RatedScores:
    """All valid scores of one target.

    Args:
        decisions: the decisions that contain them.
        of_another_scale: number of scores left out because their discrepancies were measured differently.
    """

    scored: Sequence[ExampleScore]
    decisions: Sequence[DecisionFile]
    of_another_scale: int

    @property
    def reviewers(self) -> dict[str, int]:
        return dict(sorted(Counter(scored.reviewer for scored in self.scored).items()))


def gather(params: Params, audit: str, target: Target) -> RatedScores:
    """Collect the scores in an audit's decisions, including rejections but not revised decisions.

    Raises a UsageError if a decision cannot be read, or was changed.
    """
    scale, scored, used, others = scale_of(params.audit(audit)), [], [], 0
    for kept in valid_decisions(read_chain(audit), listed_keys(params, audit), audit):
        decision = kept.decision
        found = [
            ExampleScore(example.discrepancy, score, example.item, decision.reviewer)
            for example in decision.examples
            if (score := example.rating if target == "quality" else example.bias) is not None
        ]
        if decision.scale != scale:
            others += len(found)
        elif found:
            scored += found
            used.append(kept)
    return RatedScores(scored, used, others)


class Scores(NamedTuple):
    """Scores as numbers: (n,) each."""

    x: np.ndarray  # automatic discrepancy
    y: np.ndarray  # badness
    items: np.ndarray

    def of(self, which: np.ndarray) -> "Scores":
        return Scores(self.x[which], self.y[which], self.items[which])


@dataclass(frozen=True)
class Fit:
    """The map learnt from the scores.

    Args:
        kind: kind of the map with the lowest error; the simpler one of equals.
        x, y: its knots, learnt from all scores.
        error: mean absolute error in rating points of `n` scores, on items unseen by the map and the choice of kind.
        constant: the same for predicting a constant, the mean or the median, whichever is closer.
        gain: the constant's error minus that of the map.
    """

    kind: Kind
    x: list[float]
    y: list[float]
    error: Rate
    constant: Rate
    gain: Rate

    @property
    def teaches(self) -> bool:
        """Whether the map is not constant, and predicts scores better than a constant does, beyond chance."""
        return self.y[-1] > self.y[0] and self.gain.low > 0


def too_few_scores(scored: Sequence[ExampleScore]) -> str:
    """Explain why the scores are too few to learn from; "" if they suffice."""
    items, places = len({s.item for s in scored}), {s.discrepancy for s in scored}
    if len(scored) < MIN_RATINGS or items < MIN_ITEMS:
        return f"expected at least {MIN_RATINGS} ratings of at least {MIN_ITEMS} items, found {len(scored)} of {items}"
    if len(places) == 1:
        return f"all examples rated have the same automatic discrepancy, {places.pop():g}: nothing follows for others"
    return ""


def fit_ratings(scored: Sequence[ExampleScore], target: Target) -> Fit:
    """Choose a map by cross-validation over items, and learn it from all scores.

    Scores of one item are never on both sides, and intervals resample items.

    Args:
        scored: scores of at least three items.
    """
    scored = sorted(scored, key=lambda s: (s.item, s.discrepancy, s.reviewer, s.score))  # whatever the order of files
    rated = Scores(
        np.array([s.discrepancy for s in scored]),
        badness_of(np.array([s.score for s in scored], dtype=float), target),
        np.array([s.item for s in scored]),
    )
    kind, x, y = _best(rated)
    # The error by which the map was chosen is too low, so the choice from the other items predicts each group of items.
    missed = np.abs(_predicted(lambda seen: _best(seen)[1:], rated) - rated.y)
    # For two-peaked scores, a median without some scores may be on the peak they are not on, and so looks far worse
    # than it is; for skewed ones the mean is farther off.
    constant = min((_missed(learn, rated) for learn in (_median, _mean)), key=np.mean)
    resampler, weights = Resampler(rated.items, RESAMPLES, seed=0), np.ones(len(scored))

    def points(values: np.ndarray) -> Rate:
        values = (BEST - WORST) * values
        # Unseen items are assumed to be no farther off than the seen ones: see `stages.landscape.compare`.
        return resampler.mean(values, weights, (float(values.min()), float(values.max())))

    return Fit(kind, x.tolist(), y.tolist(), points(missed), points(constant), points(constant - missed))


def _best(rated: Scores) -> tuple[Kind, np.ndarray, np.ndarray]:
    """Return the kind of map with the lowest cross-validated error, the simpler one of equals, and its knots."""
    errors = {kind: round(float(_missed(learn, rated).mean()), 12) for kind, learn in _KINDS.items()}
    kind = min(errors, key=lambda kind: errors[kind])  # the first of equals
    return kind, *_KINDS[kind](rated.x, rated.y)


def _missed(learn: Learn, rated: Scores) -> np.ndarray:
    """Return the distance of a map's prediction from each score, on items it has not seen."""
    return np.abs(_predicted(lambda seen: learn(seen.x, seen.y), rated) - rated.y)


def _predicted(learn: Callable[[Scores], Knots], rated: Scores) -> np.ndarray:
    """Predict each score by what is learnt from all other items."""
    predicted = np.empty(len(rated.y))
    for seen, held in GroupKFold(min(FOLDS, len(np.unique(rated.items)))).split(rated.x, rated.y, rated.items):
        predicted[held] = np.interp(rated.x[held], *learn(rated.of(seen)))
    return predicted


def _median(x: np.ndarray, y: np.ndarray) -> Knots:
    """Fit the constant with the lowest mean absolute error on its training data."""
    return np.array([x.min(), x.max()]), np.full(2, np.median(y))


def _mean(x: np.ndarray, y: np.ndarray) -> Knots:
    return np.array([x.min(), x.max()]), np.full(2, y.mean())


def _linear(x: np.ndarray, y: np.ndarray) -> Knots:
    """Fit by least squares over the rated range, never decreasing and within the scale; flat outside the range."""
    low, high = float(x.min()), float(x.max())
    slope = 0.0 if np.ptp(x) == 0 else float(np.cov(x, y, bias=True)[0, 1] / x.var())
    if slope <= 0:
        return np.array([low, high]), np.full(2, y.mean())
    start = float(y.mean() - slope * x.mean())
    crossings = [(bound - start) / slope for bound in (0.0, 1.0)]
    knots = np.array(sorted({low, high, *(c for c in crossings if low < c < high)}))
    return knots, np.clip(start + slope * knots, 0.0, 1.0)


def _isotonic(x: np.ndarray, y: np.ndarray) -> Knots:
    """Fit by least squares among all maps that never decrease."""
    learnt = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y)
    return learnt.X_thresholds_, learnt.y_thresholds_


_KINDS: dict[Kind, Learn] = {"constant": _median, "linear": _linear, "isotonic": _isotonic}
