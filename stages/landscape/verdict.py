"""The verdict on a repair: whether its gates passed, and its effects in sentences."""

from collections.abc import Sequence

from stages.landscape.compare import change_in_points
from stages.landscape.frontier import at_equal_harm
from stages.landscape.gates import all_passed, cheapest, light_of, repair_concerns, repair_gates, worsened
from stages.params import Gates
from stages.records import Comparison, Difference, Gate, Plan, RepairVerdict
from stages.records.repair import Cheapest, MustPass


def conclude(comparison: Comparison, plan: Plan, bounds: Gates, must_pass: MustPass | None = None) -> RepairVerdict:
    """Return the verdict on a repair, given its gates and the pairs that it must pass, if there are any."""
    gates, fewest = repair_gates(bounds, comparison), cheapest(bounds, comparison)
    concerns = repair_concerns(bounds, gates, comparison)
    return RepairVerdict(
        audit=comparison.audit,
        passed=all_passed(gates),
        gates=list(gates),
        light=light_of(gates, concerns),
        concerns=concerns,
        decided_by=plan.decided_by,
        reviewer=plan.reviewer,
        reason=plan.reason or "",
        statement=statement(comparison, plan, gates, fewest, must_pass),
    ).having(by=plan.by or None, agreement=plan.agreement, ceiling=plan.ceiling, cheapest=fewest)


def statement(
    comparison: Comparison,
    plan: Plan,
    gates: Sequence[Gate],
    fewest: Cheapest | None = None,
    must_pass: MustPass | None = None,
) -> str:
    """Describe the verdict in a few sentences; states first if a rule decided, and always mentions unjudged gates."""
    said = ["Decided by policy, no human."] if plan.decided_by == "policy" else []
    failed, unjudged = ([gate.named for gate in gates if gate.passed is result] for result in (False, None))
    if failed:
        said.append(f"Failed: {', '.join(failed)}.")
    if unjudged:
        said.append(f"Not judged, because there was nothing to measure: {', '.join(unjudged)}. This is not a pass.")
    if plan.targets and comparison.frontier and comparison.frontier.published.share == 0:
        said.append("Nothing was changed, as the repair would break too much.")
    worse = worsened(comparison)
    if must_pass and must_pass.failing:
        worse = [*worse, f"{must_pass}."]
    if not (failed or unjudged):  # readers who stop here must not mistake harm for a pass
        said.append("No gates were set." if not gates else "No gate failed, but:" if worse else "All gates passed.")
    said += worse
    said += [*beside_control(comparison), *at_same_harm(comparison), *within_margins(gates)]
    if not plan.targets:
        said.append("The plan repairs no mode, so no improvement was expected; the model is judged as it is.")
    else:
        found = _in_targets(comparison.differences["target_failure_rate"])
        said += [found] if found not in said else []
        if comparison.some_invalid:
            counted = comparison.differences["target_not_passing"]
            said.append(f"Counting invalid probes as failures: {change_in_points(counted.moved)}.")
    if must_pass:
        kept = str(must_pass)
        said += [] if must_pass.failing else [f"{kept[0].upper()}{kept[1:]}."]
        said.append(f"The items of these pairs, {len(plan.learnt):,}, do not judge it, as it may learn them.")
    said += beside_noise(comparison)
    if fewest is not None:
        said.append(
            f"A shorter training of {fewest.steps:,} steps passes all gates: restructure/models/{fewest.folder}."
        )
    return " ".join(said)


def beside_control(comparison: Comparison) -> list[str]:
    """Describe whether the target modes improved more than under the control; empty without a control."""
    entry, found = comparison.targeting, comparison.differences["target_failure_rate"]
    if entry is None:
        return []
    change, clean = change_in_points(entry.rate), comparison.control == "clean"
    cause = "training on changed inputs" if clean else "aiming the repair"
    other = "as many steps on unchanged inputs" if clean else "the control"
    if entry.helped:
        return [f"{cause.capitalize()} helped: {change} against {other} in the target modes."]
    if entry.rate.low > 0:
        return [f"{cause.capitalize()} did worse than {other} in the target modes: {change}."]
    said = f"In the target modes, the repair was no better than {other} ({change}): {cause} gained nothing measurable."
    if found.moved.high < 0 and found.control is not None and found.control.moved.high < 0:
        return [said, "The control improved these modes too."]
    return [said]


def at_same_harm(comparison: Comparison) -> list[str]:
    """Say what aiming is worth where repair and control break as much; empty if that was not measured."""
    equal = comparison.frontier.equal_harm if comparison.frontier else None
    return [at_equal_harm(equal)] if equal else []


def within_margins(gates: Sequence[Gate]) -> list[str]:
    """Say in at most one sentence which gates showed that the repair is superior, or not inferior, to its control."""
    found: dict[str, list[str]] = {}
    for gate in gates:
        measure, _, bound = gate.gate.partition(".")
        better = "minus_control_min" if measure == "clean_quality" else "minus_control_max"
        if bound != better or gate.passed is None:
            continue
        superior = gate.bound >= 0 if measure == "clean_quality" else gate.bound <= 0
        shown, missed = ("superior", "not shown to be superior") if superior else ("not inferior", "perhaps inferior")
        found.setdefault(shown if gate.passed else missed, []).append(measure.replace("_", " "))
    told = "; ".join(f"{word} in {', '.join(measures)}" for word, measures in found.items())
    return [f"Compared with the control, by the gates' margins, the repair is {told}."] if told else []


def beside_noise(comparison: Comparison) -> list[str]:
    """Compare the improvement in the target modes with the noise floor; empty without either."""
    entry, found = comparison.noise, comparison.differences["target_failure_rate"]
    if entry is None or found.noise is None or not found.moved.value < 0:
        return []
    where = "exceeds" if entry.beyond else "is within"
    again = f"the unchanged model, queried again, differs by {change_in_points(found.noise.moved)}."
    if found.moved.high >= 0:
        return [f"The improvement in the target modes is not significant: its interval includes zero; {again}"]
    return [f"The improvement in the target modes {where} the noise floor: {again}"]


def _in_targets(found: Difference) -> str:
    """Describe the change of the failure rate in the target modes."""
    if not found.moved.n:
        return "Nothing was measured in the target modes."
    change = f"from {found.before:.1%} to {found.after:.1%}"
    if found.moved.low > 0:
        return f"In the target modes, failures rose {change}."
    if found.moved.high < 0:
        return f"In the target modes, failures fell {change}."
    return f"In the target modes, failures went {change}, which may be chance: {change_in_points(found.moved)}."
