"""The gate where a person decides: between the landscape and the plan.

The audit flow asks here in its own body, after the futures of the stages before `collect_feedback` are collected and
before that stage is submitted. This is the one place where a deployed flow will be able to suspend itself and be
resumed days later (`suspend_flow_run` must be called exactly there): on resume the body starts from its top, DVC
finds nothing to do up to here, and this answers None.
"""

from __future__ import annotations

from stages.files import stage_dir
from stages.params import Params

GATED = "collect_feedback"


def waits_for_person(params: Params, audit: str) -> bool:
    """Whether the audit leaves the decision to a person at all."""
    return audit in params.repairs and params.repairs[audit].feedback.policy == "wait"


def needs_decision(params: Params, audit: str) -> str | None:
    """Return the hash of the audit's landscape if it awaits a person's decision, else None.

    An audit without a landscape needs none yet: its earlier stages say what is wrong.
    """
    if not waits_for_person(params, audit) or not (stage_dir(audit, "summarize") / "landscape.json").exists():
        return None
    from stages.decisions import standing

    now = standing(params, audit)
    return None if now.complete else now.landscape


def how_to_decide(audit: str) -> str:
    """What the person is told."""
    return f"{audit} waits for a decision on its landscape: run `faded review {audit}`, then this command again"
