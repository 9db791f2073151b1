"""Failures against training steps for a repair and its control, which show what aiming is worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stages.core.intervals import CHANGE, LEVEL, SHARE, Rate, Resampler
from stages.landscape.compare import PairedAnswers, compare_quality, failure_differences, value_bounds
from stages.records import RateRecord
from stages.records.repair import Checkpoint, Dose, DoseCurve, Times, Training

PARTS = ("targets", "others", "drawn", "clean")

Curve = Mapping[float, list[np.ndarray]]  # dose -> values (n,) of each training


def dose_curves(answers: pd.DataFrame, *, resamples: int, seed: int) -> list[DoseCurve]:
    """Compute the curves of all parts in the answers; empty if everything was trained once.

    Args:
        answers: as in re_evaluate's doses.parquet; for each part every model has the same rows in the same order.
        resamples: number of resamples of the items, for the intervals.
        seed: seed of the resampling.
    """
    asked = set(answers["part"])
    return [_curve(part, answers[answers["part"] == part], resamples, seed) for part in PARTS if part in asked]


def _curve(part: str, answers: pd.DataFrame, resamples: int, seed: int) -> DoseCurve:
    curves: dict[str, dict[float, list[np.ndarray]]] = {"before": {}, "repaired": {}, "control": {}}
    for (copy, dose, _), table in answers.groupby(["copy_of", "dose", "training"], sort=True):
        curves[copy].setdefault(dose, []).append(table["value"].to_numpy(dtype=float))
    before, repaired, control = curves.values()
    asked = answers[: len(before[0][0])]
    resampler = Resampler(asked["item"], resamples, seed, asked.get("group"))
    weights = asked["weight"].to_numpy()
    steps = answers.groupby(["copy_of", "dose"])["steps"].mean().round().astype(int)

    def doses(copy: str) -> list[Dose]:
        found = [("before", 0.0, before[0]), *((copy, dose, values) for dose, values in curves[copy].items())]
        return [
            Dose(dose=dose, steps=steps[one, dose], rate=RateRecord.from_rate(mean(np.mean(values, axis=0))))
            for one, dose, values in found
        ]

    def mean(values: np.ndarray) -> Rate:
        return resampler.mean(values, weights, SHARE if part != "clean" else value_bounds(before[0][0], values)[0])

    def difference(one: np.ndarray, other: np.ndarray) -> Rate:
        return resampler.mean(one - other, weights, CHANGE if part != "clean" else value_bounds(one, other)[1])

    return DoseCurve(
        part=part,
        repaired=doses("repaired"),
        control=doses("control") if control else [],
        differences=[
            RateRecord.from_rate(difference(*pair))
            for pair in (zip(repaired[1], control[1], strict=True) if control else ())
        ],
        times=_times(repaired[1], control, resampler, weights, seed) if control and part != "clean" else None,
    )


def _times(reached: list[np.ndarray], control: Curve, resampler: Resampler, weights: np.ndarray, seed: int) -> Times:
    """Estimate how many times the repair's steps the control needs to reach its final rate, with an interval.

    Items and trainings are resampled, because another training would differ too.
    """
    shares, rng = np.array(list(control)), np.random.default_rng([seed, 3])

    def resampled(trainings: list[np.ndarray]) -> np.ndarray:
        drawn = np.column_stack([resampler.samples(values, weights) for values in trainings])  # (resamples, trainings)
        chosen = rng.integers(len(trainings), size=drawn.shape)
        return np.take_along_axis(drawn, chosen, axis=1).mean(axis=1)

    rates = np.column_stack([resampled(trainings) for trainings in control.values()])
    found = [_crossing(shares, *both) for both in zip(rates, resampled(reached), strict=True)]
    tail = (1 - LEVEL) / 2
    value = _crossing(
        shares, np.array([_mean(trainings, weights) for trainings in control.values()]), _mean(reached, weights)
    )
    low, high = np.quantile(found, tail, method="lower"), np.quantile(found, 1 - tail, method="higher")
    ends = {
        name: float(end) if np.isfinite(end) else None for name, end in (("value", value), ("low", low), ("high", high))
    }
    return Times(**ends, least=float(shares[0]), most=float(shares[-1]))


def _mean(trainings: list[np.ndarray], weights: np.ndarray) -> float:
    return float(np.average(np.mean(trainings, axis=0), weights=weights))


def _crossing(shares: np.ndarray, rates: np.ndarray, reached: float) -> float:
    """Find the share of steps (ascending) at which the rates fall to `reached`; infinite if they never do.

    Interpolates between two shares by their logarithms; a rate that rises with the steps counts as the lowest so far.
    """
    lowest = np.minimum.accumulate(rates)
    there = np.flatnonzero(lowest <= reached)
    if not len(there):
        return np.inf
    k = int(there[0])
    if k == 0:
        return float(shares[0])
    part = (lowest[k - 1] - reached) / (lowest[k - 1] - lowest[k])
    return float(np.exp((1 - part) * np.log(shares[k - 1]) + part * np.log(shares[k])))


def checkpoints(answers: pd.DataFrame, share: float, *, resamples: int, seed: int) -> list[Checkpoint]:
    """Compare failures and clean quality after fewer steps of the repair's own training.

    Args:
        answers: as in re_evaluate's doses.parquet.
        share: share of use that the targets cover.
        resamples: number of resamples of the items, for the intervals.
        seed: seed of the resampling.
    """
    first = answers[answers["training"] == 0]
    before, found = first[first["copy_of"] == "before"], []
    fewer = first[(first["copy_of"] == "repaired") & (first["dose"] < 1)]
    for (steps, dose), after in fewer.groupby(["steps", "dose"], sort=True):
        probed, clean = (before["part"].isin(parts).to_numpy() for parts in (("targets", "others"), ("clean",)))
        asked, items = before[probed], before[clean]
        values, valid = (
            {model: table[column].to_numpy() for model, table in (("before", before), ("after", after))}
            for column in ("value", "valid")
        )
        differences = failure_differences(
            *(
                PairedAnswers(
                    asked["item"].to_numpy(dtype=str),
                    np.empty((len(asked), 0), dtype=np.int64),
                    asked["part"].to_numpy() == "targets",
                    share,
                    counted,
                    asked.get("group"),
                    asked["weight"].to_numpy(),
                    resamples=resamples,
                    seed=seed,
                )
                for counted in (
                    {model: value[probed] > 0 for model, value in values.items()},
                    {model: ((value > 0) | ~valid[model].astype(bool))[probed] for model, value in values.items()},
                )
            )
        )
        of_clean = {model: value[clean] for model, value in values.items()}
        names, groups = items["item"].tolist(), items.get("group")
        differences["clean_quality"] = compare_quality(of_clean, names, groups, resamples=resamples, seed=seed)[0]
        folder = Training.folder_of("repaired", dose, 0)
        found.append(Checkpoint(folder=folder, steps=int(steps), differences=differences))
    return found


def worth(curve: DoseCurve) -> str:
    """Describe how many times the repair's steps its control needed: "3.5 times as many (2.2 to more than 4)".

    Empty without a control.
    """
    times = curve.times
    if times is None:
        return ""

    def said(value: float | None) -> str:
        if value is None:
            return f"more than {times.most:g}"
        return f"{value:.1f}" if value > times.least else f"at most {times.least:g}"

    ends = dict.fromkeys((said(times.low), said(times.high)))
    return f"{said(times.value)} times as many ({' to '.join(ends)})"
