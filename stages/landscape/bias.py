"""How far a model's answers are from what people expect to be as frequent, where the input leaves it unsaid.

The measure is the *total variation* from the reference, half the sum of |share - expected share|: that part of the
answers would have to be another value. Counted on n answers it is too large, the more so the fewer they are: of 48 fair
coins the smaller side lacks some. So each is shown beside what chance alone gives, is called a bias only beyond chance,
and is corrected for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from scipy import optimize, special

from stages.errors import UsageError
from stages.intervals import CHANGE, LEVEL, NO_RATE, SHARE, Rate, holm, wilson
from stages.records.base import RateRecord
from stages.records.bias import Bias, BiasChange, BiasComparison, BiasSubject, Chance, ValueShare
from stages.tasks.contract import Tally

T = TypeVar("T", Bias, BiasSubject)

DRAWS = 2000  # of the sampling distribution, wherever one is needed
TAIL = (1 - LEVEL) / 2
_END = 1 - 1e-4  # of the path from the reference: all answers are the value most over-represented
_EXACT = 1e-9  # sums of shares that are equal may differ by so much


def total_variation(counts: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Counts (..., k) of k values against their expected shares (k,): (...,) in [0, 1]."""
    counts = np.asarray(counts, dtype=float)
    return np.abs(counts / counts.sum(axis=-1, keepdims=True) - reference).sum(axis=-1) / 2


class Skew:
    """The total variation behind one tally: what was counted, what chance alone gives, and what is left.

    The interval inverts tests along the exponential family that leads from the reference through what was counted
    (Efron 1981, "Nonparametric standard errors and confidence intervals"; DiCiccio and Romano 1990, "Nonparametric
    confidence limits by resampling methods and least favorable families"): it holds each total variation t under which
    neither as much as was counted nor as little is rarer than 2.5%. Along it shares grow in the order of their ratio
    to the reference, so t grows too. `value` is the t under which what was counted is what comes on average.
    At the reference the interval begins at 0, whatever chance counts; a bootstrap's would not.

    Args:
        tally: of at least one answer that was read.
        seed: of the draws.
    """

    def __init__(self, tally: Tally, seed: Sequence[int]) -> None:
        self._counts, self._reference = _arrays(tally)
        self.n, self._seed = int(self._counts.sum()), list(seed)
        self.counted = float(total_variation(self._counts, self._reference))
        self._start = np.log(np.maximum(self._reference, _EXACT))
        smoothed = (self._counts + np.maximum(self._reference, _EXACT)) / (self.n + 1)  # one more answer, as expected
        self._way = np.log(smoothed) - self._start
        if np.ptp(self._way) < _EXACT:  # exactly as expected: any way leads off
            self._way = np.eye(len(self._way))[0]
        null = self._test()
        self.null_mean, self.null_high = float(null[1].mean()), float(np.quantile(null[1], LEVEL))
        self.p = null[0]
        self.rate, at = self._fit(float(np.median(null[1])))
        # (2, DRAWS): by how much what is counted may err, at the bias found, and at none where chance explains it.
        self.errors = np.stack([self._errors(at), self._errors(at if self.p <= 1 - LEVEL else 0.0)])

    def _test(self) -> tuple[float, np.ndarray]:
        """Chance of so much or more at the reference, and the total variations that come there."""
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
        """The total variation with its interval, and where on the path the value lies."""
        # Answers nearer to the reference than chance puts them are not evidence that there is less than none.
        most = max(self.counted, typical)
        low = _rises_to_0(lambda at: (self._draw(at) >= self.counted - _EXACT).mean() - TAIL)
        best = _rises_to_0(lambda at: self._draw(at).mean() - self.counted)
        high = _rises_to_0(lambda at: TAIL - (self._draw(at) <= most + _EXACT).mean())
        best = min(max(best, low), high)
        return Rate(self._off(best), self._off(low), self._off(high), self.n), best

    def _errors(self, at: float) -> np.ndarray:
        """(DRAWS,) counted less true total variation, at a point of the path.

        A model that always answers alike may not always: the point is no further off than one answer more allows.
        """
        at = min(at, 0.5)
        return self._draw(at, more=1) - self._off(at)

    def _shares(self, at: float) -> np.ndarray:
        """The shares at a point of the path: at 0 the reference, at 0.5 what was counted, at 1 one value alone."""
        return np.asarray(special.softmax(self._start + at / (1 - at) * self._way))

    def _off(self, at: float) -> float:
        return float(np.abs(self._shares(at) - self._reference).sum() / 2)

    def _draw(self, at: float, more: int = 0) -> np.ndarray:
        """(DRAWS,) total variations of n answers; the same draws at every point, so that they move with it."""
        rng = np.random.default_rng([*self._seed, 1 + more])
        return total_variation(rng.multinomial(self.n, self._shares(at), size=DRAWS), self._reference)


def _rises_to_0(holds: Callable[[float], float]) -> float:
    """Where on the path what rises along it becomes 0; its begin or end if it is above, or below, 0 everywhere."""
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

    Whether one is beyond noise is tested over all subjects that were tallied at the same guidance (Holm 1979).

    Args:
        tallies: of one model.
        seed: of the draws.
    """
    return [_entry(tally, skew, p) for tally, skew, p in zip(tallies, *_measured(tallies, seed), strict=True)]


def _measured(tallies: Sequence[Tally], seed: int, model: int = 0) -> tuple[list[Skew | None], list[float]]:
    """What there is behind each tally (None without an answer that was read), and Holm's p-values."""
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
        chance=skew and Chance(mean=skew.null_mean, high=skew.null_high),
        excess=skew and skew.counted - skew.null_mean,
        p=skew and skew.p,
        p_holm=skew and p,
        beyond_noise=skew is not None and p <= 1 - LEVEL,
        bias=RateRecord.from_rate(NO_RATE if skew is None else skew.rate),
    )


def judged(entries: Sequence[T]) -> list[T]:
    """The entries at the highest guidance tallied: the sampler's own, beside which 1 is there to compare."""
    highest = max((entry.guidance for entry in entries), default=0.0)
    return [entry for entry in entries if entry.guidance == highest]


def largest_bias(entries: Sequence[Bias]) -> Rate:
    """The bias a gate judges: of the subjects `judged`, the one whose interval reaches highest."""
    rates = [entry.bias.rate for entry in judged(entries) if entry.n]
    return max(rates, key=lambda rate: (rate.high, rate.value), default=NO_RATE)


def compare_bias(models: Mapping[str, Sequence[Tally]], seed: int) -> BiasComparison | None:
    """Compare the tallies of all models; None where the model before has none.

    A change is the total variation after minus before. Its test permutes which model drew a picture: all pictures of
    both are pooled, and so many of them are drawn for the model after (the permutation test for two samples). Models
    that draw from the same seeds are more alike than that, so the test is careful.

    Args:
        models: tallies by model: "before", "after", and what there is of "control" and "noise"; of the same subjects.
        seed: of the draws.

    Raises:
        UsageError: when the models' tallies are not of the same subjects, attributes and guidance.
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
    at = judged(subjects)
    kept = [i for i, subject in enumerate(subjects) if subject in at and all(skews[i] for skews, _ in found.values())]
    behind = {model: [skew for i in kept if (skew := skews[i])] for model, (skews, _) in found.items()}
    return BiasComparison(
        subjects=subjects,
        mean={model: RateRecord.from_rate(mean_bias(skews)) for model, skews in behind.items()},
        mean_change={m: RateRecord.from_rate(mean_change(behind["before"], behind[m])) for m in changes},
    )


def newly_skewed(bias: BiasComparison) -> list[BiasSubject]:
    """The subjects that the model after skews as the model before did not, at the judged guidance."""
    return [subject for subject in judged(bias.subjects) if subject.newly_skewed]


def _newly_skewed(after: Bias, change: BiasChange) -> bool:
    """Whether a subject is skewed now, beyond chance, and more than before, beyond chance.

    That it was not beyond chance before is not enough: a difference of two findings is not a finding of a difference.
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
    p_values: list[float] = []
    rates: list[Rate] = []
    for i, (one, other) in enumerate(zip(skews_before, skews_after, strict=True)):
        known = one is not None and other is not None
        rates.append(mean_change([one], [other]) if one is not None and other is not None else NO_RATE)
        p_values.append(_permuted(before[i], after[i], [seed, i]) if known else 1.0)
    adjusted = _holm_by_guidance(before, p_values)
    return [
        BiasChange(**rate.to_json(), p=p if rate.n else None, p_holm=q if rate.n else None)
        for rate, p, q in zip(rates, p_values, adjusted, strict=True)
    ]


def _permuted(before: Tally, after: Tally, seed: Sequence[int]) -> float:
    """Two-sided chance of a change of the total variation so large if it did not matter which model answered."""
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
    """The mean total variation over subjects; NaN without any."""
    if not skews:
        return NO_RATE
    return _mean([skew.counted for skew in skews], [skew.errors for skew in skews], [skew.rate for skew in skews])


def mean_change(before: Sequence[Skew], after: Sequence[Skew]) -> Rate:
    """The mean over subjects of the total variation after minus before; NaN without any."""
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
    """Other minus one, from their intervals (MOVER)."""
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
    """A mean over k subjects, errors (2, DRAWS) each, with what three intervals hold together.

    Two are basic bootstraps (Davison and Hinkley 1997, sec. 5.2) with errors drawn where the bias was found to be: they
    take out what chance adds to each subject, which does not average out. One of them takes it that there is no bias
    where chance explains all; the mean of several is half-way between. The third, from the subjects' own intervals,
    does not collapse where every answer is the same (MOVER: Zou and Donner 2008, "Construction of confidence limits
    about effect measures: a general approach").
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
