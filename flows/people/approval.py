"""The gate between the landscape and the plan, where a person decides.

Commands and deployed flows share what is here: time limits, and what happens after a decision. How a deployed flow
waits without a process is in flows/people/suspend.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from flows.request import (
    close_request,
    minutes,
    needs_decision,
    open_request,
    present,
    read_request,
    waits_for_person,
)
from stages.core.git import git
from stages.params import Params

if TYPE_CHECKING:
    from stages.decisions import RecordedDecision, Via
    from stages.decisions.files import DecisionFile
    from stages.decisions.model import Decision


def expire(params: Params, audit: str) -> RecordedDecision | None:
    """Record a rejection if the audit's landscape waited longer than `feedback.timeout_hours`.

    No timer runs in the background: the next process that looks records the rejection and sends the notification.

    Returns:
        The recorded decision, None if nothing had to be recorded.
    """
    request = read_request(audit)
    if request is None or request.landscape is None:
        return None
    landscape = needs_decision(params, audit)
    if landscape is None or landscape != request.landscape:
        return None
    request = open_request(params, audit)  # with the limit that params.yaml sets now
    if request.expires is None or request.expires > datetime.now(UTC):
        return None
    from stages.decisions import AlreadyDecided, Decision, record_decision
    from stages.decisions.names import NOBODY

    waited = (request.expires - request.asked).total_seconds() / 3600
    reason = f"nobody decided within {waited:g} hours, asked at {minutes(request.asked)}"
    no = Decision(landscape=landscape, reviewer=NOBODY, reason=reason, approve=False, modes=[])
    try:
        kept = record_decision(params, audit, no, "time-out")
    except AlreadyDecided:  # by somebody else, just now
        return None
    _notify(
        audit, f"{audit} was rejected: {reason}; to decide after all: `faded review {audit} --revise`", kept.decision
    )
    wake(params, audit)
    return kept.decision


def decide(
    params: Params,
    audit: str,
    decision: Decision,
    via: Via,
    *,
    revise: bool = False,
    seen: Sequence[str] | None = None,
) -> tuple[DecisionFile, list[str]]:
    """Record a decision and resume the runs that wait for it. It is signed if the audit lists keys.

    Args:
        params: the workspace's parameters.
        audit: the audit whose landscape is decided on.
        decision: the person's decision.
        via: how it was entered.
        revise: whether it replaces an earlier decision.
        seen: SHA-256 of the decisions that the person was shown, if any; see `record_decision`.

    Returns:
        The recorded decision, and sentences about the runs that were resumed.

    Raises:
        UsageError: as in `record_decision` and `flows.people.signing.signer`; AlreadyDecided also if the time is up.
    """
    kept = record(params, audit, decision, via, revise=revise, seen=seen)
    return kept, wake(params, audit)


def record(
    params: Params,
    audit: str,
    decision: Decision,
    via: Via,
    *,
    revise: bool = False,
    seen: Sequence[str] | None = None,
) -> DecisionFile:
    """Like `decide`, but without resuming the runs that wait for the decision."""
    from flows.people.signing import signer
    from stages.decisions import record_decision

    expire(params, audit)
    name, key = signer(params, audit, decision.reviewer)
    decision = decision.model_copy(update={"reviewer": name})
    return record_decision(params, audit, decision, via, revise=revise, seen=seen, key=key)


def wake(params: Params, audit: str) -> list[str]:
    """Resume flow runs that are suspended on the audit if its landscape is decided now; called after any decision.

    Runs that are suspended on an earlier landscape, or on an audit that no longer asks anybody, are cancelled.

    Returns:
        Sentences about what was done; empty if no run waits. An error is reported as a sentence, not raised: the
        decision is recorded, so the next run of the audit continues from it.
    """
    try:
        return _wake(params, audit)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return [f"the run that waits for {audit} could not be resumed ({why}): the next run of {audit} continues"]


def _wake(params: Params, audit: str) -> list[str]:
    request = read_request(audit)
    if request is None:
        return []
    now = None
    if waits_for_person(params, audit):
        from stages.decisions import standing

        if present(audit) is None or not (now := standing(params, audit)).complete:
            return []
    said: list[str] = []
    left: dict[str, str] = {}
    if request.runs:
        from flows.people.waiting import end_wait

        said, left = end_wait(audit, now, request.runs)
    close_request(audit, left)
    return said


def settle(params: Params, audit: str) -> list[str]:
    """Do what every run of an audit starts with: record a time-out, and wake runs that missed an earlier decision.

    Returns:
        Sentences about what was done. Each names the audit, as people read them among those of other audits.
    """
    said = []
    if (no := expire(params, audit)) is not None:
        said.append(f"rejected: {no.reason}")
    if read_request(audit) is not None and needs_decision(params, audit) is None:
        said += wake(params, audit)
    return [f"{audit}: {line}" for line in said]


def _notify(audit: str, text: str, no: RecordedDecision) -> None:
    from flows.people.waiting import deployed_run
    from flows.recur.notify import notify
    from flows.views.endings import rejection_result

    if deployed_run() is None:  # a deployed run sends its own notification when it ends
        notify("rejected", audit, text, rejection_result(no))


def git_user() -> str:
    """The person's name as configured in git; empty if it is not set."""
    return git("config", "user.name") or ""
