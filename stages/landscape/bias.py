"""Measure how far a model's answers deviate from their expected frequencies when the input leaves them open.

The measure is the *total variation* from the reference, half the sum of |share - expected share|: the part of the
answers that would have to change. Counted on n answers it is biased upwards, more so for small n: 48 tosses of a fair
coin rarely give 24 heads. So each is shown beside its expectation under chance, is called a bias only beyond chance,
and is corrected for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import optimize, special

from stages.core.errors import UsageError
from stages.core.intervals import CHANGE, LEVEL, NO_RATE, SHARE, Rate, holm, wilson
from stages.records.base import RateRecord
from stages.records.slices import Bias, BiasChange, BiasComparison, BiasSubject, ChanceVariation, ValueShare
from stages.tasks.contract import Tally

T = TypeVar("T", Bias, BiasSubject)

DRAWS = 2000  # draws from each sampling distribution
TAIL = (1 - LEVEL) / 2
_END = 1 - 1e-4  # of the path from the reference: all answers are the most over-represented value
_EXACT = 1e-9  # tolerance for equal sums of shares


def total_variation(counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Total variation of counts (..., k) of k values from their expected shares (k,): (...,) in [0, 1]."""
    counts = np.asarray(counts, dtype=float)
    return np.abs(counts / counts.sum(axis=-1, keepdims=True) - reference).sum(axis=-1) / 2


class Skew:
    """The total variation of one tally: as counted, under chance alone, and corrected.

    The interval inverts tests along the exponential family from the reference through the counts (Efron 1981,
    "Nonparametric standard errors and confidence intervals"; DiCiccio and Romano 1990, "Nonparametric confidence limits
    by resampling methods and least favorable families"). It contains each total variation t under which values at least
    as large as the one counted, and values at most as large, each have a probability of at least 2.5%. Along the path,
    shares grow in the order of their ratio to the reference, so t grows too. `value` is the t whose expected count
    equals the one counted. If chance explains the counts, the interval begins at 0; a bootstrap's would not.

    Args:
        tally: a tally with at least one readable answer.
    """

    def __init__(self, tally: Tally, seed: Sequence[int]) -> None:
        self._counts, self._reference = _arrays(tally)
        self.n, self._seed = int(self._counts.sum()), list(seed)
        self.counted = float(total_variation(self._counts, self._reference))
        self._start = np.log(np.maximum(self._reference, _EXACT))
        smoothed = (self._counts + np.maximum(self._reference, _EXACT)) / (self.n + 1)  # one added answer, as expected
        self._way = np.log(smoothed) - self._start
        if np.ptp(self._way) < _EXACT:  # exactly as expected: any direction will do
            self._way = np.eye(len(self._way))[0]
        null = self._test()
        self.null_mean, self.null_high = float(null[1].mean()), float(np.quantile(null[1], LEVEL))
        self.p = null[0]
        self.rate, at = self._fit(float(np.median(null[1])))
        # (2, DRAWS): errors of the counted total variation, at the bias found, and at none if chance explains it.
        self.errors = np.stack([self._errors(at), self._errors(at if self.p <= 1 - LEVEL else 0.0)])

    def _test(self) -> tuple[float, np.ndarray]:
        """Return the p-value at the reference, and the total variations drawn there."""
        from scipy import stats  # takes a second

        rng = np.random.default_rng([*self._seed, 0])
        result = stats.monte_carlo_test(
            self._counts,
            lambda size: rng.multinomial(self.n, self._reference, size=size[0]),
            lambda counts, axis: total_variation(counts, self._reference),
            vectorized=True,
            n_resamples=DRAWS,
            alternative="greater",
        )
        return float(result.pvalue), np.asarray(result.null_distribution)

    def _fit(self, typical: float) -> tuple[Rate, float]:
        """Return the total variation with its interval, and its position on the path."""
        # Answers closer to the reference than chance would put them are not evidence of less than no bias.
        most = max(self.counted, typical)
        low = _rises_to_0(lambda at: (self._draw(at) >= self.counted - _EXACT).mean() - TAIL)
        best = _rises_to_0(lambda at: self._draw(at).mean() - self.counted)
        high = _rises_to_0(lambda at: TAIL - (self._draw(at) <= most + _EXACT).mean())
        best = min(max(best, low), high)
        return Rate(self._off(best), self._off(low), self._off(high), self.n), best

    def _errors(self, at: float) -> np.ndarray:
        """Draw errors (DRAWS,) of the counted total variation at a point of the path.

        A model that always gave one answer may not always do so: the point is no farther than one added answer allows.
        """
        at = min(at, 0.5)
        return self._draw(at, more=1) - self._off(at)

    def _shares(self, at: float) -> np.ndarray:
        """Return the shares at a point of the path: the reference at 0, the counts at 0.5, a single value at 1."""
        return np.asarray(special.softmax(self._start + at / (1 - at) * self._way))

    def _off(self, at: float) -> float:
        return float(np.abs(self._shares(at) - self._reference).sum() / 2)

    def _draw(self, at: float, more: int = 0) -> np.ndarray:
        """Draw (DRAWS,) total variations of n answers; with one seed at every point, so that they vary smoothly."""
        rng = np.random.default_rng([*self._seed, 1 + more])
        return total_variation(rng.multinomial(self.n, self._shares(at), size=DRAWS), self._reference)


def _rises_to_0(holds: Callable[[float], float]) -> float:
    """Find where an increasing function on the path becomes 0; an end of the path if it has no root."""
    if holds(0.0) >= 0:
        return 0.0
    return float(optimize.bisect(holds, 0.0, _END, xtol=1e-3)) if holds(_END) > 0 else _END


def _arrays(tally: Tally) -> tuple[np.ndarray, np.ndarray]:
    if set(tally.counts) != set(tally.reference):
        raise UsageError(
            f"the tally of {tally.attribute} for {tally.subject} counts {', '.join(tally.counts) or 'nothing'}, but "
            f"its reference is of {', '.join(tally.reference) or 'nothing'}: expected the same values"
        )
    reference = np.array([tally.reference[value] for value in tally.counts], dtype=float)
    if not (reference.min(initial=0.0) >= 0 and abs(reference.sum() - 1) < 1e-6):
        raise UsageError(
            f"the reference of {tally.attribute} for {tally.subject} is {dict(tally.reference)}: expected shares from "
            "0 on that sum to 1"
        )
    return np.array(list(tally.counts.values()), dtype=np.int64), reference / reference.sum()


def measure_bias(tallies: Sequence[Tally], seed: int) -> list[Bias]:
    """Describe each tally, in their order.

    Holm's test (1979) decides which are beyond noise, over all subjects tallied at the same guidance.
    """
    return [_entry(tally, skew, p) for tally, skew, p in zip(tallies, *_measured(tallies, seed), strict=True)]


def _measured(tallies: Sequence[Tally], seed: int, model: int = 0) -> tuple[list[Skew | None], list[float]]:
    """Return the skew of each tally (None without a readable answer), and Holm's p-values."""
    skews: list[Skew | None] = []
    for i, tally in enumerate(tallies):
        counts, _ = _arrays(tally)
        skews.append(Skew(tally, [seed, model, i]) if counts.sum() else None)
    return skews, _holm_by_guidance(tallies, [1.0 if skew is None else skew.p for skew in skews])


def _holm_by_guidance(tallies: Sequence[Tally], p_values: Sequence[float]) -> list[float]:
    adjusted, guidance = np.array(p_values, dtype=float), np.array([tally.guidance for tally in tallies])
    for scale in np.unique(guidance):
        adjusted[guidance == scale] = holm(adjusted[guidance == scale])
    return [float(p) for p in adjusted]


def _entry(tally: Tally, skew: Skew | None, p: float) -> Bias:
    n = sum(tally.counts.values())
    return Bias(
        subject=tally.subject,
        attribute=tally.attribute,
        guidance=tally.guidance,
        n=n,
        unread=tally.unread,
        values=[
            ValueShare(
                value=value, count=int(k), share=RateRecord.from_rate(wilson(k, n)), expected=tally.reference[value]
            )
            for value, k in tally.counts.items()
        ],
        counted=skew and skew.counted,
        chance=skew and ChanceVariation(mean=skew.null_mean, high=skew.null_high),
        excess=skew and skew.counted - skew.null_mean,
        p=skew and skew.p,
        p_holm=skew and p,
        beyond_noise=skew is not None and p <= 1 - LEVEL,
        bias=RateRecord.from_rate(NO_RATE if skew is None else skew.rate),
    )


def at_highest_guidance(entries: Sequence[T]) -> list[T]:
    """Select the entries at the highest guidance tallied, the sampler's own; guidance 1 is only for comparison."""
    highest = max((entry.guidance for entry in entries), default=0.0)
    return [entry for entry in entries if entry.guidance == highest]


def largest_bias(entries: Sequence[Bias]) -> Rate:
    """Return the bias that a gate judges: of the `judged` subjects, the one with the highest upper bound."""
    rates = [entry.bias.rate for entry in at_highest_guidance(entries) if entry.n]
    return max(rates, key=lambda rate: (rate.high, rate.value), default=NO_RATE)


def compare_bias(models: Mapping[str, Sequence[Tally]], seed: int) -> BiasComparison | None:
    """Compare the tallies of "before", "after", and perhaps "control" and "noise"; None if the model before has none.

    A change is the total variation after minus before. Its two-sample permutation test pools the pictures of both
    models and draws as many as the model after has. Models that use the same seeds are more alike than independent
    samples, so the test is conservative. Raises a UsageError if the models' tallies differ in subjects, attributes or
    guidance.
    """
    before = models["before"]
    if not before:
        return None
    keys = [(tally.subject, tally.attribute, tally.guidance) for tally in before]
    for model, tallies in models.items():
        if [(tally.subject, tally.attribute, tally.guidance) for tally in tallies] != keys:
            raise UsageError(f"the tallies of the model {model!r} have other subjects than those of 'before'")
    found = {model: _measured(tallies, seed, k) for k, (model, tallies) in enumerate(models.items())}
    entries = {
        model: [_entry(*row) for row in zip(tallies, *found[model], strict=True)] for model, tallies in models.items()
    }
    changes = {
        model: _changes(before, models[model], found["before"][0], found[model][0], seed)
        for model in models
        if model != "before"
    }
    subjects = [
        BiasSubject(
            subject=subject,
            attribute=attribute,
            guidance=guidance,
            models={model: rows[i] for model, rows in entries.items()},
            changes={model: rows[i] for model, rows in changes.items()},
            newly_skewed=_newly_skewed(entries["after"][i], changes["after"][i]),
        )
        for i, (subject, attribute, guidance) in enumerate(keys)
    ]
    at = at_highest_guidance(subjects)
    kept = [i for i, subject in enumerate(subjects) if subject in at and all(skews[i] for skews, _ in found.values())]
    behind = {model: [skew for i in kept if (skew := skews[i])] for model, (skews, _) in found.items()}
    return BiasComparison(
        subjects=subjects,
        mean={model: RateRecord.from_rate(mean_bias(skews)) for model, skews in behind.items()},
        mean_change={m: RateRecord.from_rate(mean_change(behind["before"], behind[m])) for m in changes},
    )


def newly_skewed(bias: BiasComparison) -> list[BiasSubject]:
    """Return the subjects skewed by the model after but not by the model before, at the judged guidance."""
    return [subject for subject in at_highest_guidance(bias.subjects) if subject.newly_skewed]


def _newly_skewed(after: Bias, change: BiasChange) -> bool:
    """Whether a subject is now skewed beyond chance, and its skew rose beyond chance.

    A skew within chance before is not enough: a difference between two findings is not a finding of a difference.
    """
    risen = change.p_holm is not None and change.p_holm <= 1 - LEVEL and change.rate.value > 0
    return after.beyond_noise and risen


def _changes(
    before: Sequence[Tally],
    after: Sequence[Tally],
    skews_before: Sequence[Skew | None],
    skews_after: Sequence[Skew | None],
    seed: int,
) -> list[BiasChange]:
    p_values, rates = [1.0] * len(before), [NO_RATE] * len(before)
    for i, (one, other) in enumerate(zip(skews_before, skews_after, strict=True)):
        if one is not None and other is not None:
            rates[i] = mean_change([one], [other])
            p_values[i] = _permuted(before[i], after[i], [seed, i])
    adjusted = _holm_by_guidance(before, p_values)
    return [
        BiasChange(**rate.to_json(), p=p if rate.n else None, p_holm=q if rate.n else None)
        for rate, p, q in zip(rates, p_values, adjusted, strict=True)
    ]


def _permuted(before: Tally, after: Tally, seed: Sequence[int]) -> float:
    """Two-sided p-value of the change of the total variation, if it did not matter which model answered."""
    from scipy import stats

    one, reference = _arrays(before)
    other = np.array([after.counts[value] for value in before.counts], dtype=np.int64)
    pooled, rng = one + other, np.random.default_rng(seed)

    def change(counts: np.ndarray, axis: int) -> np.ndarray:
        return total_variation(counts, reference) - total_variation(pooled - counts, reference)

    result = stats.monte_carlo_test(
        other,
        lambda size: rng.multivariate_hypergeometric(pooled, int(other.sum()), size=size[0]),
        change,
        vectorized=True,
        n_resamples=DRAWS,
        alternative="two-sided",
    )
    return float(result.pvalue)


def mean_bias(skews: Sequence[Skew]) -> Rate:
    """Mean total variation over subjects; NaN without subjects."""
    if not skews:
        return NO_RATE
    return _mean([skew.counted for skew in skews], [skew.errors for skew in skews], [skew.rate for skew in skews])


def mean_change(before: Sequence[Skew], after: Sequence[Skew]) -> Rate:
    """Mean over subjects of the total variation after minus before; NaN without subjects."""
    if not before:
        return NO_RATE
    pairs = list(zip(before, after, strict=True))
    return _mean(
        [b.counted - a.counted for a, b in pairs],
        [b.errors - a.errors for a, b in pairs],
        [_difference(a.rate, b.rate) for a, b in pairs],
        CHANGE,
    )


def _difference(one: Rate, other: Rate) -> Rate:
    """Return other minus one, with an interval from theirs (MOVER)."""
    value = other.value - one.value
    low = value - np.hypot(other.value - other.low, one.high - one.value)
    high = value + np.hypot(other.high - other.value, one.value - one.low)
    return Rate(value, float(low), float(high), min(one.n, other.n))


def _mean(
    counted: Sequence[float],
    errors: Sequence[np.ndarray],
    rates: Sequence[Rate],
    bounds: tuple[float, float] = SHARE,
) -> Rate:
    """Mean over k subjects, with errors (2, DRAWS) each, and the union of three intervals.

    Two are basic bootstraps (Davison and Hinkley 1997, sec. 5.2) with errors drawn at the bias found: they remove what
    chance adds to each subject, which does not average out. One of them assumes no bias in a subject if chance explains
    it; the mean of several subjects is half-way between the two. The third, from the subjects' own intervals, does not
    collapse if all answers are the same (MOVER: Zou and Donner 2008, "Construction of confidence limits about effect
    measures: a general approach").
    """
    k, counts, error = len(rates), float(np.mean(counted)), np.mean(errors, axis=0)
    centre = sum(rate.value for rate in rates) / k
    value = centre if k == 1 else counts - float(error.mean())
    down = np.sqrt(sum((rate.value - rate.low) ** 2 for rate in rates)) / k
    up = np.sqrt(sum((rate.high - rate.value) ** 2 for rate in rates)) / k
    lows = counts - np.quantile(error, 1 - TAIL, axis=1)
    highs = counts - np.quantile(error, TAIL, axis=1)
    value, low, high = np.clip((value, min(*lows, centre - down, value), max(*highs, centre + up, value)), *bounds)
    return Rate(float(value), float(low), float(high), sum(rate.n for rate in rates))
