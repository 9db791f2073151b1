"""Gates: bounds on what was measured. A gate passes only if the whole 95% interval is on the right side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.landscape.bias import largest_bias
from stages.params import Gates, LandscapeGates
from stages.records import Comparison, Gate, Landscape, Rate, RateRecord


def judge(name: str, bound: float, rate: Rate | None, *, upper: bool) -> Gate:
    """Hold what was measured against one bound.

    Args:
        name: e.g. "target_failure_rate.change_max".
        bound: where the gate stands.
        rate: what was measured; None or NaN where there was nothing to measure, then nothing is judged (`passed` null).
        upper: the interval has to lie at or below the bound, else at or above it.
    """
    if rate is None or np.isnan(rate.value):
        return Gate(gate=name, bound=bound, value=None, low=None, high=None, passed=None)
    passed = rate.high <= bound if upper else rate.low >= bound
    return Gate(gate=name, bound=bound, value=rate.value, low=rate.low, high=rate.high, passed=passed)


def landscape_gates(gates: LandscapeGates | None, landscape: Landscape) -> list[Gate]:
    """Hold a landscape against its gates."""
    modes = [mode.measured.rate for mode in landscape.modes]
    bias = largest_bias(landscape.bias or [])
    return judge_landscape(gates, landscape.overall.rate, modes, bias)


def repair_gates(gates: Gates, comparison: Comparison) -> list[Gate]:
    """Hold a repair against its gates. What has no change (newly failing) is one: before the repair there was none."""
    after, change = {}, {}
    for measure, entry in comparison.differences.items():
        after[measure] = RateRecord(value=entry.after, low=entry.after_low, high=entry.after_high, n=entry.pairs).rate
        change[measure] = entry.moved
    if comparison.bias:
        after["bias"], change["bias"] = comparison.bias.mean["after"].rate, comparison.bias.mean_change["after"].rate
    return judge_repair(gates, after, change)


def judge_landscape(
    gates: LandscapeGates | None, overall: Rate, modes: Sequence[Rate], bias: Rate | None = None
) -> list[Gate]:
    """Judge a landscape itself. Without a failure mode the worst region there is evidence for is the whole grid.

    Args:
        gates: the bounds.
        overall: failure rate over the whole grid.
        modes: failure rates of the failure modes.
        bias: of the subject whose interval reaches highest; None for a task without tallies.
    """
    if gates is None:
        return []
    worst = max(modes, key=lambda rate: rate.value, default=overall)
    bounds = [
        ("max_failure_rate", gates.max_failure_rate, overall),
        ("max_mode_rate", gates.max_mode_rate, worst),
        ("max_bias", gates.max_bias, bias),
    ]
    return [judge(name, bound, rate, upper=True) for name, bound, rate in bounds if bound is not None]


def judge_repair(gates: Gates, after: Mapping[str, Rate], change: Mapping[str, Rate]) -> list[Gate]:
    """Judge a repair.

    Args:
        gates: the bounds.
        after: measure -> value after the repair.
        change: measure -> after minus before, paired.
    """
    entries = []
    for measure in type(gates).model_fields:
        gate = getattr(gates, measure)
        if gate is None:
            continue
        for key, bound in gate.model_dump(exclude_none=True).items():
            rates = change if key.startswith("change") else after
            entries.append(judge(f"{measure}.{key}", bound, rates.get(measure), upper=key.endswith("max")))
    return entries


def all_passed(gates: Sequence[Gate]) -> bool | None:
    """Whether all gates passed: False if one failed; else None if one could not be judged, or if there are none."""
    results = [gate.passed for gate in gates]
    if False in results:
        return False
    return None if None in results or not results else True
