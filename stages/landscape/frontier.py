"""How much a repair and its control mend against how much they break, and what aiming is worth at equal harm.

At equal steps a repair that breaks more than its control also mends more, which says nothing of the aim. So both are
taken at several numbers of steps and shares of the way to what was learnt (Wortsman et al. 2022), and compared where as
much of what passed before fails.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.core.intervals import LEVEL, SHARE, Rate, Resampler
from stages.landscape.compare import change_in_points, in_strata, value_bounds
from stages.records import RateRecord
from stages.records.repair import AtEqualHarm, Frontier, FrontierPoint, Times

PROBED = ("targets", "others")
LEVELS = np.arange(1, 11) / 10  # of harm, as shares of the largest, at which copies are compared
_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


class _Point(NamedTuple):
    """The trainings of one copy, dose and share: failures (pairs,) and clean quality (items,) of each."""

    copy_of: str
    dose: float
    share: float
    steps: int
    failed: list[np.ndarray]
    clean: list[np.ndarray]


def frontier(answers: pd.DataFrame, share: float, *, resamples: int, seed: int) -> Frontier | None:
    """Compute the frontier of a repair and of its control, if there is one; None without answers.

    A copy's failures at some harm are interpolated between its points, of which those that mend less and break more
    than another do not count.

    Args:
        answers: as in re_evaluate's doses.parquet; for each part every model has the same rows in the same order.
        share: share of use that the targets cover.
        resamples: number of resamples of the items, and of the trainings, for the intervals.
    """
    if answers.empty:
        return None
    before = answers[answers["copy_of"] == "before"]
    probed, clean = before[before["part"].isin(PROBED)], before[before["part"] == "clean"]
    inside, failed = (probed["part"] == "targets").to_numpy(), probed["value"].to_numpy(dtype=float)
    resampler = Resampler(probed["item"], resamples, seed, probed.get("group"))
    unchanged = clean["value"].to_numpy(dtype=float)
    of_clean = Resampler(clean["item"], resamples, seed, clean.get("group"))
    weights = in_strata(probed["weight"].to_numpy(dtype=float), inside, share)
    passed = weights * (1 - failed)  # under which the mean of failures is the newly failing share
    points, published = _points(answers)

    def measured(point: _Point) -> FrontierPoint:
        values, quality = np.mean(point.failed, axis=0), np.mean(point.clean, axis=0)
        rates = {
            "newly_failing": resampler.mean(values, passed, SHARE),
            "targets": resampler.mean(values, weights * inside, SHARE),
            "others": resampler.mean(values, weights * ~inside, SHARE),
            "clean": of_clean.mean(quality, np.ones(len(quality)), value_bounds(unchanged, quality)[0]),
        }
        about = {"copy_of": point.copy_of, "dose": point.dose, "share": point.share, "steps": point.steps}
        return FrontierPoint.model_validate(about | {k: RateRecord.from_rate(rate) for k, rate in rates.items()})

    untrained = resampler.mean(failed, weights * inside, SHARE)
    control = {point.copy_of for point in points} == {"repaired", "control"} and passed.any() and inside.any()
    equal = _at_equal_harm(points, published, failed, weights * inside, passed, resampler, seed) if control else None
    return Frontier(
        before=RateRecord.from_rate(untrained),
        published=measured(published),
        points=[measured(point) for point in points],
        trainings=len(points[0].failed),
        equal_harm=equal,
    )


def _points(answers: pd.DataFrame) -> tuple[list[_Point], _Point]:
    """Return the points of both copies, and the repair as it is published.

    A point is made of all trainings; what the budget of harm left of a single one of several is none.
    """
    found: dict[tuple[str, float, float], _Point] = {}
    published = None
    trained = answers[answers["copy_of"] != "before"]
    for (copy, dose, share, _), table in trained.groupby(["copy_of", "dose", "share", "training"], sort=True):
        probed, values = table["part"].isin(PROBED).to_numpy(), table["value"].to_numpy(dtype=float)
        point = found.setdefault((copy, dose, share), _Point(copy, dose, share, int(table["steps"].iloc[0]), [], []))
        point.failed.append(values[probed])
        point.clean.append(values[~probed])
        if copy == "repaired" and table["published"].all():
            published = point._replace(failed=[values[probed]], clean=[values[~probed]])
    assert published is not None  # the stage asks every model
    seeds = max(len(point.failed) for point in found.values())
    return [point for point in found.values() if len(point.failed) == seeds], published


def _at_equal_harm(
    points: Sequence[_Point],
    published: _Point,
    before: np.ndarray,
    targets: np.ndarray,
    passed: np.ndarray,
    resampler: Resampler,
    seed: int,
) -> AtEqualHarm:
    """Compare the frontiers of both copies after as many steps, on average up to a harm that both reach.

    How much a model breaks is known less well than how much it mends, as little breaks; so where frontiers are steep,
    their difference at a single harm is known badly.

    Args:
        points: of both copies.
        published: the repair, up to whose harm they are compared.
        before: (pairs,) failures of the model under test.
        targets: (pairs,) weights of the pairs in the targets, others 0.
        passed: (pairs,) weights of the pairs that passed before, others 0.
        resampler: of the items.
        seed: of the trainings, which are resampled too, as another training would differ.
    """
    seeds = len(points[0].failed)
    start, harm = _means([before], targets, resampler), _means(published.failed, passed, resampler)
    sampled: dict[str, dict[float, list[_Sampled]]] = {"repaired": {}, "control": {}}
    chosen = np.random.default_rng([seed, 3]).integers(seeds, size=(len(start) - 1, seeds))
    for point in points:
        both = (_means(point.failed, weights, resampler, chosen) for weights in (passed, targets))
        sampled[point.copy_of].setdefault(point.dose, []).append(_Sampled(*both))
    repaired, control = ([p for dose, of in doses.items() if dose <= 1 for p in of] for doses in sampled.values())
    harm = np.minimum(harm, np.max([point.harm for point in control], axis=0))
    apart = [_failing(repaired, start, level * harm) - _failing(control, start, level * harm) for level in LEVELS]
    difference = np.mean(apart, axis=0)
    low, high = np.quantile(difference[1:], _TAILS)
    value, doses = float(difference[0]), sampled["control"]
    rate = Rate(value, min(low, value), max(high, value), int((targets > 0).sum()))
    by_steps = np.stack([_failing(of, start, harm) for of in doses.values()])
    return AtEqualHarm(
        harm=float(harm[0]),
        difference=RateRecord.from_rate(rate),
        times=_times(np.array(list(doses)), by_steps, _failing(repaired, start, harm)) if len(doses) > 1 else None,
    )


class _Sampled(NamedTuple):
    """What a point breaks, and how often it fails in the targets: measured, and in each resample (1 + resamples,)."""

    harm: np.ndarray
    failing: np.ndarray


def _means(
    trainings: Sequence[np.ndarray], weights: np.ndarray, resampler: Resampler, chosen: np.ndarray | None = None
) -> np.ndarray:
    """Return the mean over trainings, and in each resample that over the chosen ones (resamples, trainings)."""
    samples = np.column_stack([resampler.samples(values, weights) for values in trainings])
    means = samples if chosen is None else np.take_along_axis(samples, chosen, axis=1)
    return np.append(np.average(np.mean(trainings, axis=0), weights=weights), means.mean(axis=1))


def _failing(points: Sequence[_Sampled], start: np.ndarray, harm: np.ndarray) -> np.ndarray:
    """Return how often a copy fails in the targets at a harm, given its points and the start, all (1 + resamples,)."""
    harms = np.stack([np.zeros_like(start), *(point.harm for point in points)])
    order = np.argsort(harms, axis=0, kind="stable")
    failing = np.take_along_axis(np.stack([start, *(point.failing for point in points)]), order, axis=0)
    lowest = np.minimum.accumulate(failing, axis=0)
    columns = zip(harm, np.take_along_axis(harms, order, axis=0).T, lowest.T, strict=True)
    return np.array([np.interp(*column) for column in columns])


def _times(doses: np.ndarray, failing: np.ndarray, reached: np.ndarray) -> Times:
    """Find the doses (k,) of the control at which it fails as rarely as `reached` (1 + resamples,), with an interval.

    Args:
        doses: ascending.
        failing: (k, 1 + resamples).
        reached: by the repair.
    """
    found = np.array([_crossing(doses, *column) for column in zip(failing.T, reached, strict=True)])
    low, high = np.quantile(found[1:], _TAILS[0], method="lower"), np.quantile(found[1:], _TAILS[1], method="higher")
    ends = {
        name: float(end) if np.isfinite(end) else None
        for name, end in (("value", found[0]), ("low", min(low, found[0])), ("high", max(high, found[0])))
    }
    return Times(**ends, least=float(doses[0]), most=float(doses[-1]))


def _crossing(doses: np.ndarray, failing: np.ndarray, reached: float) -> float:
    """Find the dose (ascending) at which the failures fall to `reached`; infinite if they never do.

    Interpolates between two doses by their logarithms; a rate that rises with the dose counts as the lowest so far.
    """
    lowest = np.minimum.accumulate(failing)
    there = np.flatnonzero(lowest <= reached)
    if not len(there):
        return np.inf
    k = int(there[0])
    if k == 0:
        return float(doses[0])
    part = (lowest[k - 1] - reached) / (lowest[k - 1] - lowest[k])
    return float(np.exp((1 - part) * np.log(doses[k - 1]) + part * np.log(doses[k])))


def at_equal_harm(found: AtEqualHarm) -> str:
    """Say in a sentence what aiming is worth where repair and control break as much."""
    rate = found.difference.rate
    sure = "" if rate.low > 0 or rate.high < 0 else ", which may be chance"
    said = (
        f"For the same number of steps and the same harm (up to {found.harm:.1%} of what passed newly fails), the"
        f" repair's failures in the target modes differ from the control's by {change_in_points(rate)}{sure}"
    )
    if found.times is None:
        return f"{said}."
    return f"{said}; to match the repair at the largest such harm, the control needs {times_the_steps(found.times)}."


def times_the_steps(found: Times) -> str:
    """Say how many times the repair's steps its control needs: "3.5 times as many steps (2.2 to more than 4)"."""

    def said(value: float | None) -> str:
        if value is None:
            return f"more than {found.most:g}"
        return f"{value:.1f}" if value > found.least else f"at most {found.least:g}"

    ends = dict.fromkeys((said(found.low), said(found.high)))
    return f"{said(found.value)} times as many steps ({' to '.join(ends)})"
