"""The gate between the landscape and the plan, where a person decides: time limits, signatures, and what comes next.

Commands, pages and deployed flows share what is here. How a deployed flow waits without a process is in
flows/people/suspend.py. Public keys are listed in params.yaml (`repairs.AUDIT.feedback.keys`, `faded reviewers`); what
a signature covers, and how it is verified, is in `stages.decisions.identity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.request import (
    close_request,
    current_standing,
    decided_so_far,
    minutes,
    needs_decision,
    open_request,
    read_request,
    waits_for_person,
)
from stages.core.errors import UsageError
from stages.core.git import git
from stages.params import Params

if TYPE_CHECKING:
    from stages.decisions import Decision, RecordedDecision, Standing, Via


class DecisionOutcome(NamedTuple):
    """A recorded decision; `next_steps` are sentences about what happens next."""

    audit: str
    reviewer: str
    approve: bool
    next_steps: list[str]


def expire(params: Params, audit: str) -> RecordedDecision | None:
    """Record and return a rejection if the audit's landscape waited longer than `feedback.timeout_hours`.

    No timer runs in the background: the next process that looks records the rejection and sends the notification.
    """
    request = read_request(audit)
    if request is None or (landscape := request.landscape) is None or landscape != needs_decision(params, audit):
        return None
    request = open_request(params, audit)  # with the limit that params.yaml sets now
    if request.expires is None or request.expires > datetime.now(UTC):
        return None
    from stages.decisions import AlreadyDecided, Decision, record_decision, standing
    from stages.decisions.names import NOBODY

    waited, so_far = (request.expires - request.asked).total_seconds() / 3600, decided_so_far(standing(params, audit))
    who = f"only {so_far}" if so_far else "nobody decided"
    reason = f"{who} within {waited:g} hours, asked at {minutes(request.asked)}"
    no = Decision(landscape=landscape, reviewer=NOBODY, reason=reason, approve=False, modes=[])
    try:
        kept = record_decision(params, audit, no, "time-out")
    except AlreadyDecided:  # by somebody else, just now
        return None
    from flows.people.waiting import deployed_run
    from flows.recur.notify import notify
    from flows.views.labels import rejection_result

    if deployed_run() is None:  # a deployed run sends its own notification when it ends
        told = f"{audit} was rejected: {reason}; to decide after all: `faded review {audit} --revise`"
        notify("rejected", audit, told, rejection_result(kept.decision))
    wake(params, audit)
    return kept.decision


def key_name(reviewer: str) -> str:
    """The name of a reviewer's key in `stages.core.keys`."""
    return f"reviewer {reviewer}"


def signer(params: Params, audit: str, reviewer: str) -> tuple[str, Any]:
    """The name of who decides as it is listed, and the private key that signs for them; None if no keys are listed.

    Raises a UsageError if the name is invalid; if keys are listed, also if none is listed for it, or this machine does
    not have the private key.
    """
    from stages.core.keys import has_key, key_path, private_key
    from stages.decisions import listed_keys, read_chain
    from stages.decisions.files import refuse_alike
    from stages.decisions.identity import key_id_of, public_line
    from stages.decisions.names import clean_name, same_person

    name, keys = clean_name(reviewer), listed_keys(params, audit)
    if not keys:
        refuse_alike(name, read_chain(audit), keys)
        return name, None
    listed = next((known for known in keys if same_person(known, name)), None)
    if listed is None:
        raise UsageError(
            f"decisions on {audit} are signed, and no key of {name!r} is listed (repairs.{audit}.feedback.keys has"
            f" {', '.join(keys)}): say --reviewer NAME, or list yours first, `faded reviewers add '{name}'`"
        )
    if not has_key(key_name(listed)):
        raise UsageError(
            f"the private key of {listed!r} is not on this machine ({key_path(key_name(listed))} is missing): decide"
            " where it is, and commit the decision there"
        )
    key = private_key(key_name(listed))
    if (line := public_line(key)) != keys[listed]:
        raise UsageError(
            f"the key of {listed!r} on this machine is {key_id_of(line)}, params.yaml lists {key_id_of(keys[listed])}:"
            f" decide where that one is, or list this one: `faded reviewers remove '{listed}'`, then `add`"
        )
    return listed, key


def decide(
    params: Params, audit: str, decision: Decision, via: Via, *, revise: bool = False, seen: Sequence[str] | None = None
) -> DecisionOutcome:
    """Record a decision, signed if the audit lists keys, resume the runs that wait for it, and say what comes next.

    Raises a UsageError as in `record_decision` and `signer`; AlreadyDecided also if the time is up.

    Args:
        revise: whether it replaces an earlier decision.
        seen: SHA-256 of the decisions that the person was shown, if any; see `record_decision`.
    """
    from stages.decisions import identity_of, listed_keys, record_decision, standing
    from stages.decisions.names import same_person

    expire(params, audit)
    name, key = signer(params, audit, decision.reviewer)
    decision = decision.model_copy(update={"reviewer": name})
    before = standing(params, audit).kept if revise else ()
    kept = record_decision(params, audit, decision, via, revise=revise, seen=seen, key=key)
    replaced = [one.decision for one in before if one.sha256 in kept.decision.revises]
    resumed = wake(params, audit)
    by = identity_of(kept.decision, listed_keys(params, audit), audit)
    steps = [f"Decided by {by.statement}.", f"Commit {kept.path}: it belongs in git.", *map(sentence, resumed)]
    if others := [one.reviewer for one in replaced if one.via != "time-out" and not same_person(one.reviewer, name)]:
        steps.insert(1, f"This replaces the decision{'s' * (len(others) > 1)} of {', '.join(others)}, kept on record.")
    if params.repair(audit).feedback.policy != "wait":
        steps.append(
            f"A rule decides for {audit} (repairs.{audit}.feedback.policy): set it to wait, or this is ignored."
        )
    elif missing := standing(params, audit).missing:
        steps.append(f"{audit} needs {missing} more reviewer{'s' if missing > 1 else ''}.")
    elif not resumed:
        goes = "continues from here" if decision.approve else "ends there, as with a failed gate"
        steps.append(f"Then `faded audit {audit}` {goes}.")
    return DecisionOutcome(audit, name, decision.approve, steps)


def sentence(text: str) -> str:
    """A message as a sentence: with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def wake(params: Params, audit: str) -> list[str]:
    """Resume flow runs that are suspended on the audit if its landscape is decided now, and cancel outdated ones.

    Returns sentences about what was done. An error is one of them: the decision is recorded, so the next run continues.
    """
    try:
        request, now = read_request(audit), None
        if request is None:
            return []
        if waits_for_person(params, audit):
            now = current_standing(params, audit)
            if now is None or not now.complete:
                return []
        resumed: list[str] = []
        left: dict[str, str] = {}
        if request.runs:
            from flows.people.waiting import end_wait

            resumed, left = end_wait(audit, now, request.runs)
        close_request(audit, left)
        return resumed
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        return [f"the run that waits for {audit} could not be resumed ({why}): the next run of {audit} continues"]


def settle(params: Params, audit: str) -> list[str]:
    """Do what every run of an audit starts with: record a time-out, and wake runs that missed an earlier decision.

    Returns sentences about what was done. Each names the audit, as people read them among those of other audits.
    """
    no = expire(params, audit)
    lines = [] if no is None else [f"rejected: {no.reason}"]
    if read_request(audit) is not None and needs_decision(params, audit) is None:
        lines += wake(params, audit)
    return [f"{audit}: {line}" for line in lines]


def open_standing(params: Params, audit: str, revise: bool) -> Standing:
    """The decisions so far on a landscape to be reviewed. Raises AlreadyDecided if it needs no more, unless revised."""
    from stages.decisions import AlreadyDecided, standing

    expire(params, audit)
    now = standing(params, audit)
    if now.complete and not revise:
        raise AlreadyDecided(
            f"landscape {now.landscape} of {audit} was {decided_so_far(now)}; to decide again on purpose:"
            f" `faded review {audit} --revise`",
            now.rejection or now.decisions[-1],
        )
    return now


def git_user() -> str:
    """The person's name as configured in git; empty if it is not set."""
    return git("config", "user.name") or ""
