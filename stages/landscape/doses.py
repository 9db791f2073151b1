"""Failures against steps of training, for a repair and its control: what aiming is worth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stages.intervals import CHANGE, LEVEL, SHARE, Resampler
from stages.landscape.compare import value_bounds
from stages.records import RateRecord
from stages.records.repair import Dose, DoseCurve, Times

PARTS = ("targets", "others", "drawn", "clean")

Curve = Mapping[int, np.ndarray]  # steps -> values (n,), means over trainings


def dose_curves(answers: pd.DataFrame, *, resamples: int, seed: int) -> list[DoseCurve]:
    """The curves of all parts that were asked about; none where everything was trained once.

    Args:
        answers: as in re_evaluate's doses.parquet. Of each part every model has the same rows in the same order.
        resamples: of items, for the intervals.
        seed: of the resampling.
    """
    asked = set(answers["part"])
    return [_curve(part, answers[answers["part"] == part], resamples, seed) for part in PARTS if part in asked]


def _curve(part: str, answers: pd.DataFrame, resamples: int, seed: int) -> DoseCurve:
    by_model = {
        key: table["value"].to_numpy(dtype=float)
        for key, table in answers.groupby(["copy_of", "steps", "training"], sort=True)
    }
    items = answers["item"].to_numpy(dtype=str)[: len(by_model["before", 0, 0])]
    resampler, weights = Resampler(items, resamples, seed), np.ones(len(items))

    def curve(copy: str) -> Curve:
        steps = sorted({of_steps for one, of_steps, _ in by_model if one == copy})
        return {n: np.mean([v for key, v in by_model.items() if key[:2] == (copy, n)], axis=0) for n in steps}

    before, repaired, control = (curve(copy) for copy in ("before", "repaired", "control"))

    def doses(of_copy: Curve) -> list[Dose]:
        return [
            Dose(steps=n, rate=RateRecord.from_rate(resampler.mean(values, weights, _bounds(part, before[0], values))))
            for n, values in {**before, **of_copy}.items()
        ]

    full = max(repaired)
    pairs = [
        (values, by_model["control", full, training])
        for (copy, steps, training), values in by_model.items()
        if copy == "repaired" and steps == full and ("control", full, training) in by_model
    ]
    return DoseCurve(
        part=part,
        repaired=doses(repaired),
        control=doses(control) if control else [],
        differences=[
            RateRecord.from_rate(
                resampler.mean(one - other, weights, CHANGE if part != "clean" else value_bounds(one, other)[1])
            )
            for one, other in pairs
        ],
        times=_times(repaired[full], full, control, resampler) if control and part != "clean" else None,
    )


def _bounds(part: str, before: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    return SHARE if part != "clean" else value_bounds(before, values)[0]


def _times(reached: np.ndarray, steps: int, control: Curve, resampler: Resampler) -> Times:
    """How many times as many steps take the control to where these steps took the repair, with its interval."""
    shares = np.array(list(control)) / steps
    rates = np.array([values.mean() for values in control.values()])
    drawn = np.column_stack([resampler.samples(values) for values in control.values()])
    found = [_crossing(shares, *both) for both in zip(drawn, resampler.samples(reached), strict=True)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(found, tail, method="lower"), np.quantile(found, 1 - tail, method="higher")
    value = _crossing(shares, rates, float(reached.mean()))
    return Times(
        value=value if np.isfinite(value) else None,
        low=float(min(low, shares[-1])),
        high=float(high) if np.isfinite(high) else None,
        least=float(shares[0]),
        most=float(shares[-1]),
    )


def _crossing(shares: np.ndarray, rates: np.ndarray, reached: float) -> float:
    """At which of the shares of steps, ascending, the rates fall to what was reached; infinite if they never do.

    Between two shares by their logarithms; a rate that rises with the steps counts as the lowest so far.
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


def worth(curve: DoseCurve) -> str:
    """How many steps of the control those of the repair are worth, with the interval; empty without a control."""
    times, steps = curve.times, curve.repaired[-1].steps
    if times is None:
        return ""
    if times.value is None:
        many = f"more than {times.most:g} times as many"
    elif times.value > times.least:
        many = f"{times.value:.1f} times as many"
    else:
        return f"{steps:,} steps of the repair did no more than {curve.control[1].steps:,} of the control's"
    high = f"more than {times.most:g}" if times.high is None else f"{times.high:.1f}"
    return f"{steps:,} steps of the repair did what took the control {many} [{times.low:.1f}, {high}]"
