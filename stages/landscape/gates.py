"""Gates: bounds on what was measured. A gate passes only if the whole 95% interval is on the right side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.errors import UsageError
from stages.landscape.bias import largest_bias
from stages.params import Gate as BoundsOfGate
from stages.params import Gates, LandscapeGates
from stages.params.slices import SliceGate, unknown_attributes
from stages.records import Comparison, Difference, Gate, Landscape, Rate, RateRecord
from stages.records.repair import Cheapest
from stages.records.slices import Bounds


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
    judged = judge_landscape(gates, landscape.overall.rate, modes, bias)
    if gates is None or not gates.slices:
        return judged
    found = {
        of.attribute: {one.value: _joint(one.rate, one.joint, one.probes) for one in of.values}
        for of in (landscape.slices.attributes if landscape.slices else ())
    }
    return judged + judge_slices(gates.slices, found, {}, f"audits.{landscape.audit}.gates.slices")


def repair_gates(gates: Gates, comparison: Comparison) -> list[Gate]:
    """Hold a repair against its gates. What has no change (newly failing) is one: before the repair there was none."""
    after, change = _measured(comparison.differences)
    if comparison.bias:
        after["bias"], change["bias"] = comparison.bias.mean["after"].rate, comparison.bias.mean_change["after"].rate
    judged = judge_repair(gates, after, change)
    if not gates.slices:
        return judged
    rates: dict[str, dict[str, Rate]] = {}
    moved: dict[str, dict[str, Rate]] = {}
    for of in comparison.slices or ():
        rates[of.attribute] = {one.value: _joint(one.after, one.joint_after, one.pairs) for one in of.values}
        moved[of.attribute] = {one.value: _joint(one.change, one.joint_change, one.pairs) for one in of.values}
    return judged + judge_slices(gates.slices, rates, moved, f"repairs.{comparison.audit}.gates.slices")


def cheapest(gates: Gates, comparison: Comparison) -> Cheapest | None:
    """The checkpoint with the fewest steps that passes all gates; None where none does, or can be judged by all."""
    for found in comparison.checkpoints or ():  # of fewest steps first
        if not gates.slices and all_passed(judge_repair(gates, *_measured(found.differences))):
            return Cheapest(folder=found.folder, steps=found.steps)
    return None


def _measured(differences: Mapping[str, Difference]) -> tuple[dict[str, Rate], dict[str, Rate]]:
    """By measure, the value after the repair and the change."""
    after = {
        measure: RateRecord(value=entry.after, low=entry.after_low, high=entry.after_high, n=entry.pairs).rate
        for measure, entry in differences.items()
    }
    return after, {measure: entry.moved for measure, entry in differences.items()}


def _joint(value: float | None, joint: Bounds, n: int) -> Rate:
    """A value with the interval that holds together with those of all other values."""
    return RateRecord(value=value, low=joint.low, high=joint.high, n=n).rate


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
        if not isinstance(gate, BoundsOfGate):
            continue
        for key, bound in gate.model_dump(exclude_none=True).items():
            rates = change if key.startswith("change") else after
            entries.append(judge(f"{measure}.{key}", bound, rates.get(measure), upper=key.endswith("max")))
    return entries


def judge_slices(
    gates: Mapping[str, SliceGate],
    rates: Mapping[str, Mapping[str, Rate]],
    changes: Mapping[str, Mapping[str, Rate]],
    where: str,
) -> list[Gate]:
    """Judge every value of attributes by the one whose interval reaches highest.

    Args:
        gates: the bounds by attribute.
        rates: attribute -> value -> failure rate, with an interval that holds together with those of all others: which
            one is the worst is seen from the same probes.
        changes: attribute -> value -> after minus before, likewise; empty where there is no repair.
        where: the block, for messages.

    Raises:
        UsageError: when an attribute is not known.
    """
    if errors := unknown_attributes(gates, rates, where):
        raise UsageError("\n".join(errors))
    return [
        _judge_worst(f"slices.{attribute}.{key}", bound, (changes if key.startswith("change") else rates)[attribute])
        for attribute, gate in gates.items()
        for key, bound in gate.bounds.items()
    ]


def _judge_worst(name: str, bound: float, rates: Mapping[str, Rate]) -> Gate:
    """Hold the value that reaches highest against a bound; not judged if one has no probes and none fails."""
    measured = {value: rate for value, rate in rates.items() if not np.isnan(rate.value)}
    worst = max(measured, key=lambda value: measured[value].high, default=None)
    gate = judge(name, bound, None if worst is None else measured[worst], upper=True)
    unmeasured = next((value for value in rates if value not in measured), None)
    if gate.passed is not False and unmeasured is not None:
        gate, worst = judge(name, bound, None, upper=True), unmeasured
    return gate.having(slice=worst)


def all_passed(gates: Sequence[Gate]) -> bool | None:
    """Whether all gates passed: False if one failed; else None if one could not be judged, or if there are none."""
    results = [gate.passed for gate in gates]
    if False in results:
        return False
    return None if None in results or not results else True
