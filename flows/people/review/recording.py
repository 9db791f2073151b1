"""Records a decision in its file, and resumes the flow that waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flows.people.approval import decide, expire
from flows.people.review.form import Fields, FormError
from stages.decisions import AlreadyDecided, Decision, Standing, Via, identity_of, listed_keys, standing
from stages.params import Params


class Outcome(NamedTuple):
    """A recorded decision.

    Args:
        audit: its audit.
        path: its file.
        reviewer: name of the reviewer.
        approve: whether they approved.
        said: sentences about what happens next.
    """

    audit: str
    path: Path
    reviewer: str
    approve: bool
    said: list[str]


def record(
    params: Params,
    audit: str,
    decision: Decision,
    via: Via,
    *,
    revise: bool = False,
    seen: Sequence[str] | None = None,
) -> Outcome:
    """Write a decision, resume what waits for it, and describe what comes next; see `flows.people.approval.decide`.

    Raises:
        UsageError: as in `flows.people.approval.decide`.
        AlreadyDecided: as in `flows.people.approval.decide`.
    """
    kept, woken = decide(params, audit, decision, via, revise=revise, seen=seen)
    by = identity_of(kept.decision, listed_keys(params, audit), audit)
    said = [_sentence(by.statement), f"Commit {kept.path}: it belongs in git.", *(_sentence(line) for line in woken)]
    if params.repair(audit).feedback.policy != "wait":
        said.append(
            f"A rule decides for {audit} (repairs.{audit}.feedback.policy): set it to wait, or this is ignored."
        )
    elif missing := standing(params, audit).missing:
        said.append(f"{audit} needs {missing} more reviewer{'s' if missing > 1 else ''}.")
    elif not woken:
        goes = "continues from here" if decision.approve else "ends there, as with a failed gate"
        said.append(f"Then `faded audit {audit}` {goes}.")
    return Outcome(audit, kept.path, decision.reviewer, decision.approve, said)


def in_whose_name(params: Params, audit: str, bound: str, fields: Fields) -> Fields:
    """The fields of a form in the name of the reviewer whose link opened the page.

    The server has the keys of everybody who decides on its machine. So if decisions are signed, it accepts them only on
    pages that were opened by a reviewer's own link.

    Args:
        params: the workspace's parameters.
        audit: the page's audit.
        bound: the reviewer; empty if the link was not for one reviewer.
        fields: the fields as sent.

    Raises:
        FormError: if a reviewer's own link is needed.
    """
    if bound:
        return {**fields, "reviewer": bound}
    if keys := listed_keys(params, audit):
        raise FormError(own_link(audit, keys))
    return fields


def own_link(audit: str, keys: Iterable[str]) -> str:
    """The message for somebody whose link does not identify them."""
    return (
        f"Decisions on {audit} are signed, so each reviewer ({', '.join(keys)}) needs a link of their own:"
        f" faded review {audit} --link --reviewer NAME"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def moment(time: str | datetime) -> str:
    """A time (ISO 8601 in UTC) for people."""
    when = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    return when.astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")


def open_standing(params: Params, audit: str, revise: bool) -> Standing:
    """The decisions so far on a landscape that is to be reviewed now.

    Raises:
        AlreadyDecided: if no more decisions are needed, unless an earlier one is to be revised.
    """
    expire(params, audit)
    now = standing(params, audit)
    if now.complete and not revise:
        raise AlreadyDecided(
            f"{', '.join(d.reviewer for d in now.decisions)} decided on landscape {now.landscape} of {audit} already;"
            f" to decide again on purpose: `faded review {audit} --revise`",
            now.rejection or now.decisions[-1],
        )
    return now
