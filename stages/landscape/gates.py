"""Gates and the light. A gate bounds a measurement, and passes only if the whole 95% interval is on the right side.

The light says whether a careful person would deploy the model, and what speaks against it. Red: a gate failed. Green:
all gates passed, they bound how often the model may still fail and not only how far the repair may move it, and nothing
that was found lies above these bounds or got worse. Amber: everything between.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from stages.core.errors import UsageError
from stages.landscape.bias import largest_bias, newly_skewed
from stages.params import GateConfig as BoundsOfGate
from stages.params import Gates, LandscapeGates
from stages.params.slices import SliceGate, unknown_attributes
from stages.records import Comparison, Difference, Gate, Landscape, Rate, RateRecord
from stages.records.landscape import Light
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

    Raises a UsageError if an attribute is unknown.

    Args:
        rates: attribute -> value -> failure rate, with intervals simultaneous for all values, because the same probes
            also select the worst value.
        changes: attribute -> value -> after minus before, also simultaneous; empty if there is no repair.
        where: the block's name for messages.
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


NAMED = 3  # modes and kinds of items named in one sentence


def light_of(gates: Sequence[Gate], concerns: Sequence[str]) -> Light:
    """Return the light, given the gates as they were judged and all that speaks against deploying."""
    if any(gate.passed is False for gate in gates):
        return "red"
    return "amber" if concerns or not gates else "green"


def landscape_concerns(bounds: LandscapeGates | None, gates: Sequence[Gate], landscape: Landscape) -> list[str]:
    """Describe what speaks against deploying a model with this landscape although no gate failed."""
    most = bounds.max_failure_rate if bounds else None
    kinds = {
        f"{of.attribute} {one.value}": (one.rate, one.joint)
        for of in (landscape.slices.attributes if landscape.slices else ())
        for one in of.values
        if of.attribute not in (bounds.slices if bounds else {})
    }
    lacking = unbounded_landscape(bounds, len(landscape.modes))
    return [*_unjudged(gates), *lacking, *_suspected_above(landscape, bounds), *_kinds_above(kinds, most)]


def repair_concerns(bounds: Gates, gates: Sequence[Gate], comparison: Comparison) -> list[str]:
    """Describe what speaks against deploying a repaired model although no gate failed."""
    in_use, target = (gate.max if gate else None for gate in (bounds.failure_rate, bounds.target_failure_rate))
    kinds = {
        f"{of.attribute} {one.value}": (one.after, one.joint_after)
        for of in comparison.slices or ()
        for one in of.values
        if of.attribute not in bounds.slices
    }
    return [
        *_unjudged(gates),
        *unbounded_repair(bounds, len(comparison.modes)),
        *_modes_above(comparison, target),
        *_kinds_above(kinds, in_use),
        *worsened(comparison),
    ]


def unbounded_landscape(bounds: LandscapeGates | None, modes: int) -> list[str]:
    """Say what no gate on a landscape with so many modes bounds, in one sentence; empty if nothing is left open."""
    lacking = []
    if bounds is None or bounds.max_failure_rate is None:
        lacking.append("how often it may fail in use (max_failure_rate)")
    if modes and (bounds is None or bounds.max_mode_rate is None):
        lacking.append(f"how often it may fail in its {_modes(modes)} (max_mode_rate)")
    return _unbounded(lacking)


def unbounded_repair(bounds: Gates, modes: int) -> list[str]:
    """Say what no gate on the repair of so many modes bounds, in one sentence; empty if nothing is left open."""
    in_use, target, other = (
        gate is not None and gate.max is not None
        for gate in (bounds.failure_rate, bounds.target_failure_rate, bounds.other_failure_rate)
    )
    clean, lacking = bounds.clean_quality, []
    if not (in_use or (target and other)):
        lacking.append("how often it may still fail in use (failure_rate.max)")
    if modes and not target:
        lacking.append(f"how often it may still fail in its {_modes(modes)} (target_failure_rate.max)")
    if clean is None or (clean.min is None and clean.change_min is None):
        lacking.append("its quality on unchanged inputs (clean_quality.min)")
    return _unbounded(lacking)


def worsened(comparison: Comparison) -> list[str]:
    """Describe what a repair made worse beyond chance, one sentence for each part of the comparison."""
    said = []
    quality = comparison.differences["clean_quality"]
    if quality.moved.high < 0:
        said.append(f"On clean inputs, {quality.name} fell from {quality.before:.3f} to {quality.after:.3f}.")
    for part, where in (("target", "In the target modes"), ("other", "Outside the target modes")):
        kinds = {"failure_rate": "failures", "not_passing": "failing and invalid probes together"}
        for measure in kinds if comparison.some_invalid else ("failure_rate",):
            entry = comparison.differences[f"{part}_{measure}"]
            if entry.moved.low > 0:
                said.append(f"{where}, {kinds[measure]} rose from {entry.before:.1%} to {entry.after:.1%}.")
    if regions := comparison.failures_moved.regions:
        said.append("Failures rose elsewhere: " + "; ".join(region.text for region in regions) + ".")
    if worse := [f"{of.attribute} {one.value}" for of in comparison.slices or () for one in of.values if one.worse]:
        said.append(f"Failures rose significantly for {', '.join(worse)}.")
    if comparison.bias and (skewed := newly_skewed(comparison.bias)):
        named = ", ".join(f"{subject.attribute} of {subject.subject}" for subject in skewed)
        said.append(f"Newly skewed beyond chance: {named}.")
    return said


def _modes(count: int) -> str:
    return "confirmed failure mode" if count == 1 else f"{count:,} confirmed failure modes"


def _unjudged(gates: Sequence[Gate]) -> list[str]:
    named = [gate.named for gate in gates if gate.passed is None]
    return [f"Not judged, because there was nothing to measure: {', '.join(named)}."] if named else []


def _unbounded(lacking: Sequence[str]) -> list[str]:
    return [f"No gate bounds {'; nor '.join(lacking)}."] if lacking else []


def _modes_above(comparison: Comparison, bound: float | None) -> list[str]:
    """Name the modes that still fail above the bound, repaired or accepted; the worst first."""
    if bound is None:
        return []
    left = [mode for mode in comparison.modes if mode.after is not None and mode.after > bound]
    left.sort(key=lambda mode: -(mode.after or 0.0))
    said = [
        f"{mode.id}{'' if mode.action == 'repair' else ', not repaired,'}"
        f" {_rate(mode.after, mode.after_low, mode.after_high)}"
        for mode in left
    ]
    return [f"Still failing above the {bound:.0%} allowed in the target modes: {_few(said)}."] if said else []


def _suspected_above(landscape: Landscape, bounds: LandscapeGates | None) -> list[str]:
    """Name the regions that too few probes confirm, but whose whole interval lies above the bound for modes."""
    if bounds is None or bounds.max_mode_rate is None:
        return []
    above = [one for one in landscape.suspected if one.low is not None and one.low > bounds.max_mode_rate]
    said = [f"{one.text} {_rate(one.rate, one.low, one.high)}" for one in above]
    return [f"Suspected to fail above the {bounds.max_mode_rate:.0%} allowed in a mode: {_few(said)}."] if said else []


def _kinds_above(kinds: Mapping[str, tuple[float | None, Bounds]], bound: float | None) -> list[str]:
    """Name the kinds of items whose whole interval, simultaneous for all kinds, lies above the bound for all of use."""
    if bound is None:
        return []
    above = [
        (rate, f"{name} {_rate(rate, joint.low, joint.high)}")
        for name, (rate, joint) in kinds.items()
        if rate is not None and joint.low is not None and joint.low > bound
    ]
    said = [text for _, text in sorted(above, key=lambda kind: -kind[0])]
    return [f"Failing above the {bound:.0%} allowed in use: {_few(said)}."] if said else []


def _few(said: Sequence[str]) -> str:
    more = f", and {len(said) - NAMED:,} more" if len(said) > NAMED else ""
    return "; ".join(said[:NAMED]) + more


def _rate(value: float | None, low: float | None, high: float | None) -> str:
    """Format a rate with its interval: "80.5% (67.7–89.9%)"; what is named here has both."""
    return f"{value:.1%} ({100 * (low or 0.0):.1f}–{high:.1%})"
