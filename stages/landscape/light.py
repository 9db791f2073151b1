"""The light of a verdict: whether a careful person would deploy the model, and what speaks against it.

Red: a gate failed. Green: all gates passed, they bound how often the model may still fail and not only how far the
repair may move it, and nothing that was found lies above these bounds or got worse. Amber: everything between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.landscape.bias import newly_skewed
from stages.params import Gates, LandscapeGates
from stages.records import Comparison, Gate, Landscape
from stages.records.landscape import Light
from stages.records.slices import Bounds

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
    return [*_unjudged(gates), *lacking, *_kinds_above(kinds, most)]


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
    """Format a rate with its interval: "80.5% (67.7–89.9%)"; modes and kinds named here have both."""
    return f"{value:.1%} ({100 * (low or 0.0):.1f}–{high:.1%})"
