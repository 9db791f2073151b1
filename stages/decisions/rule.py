"""What a rule decides where no person does: `feedback.policy` top-k or worst-groups."""

from collections.abc import Sequence

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.decisions.model import NO_HUMAN
from stages.params import FeedbackConfig
from stages.records import Landscape, ModeRecord, Plan, PlannedMode
from stages.records.landscape import GroupRecord
from stages.tasks.contract import AND_LABEL


def by_rule(feedback: FeedbackConfig, landscape: Landscape, present: str) -> Plan:
    """Plan to repair the worst modes or groups, see `ruled_on`.

    Args:
        feedback: with the number of modes or groups to repair.
        landscape: with the modes found.
        present: the landscape's hash.
    """
    found = ruled_on(feedback, landscape)
    chosen = {mode.id for mode in found[: feedback.modes]}
    rule = f"top-{feedback.modes}: the worst modes are repaired"
    if feedback.policy == "worst-groups":
        rule = f"worst-groups: the {feedback.modes} that fail most, of those that fail more than others of their label"
    modes = [
        PlannedMode(
            id=mode.id,
            text=mode.text,
            region=mode.region,
            action="repair" if mode.id in chosen else "ignore",
            severity=1.0,
            reason=rule if mode.id in chosen else "beyond the rule's number",
        )
        for mode in found
    ]
    return Plan(
        landscape=present,
        decided_by="policy",
        statement=NO_HUMAN,
        reviewer=None,
        reason=rule,
        modes=modes,
        examples=[],
    )


def ruled_on(feedback: FeedbackConfig, landscape: Landscape) -> Sequence[ModeRecord | GroupRecord]:
    """Return what a rule chooses from, worst first.

    By `top-k` these are the modes, ordered by their failures beyond the overall rate. Modes are compared with all of
    use, so where one label fails more than others, they name the label. By `worst-groups` these are the groups of
    people that fail more than others of their label, or of the label that `feedback` names, ordered by failure rate.
    Raises a UsageError by `worst-groups`, if the landscape knows no such groups, or none with that label.
    """
    if feedback.policy != "worst-groups":
        return landscape.modes
    slices = landscape.slices
    known = [of for of in (slices.attributes if slices else ()) if of.attribute.endswith(AND_LABEL)]
    if not known:
        raise UsageError(
            "feedback.policy is worst-groups, but the landscape has no groups of people: name columns of a table in"
            " prepare.data.protected, or take the policy top-k"
        )
    ending = f", {feedback.label}" if feedback.label else ""
    if not any(one.value.endswith(ending) for of in known for one in of.values):
        labels = sorted({one.value.rpartition(", ")[2] for of in known for one in of.values})
        raise UsageError(f"feedback.label is {feedback.label!r}, expected one of {', '.join(map(repr, labels))}")
    items = {of.attribute: sum(one.items for one in of.values) for of in known}
    worse = [
        (name, one) for name, one in (slices.worse if slices else ()) if name in items and one.value.endswith(ending)
    ]
    regions = [Region({}, {name: (one.value,)}) for name, one in worse]
    return [
        GroupRecord(
            id=f"G{number}",
            text=region.describe(landscape.space),
            region=region.to_json(),
            probes=one.probes,
            failures=one.failures,
            estimate=one.rate or 0.0,
            rate=one.rate or 0.0,
            share=one.items / items[name],
        )
        for number, (region, (name, one)) in enumerate(zip(regions, worse, strict=True), 1)
    ]
