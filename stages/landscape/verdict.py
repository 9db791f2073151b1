"""The verdict on a repair: whether its gates passed, and what came of it in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from stages.landscape.bias import newly_skewed
from stages.landscape.gates import all_passed
from stages.records import Comparison, Gate, Plan, RepairVerdict


def conclude(comparison: Comparison, plan: Plan, gates: Sequence[Gate]) -> RepairVerdict:
    """The verdict on a repair."""
    return RepairVerdict(
        audit=comparison.audit,
        passed=all_passed(gates),
        gates=list(gates),
        decided_by=plan.decided_by,
        reviewer=plan.reviewer,
        reason=plan.reason or "",
        statement=statement(comparison, plan, gates),
    ).having(by=plan.by or None, agreement=plan.agreement)


def statement(comparison: Comparison, plan: Plan, gates: Sequence[Gate]) -> str:
    """The verdict in a few sentences; that a rule decided comes first, and an unjudged gate is never passed over."""
    said = ["Decided by policy, no human."] if plan.decided_by == "policy" else []
    failed, unjudged = ([gate.named for gate in gates if gate.passed is result] for result in (False, None))
    if failed:
        said.append(f"Failed: {', '.join(failed)}.")
    if unjudged:
        said.append(f"Not judged, because there was nothing to measure: {', '.join(unjudged)}; so this is not a pass.")
    if not (failed or unjudged):
        said.append("All gates passed." if gates else "No gates were set.")
    if not plan.targets:
        said.append("The plan repairs no mode, so no improvement was expected; the model is judged as it is.")
    else:
        d = comparison.differences["target_failure_rate"]
        said.append(f"In the target modes failures went from {d.before:.1%} to {d.after:.1%}.")
    for told in (entry.statement for entry in (comparison.targeting, comparison.noise) if entry):
        if told:
            said.append(f"{told[0].upper()}{told[1:]}.")
    if regions := comparison.failures_moved.regions:
        said.append("Failures rose elsewhere: " + "; ".join(region.text for region in regions) + ".")
    if worse := [f"{of.attribute} {one.value}" for of in comparison.slices or () for one in of.values if one.worse]:
        said.append(f"Failures rose significantly for {', '.join(worse)}.")
    skewed = newly_skewed(comparison.bias) if comparison.bias else []
    if skewed:
        named = ", ".join(f"{subject.attribute} of {subject.subject}" for subject in skewed)
        said.append(f"Newly skewed beyond chance: {named}.")
    return " ".join(said)
