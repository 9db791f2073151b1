"""Gates: bounds on measurements. A gate passes only if the whole 95% interval is on the right side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stages.core.errors import UsageError
from stages.landscape.bias import largest_bias
from stages.params import GateConfig as BoundsOfGate
from stages.params import Gates, LandscapeGates
from stages.params.slices import SliceGate, unknown_attributes
from stages.records import Comparison, Difference, Gate, Landscape, Rate, RateRecord
from stages.records.repair import Cheapest
from stages.records.slices import Bounds


def judge(name: str, bound: float, rate: Rate | None, *, upper: bool) -> Gate:
    """Check a measurement against one bound.

    Args:
        name: for example "target_failure_rate.change_max".
        rate: the measurement; if it is None or NaN, nothing is judged (`passed` is null).
        upper: whether the interval has to be at or below the bound, otherwise at or above it.
    """
    if rate is None or np.isnan(rate.value):
        return Gate(gate=name, bound=bound, value=None, low=None, high=None, passed=None)
    passed = rate.high <= bound if upper else rate.low >= bound
    return Gate(gate=name, bound=bound, value=rate.value, low=rate.low, high=rate.high, passed=passed)


def landscape_gates(gates: LandscapeGates | None, landscape: Landscape) -> list[Gate]:
    """Check a landscape against its gates."""
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
    """Check a repair against its gates. The rate of newly failing pairs is itself a change, as it is 0 before."""
    measured = _measured(comparison.differences)
    if bias := comparison.bias:
        measured["bias"] = {"": bias.mean["after"].rate, "change": bias.mean_change["after"].rate}
    judged = judge_repair(gates, measured)
    if not gates.slices:
        return judged
    rates: dict[str, dict[str, Rate]] = {}
    moved: dict[str, dict[str, Rate]] = {}
    for of in comparison.slices or ():
        rates[of.attribute] = {one.value: _joint(one.after, one.joint_after, one.pairs) for one in of.values}
        moved[of.attribute] = {one.value: _joint(one.change, one.joint_change, one.pairs) for one in of.values}
    return judged + judge_slices(gates.slices, rates, moved, f"repairs.{comparison.audit}.gates.slices")


def cheapest(gates: Gates, comparison: Comparison) -> Cheapest | None:
    """Return the checkpoint with the fewest steps that passes all gates; None if none does.

    Checkpoints have neither slices nor a control beside them. A gate that compares with one, like a gate by slice,
    cannot be judged, and what was not judged did not pass: with such gates no checkpoint is proposed.
    """
    for found in comparison.checkpoints or ():  # ordered by steps
        if not gates.slices and all_passed(judge_repair(gates, _measured(found.differences))):
            return Cheapest(folder=found.folder, steps=found.steps)
    return None


def _measured(differences: Mapping[str, Difference]) -> dict[str, dict[str, Rate]]:
    """Return by measure what `judge_repair` judges."""
    measured = {}
    for measure, entry in differences.items():
        after = RateRecord(value=entry.after, low=entry.after_low, high=entry.after_high, n=entry.pairs)
        measured[measure] = {"": after.rate, "change": entry.moved}
        if entry.control and entry.control.repair_minus_control:
            measured[measure]["minus_control"] = entry.control.repair_minus_control.rate
    return measured


def _joint(value: float | None, joint: Bounds, n: int) -> Rate:
    """Combine a value with its interval that is simultaneous for all values."""
    return RateRecord(value=value, low=joint.low, high=joint.high, n=n).rate


def judge_landscape(
    gates: LandscapeGates | None, overall: Rate, modes: Sequence[Rate], bias: Rate | None = None
) -> list[Gate]:
    """Judge a landscape. Without a failure mode, the worst region with evidence is all of use.

    Args:
        overall: failure rate in use.
        modes: failure rates of the failure modes.
        bias: bias of the subject with the highest upper bound; None for a task without tallies.
    """
    if gates is None:
        return []
    worst = max(modes, key=lambda rate: rate.high, default=overall)
    bounds = [
        ("max_failure_rate", gates.max_failure_rate, overall),
        ("max_mode_rate", gates.max_mode_rate, worst),
        ("max_bias", gates.max_bias, bias),
    ]
    return [judge(name, bound, rate, upper=True) for name, bound, rate in bounds if bound is not None]


def judge_repair(gates: Gates, measured: Mapping[str, Mapping[str, Rate]]) -> list[Gate]:
    """Judge a repair.

    Args:
        measured: measure -> what a bound's name begins with: "" for the value after the repair, "change" for that minus
            before, "minus_control" for that minus after the control.
    """
    entries = []
    for measure in type(gates).model_fields:
        gate = getattr(gates, measure)
        if not isinstance(gate, BoundsOfGate):
            continue
        for key, bound in gate.model_dump(exclude_none=True).items():
            kind, _, side = key.rpartition("_")
            rate = measured.get(measure, {}).get(kind)
            entries.append(judge(f"{measure}.{key}", bound, rate, upper=side == "max"))
    return entries


def judge_slices(
    gates: Mapping[str, SliceGate],
    rates: Mapping[str, Mapping[str, Rate]],
    changes: Mapping[str, Mapping[str, Rate]],
    where: str,
) -> list[Gate]:
    """Judge all values of an attribute by the one with the highest upper bound.

    Args:
        gates: the bounds by attribute.
        rates: attribute -> value -> failure rate, with intervals simultaneous for all values, because the same probes
            also select the worst value.
        changes: attribute -> value -> after minus before, also simultaneous; empty if there is no repair.
        where: the block's name for messages.

    Raises:
        UsageError: if an attribute is unknown.
    """
    if errors := unknown_attributes(gates, rates, where):
        raise UsageError("\n".join(errors))
    return [
        _judge_worst(f"slices.{attribute}.{key}", bound, (changes if key.startswith("change") else rates)[attribute])
        for attribute, gate in gates.items()
        for key, bound in gate.bounds.items()
    ]


def _judge_worst(name: str, bound: float, rates: Mapping[str, Rate]) -> Gate:
    """Check the value with the highest upper bound; not judged if a value has no probes and no value fails the gate."""
    measured = {value: rate for value, rate in rates.items() if not np.isnan(rate.value)}
    worst = max(measured, key=lambda value: measured[value].high, default=None)
    gate = judge(name, bound, None if worst is None else measured[worst], upper=True)
    unmeasured = next((value for value in rates if value not in measured), None)
    if gate.passed is not False and unmeasured is not None:
        gate, worst = judge(name, bound, None, upper=True), unmeasured
    return gate.having(slice=worst)


def all_passed(gates: Sequence[Gate]) -> bool | None:
    """Whether all gates passed: False if one failed; otherwise None if one could not be judged, or there are none."""
    results = [gate.passed for gate in gates]
    if False in results:
        return False
    return None if None in results or not results else True
