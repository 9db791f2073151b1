"""Turn people's decisions on this landscape into the plan.

A decision is a file in git, data/<audit>/decisions/<landscape hash>.yaml, and is valid only for the landscape it names.
With `feedback.reviewers: 2` two people have to decide, and `stages.decisions.merge` combines their decisions.
With `feedback.policy: top-k` or `worst-groups` a rule decides, and every page that shows the plan states this.
"""

from collections.abc import Sequence

from stages.command import stage_main
from stages.core.errors import DecisionNeeded, RejectedError
from stages.decisions import Standing, decisions_dir, landscape_hash, merge_decisions, read_must_pass, standing
from stages.decisions.rule import by_rule
from stages.params import load_params
from stages.provenance import provenance
from stages.records import ModeRecord, Plan, audit_folder
from stages.records.base import FlatMetrics


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


def by_person(audit: str, now: Standing, modes: Sequence[ModeRecord]) -> Plan:
    """Merge the decisions made so far into a plan.

    Raises a RejectedError if a reviewer rejected the landscape, and DecisionNeeded if more reviewers have to decide.
    """
    if (no := now.rejection) is not None:
        raise RejectedError(
            f"{'the time was up for' if no.via == 'time-out' else f'{no.reviewer} rejected'} landscape"
            f" {no.landscape} of {audit}, so no repair is made (reason: {no.reason or 'none given'}); to decide again:"
            f" `faded review {audit} --revise`"
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
