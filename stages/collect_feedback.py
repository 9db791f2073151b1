"""Turn people's decisions on this landscape into the plan.

A decision is a file in git, data/<audit>/decisions/<landscape hash>.yaml, and is valid only for the landscape it names.
With `feedback.reviewers: 2` two people have to decide, and `stages.decisions.merge` combines their decisions.
With `feedback.policy: top-k` or `worst-groups` a rule decides, and every page that shows the plan states this.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.command import stage_main
from stages.concepts import Region
from stages.core.errors import DecisionNeeded, RejectedError, UsageError
from stages.decisions import (
    NO_HUMAN,
    Standing,
    decisions_dir,
    landscape_hash,
    merge_decisions,
    read_must_pass,
    standing,
)
from stages.params import FeedbackConfig, load_params
from stages.provenance import provenance
from stages.records import Landscape, ModeRecord, Plan, PlannedMode, audit_folder
from stages.records.base import FlatMetrics
from stages.records.landscape import GroupRecord
from stages.tasks.contract import AND_LABEL


def main(audit: str) -> None:
    """Run the stage for one audit."""
    params, here = load_params(), audit_folder(audit)
    feedback, landscape = params.repair(audit).feedback, here.summarize.landscape
    # Read once, so that the plan names the decisions it was made from.
    now = standing(params, audit) if feedback.policy == "wait" else None
    present = landscape_hash(audit)
    plan = by_rule(feedback, landscape, present) if now is None else by_person(audit, now, landscape.modes)
    plan = plan.having(must_pass=read_must_pass(audit, landscape.space) or None)
    actions = [mode.action for mode in plan.modes]
    counts = {action: actions.count(action) for action in ("repair", "accept", "ignore")}
    decided = {} if now is None else {kept.path.name: kept.sha256 for kept in now.kept}
    record = {**provenance(audit, params.audit(audit), computes=False), "decisions": decided}
    with here.collect_feedback.publish(record) as out:
        out.plan, out.metrics = plan, FlatMetrics(**counts, examples=len(plan.examples))
    said = [f"{n} to {action}" for action, n in counts.items()]
    said += [f"{n} example(s) rated or corrected"] if (n := len(plan.examples)) else []
    said += [f"{n} pair(s) of item and cell must pass"] if (n := len(plan.must_pass)) else []
    print(f"{plan.statement}: {', '.join(said)}")
    if plan.ceiling:
        print(plan.ceiling.statement)


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

    Raises:
        UsageError: by `worst-groups`, if the landscape knows no such groups, or none with that label.
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
            rate=one.rate or 0.0,
            share=one.items / items[name],
        )
        for number, (region, (name, one)) in enumerate(zip(regions, worse, strict=True), 1)
    ]


def by_person(audit: str, now: Standing, modes: Sequence[ModeRecord]) -> Plan:
    """Merge the decisions made so far into a plan.

    Raises:
        RejectedError: if a reviewer rejected the landscape.
        DecisionNeeded: if more reviewers have to decide.
    """
    if (no := now.rejection) is not None:
        raise RejectedError(
            f"{no.reviewer} rejected landscape {no.landscape} of {audit}, so no repair is made"
            f" (reason: {no.reason or 'none given'}); to decide again: `faded review {audit} --revise`"
        )
    if not now.complete:
        raise DecisionNeeded("\n".join([_asked(audit, now), *now.problems]))
    return merge_decisions(now.decisions, modes)


def _asked(audit: str, now: Standing) -> str:
    if now.decisions:
        said = f"{', '.join(d.reviewer for d in now.decisions)} decided on landscape {now.landscape} of {audit}"
        return f"{said}, {now.needed} reviewers are needed: `faded review {audit}`"
    others = {path.name.partition(".")[0] for path in decisions_dir(audit).glob("*.yaml")} - {now.landscape}
    before = f" (there are decisions on {len(others)} other landscape(s), which are not valid here)" if others else ""
    return f"nobody has decided on landscape {now.landscape} of {audit} yet{before}: `faded review {audit}`"


if __name__ == "__main__":
    stage_main(main)
