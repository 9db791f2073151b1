"""From a decision to its file, and to the flow that waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from flows.approval import decide, expire
from flows.review.form import Fields, FormError
from stages.decisions import AlreadyDecided, Decision, Standing, Via, identity_of, listed_keys, standing
from stages.params import Params


class Outcome(NamedTuple):
    """A decision that was recorded.

    Args:
        audit: it is of.
        path: its file.
        reviewer: whose it is.
        approve: whether they approved.
        said: sentences: what happens now.
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
    """Write a decision, wake what waits for it, and say what comes next; arguments as of `flows.approval.decide`.

    Raises:
        UsageError: as `flows.approval.decide`.
        AlreadyDecided: as `flows.approval.decide`.
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

    The server has the keys of everybody who decides on its machine, so where decisions are signed it takes them on such
    pages only.

    Args:
        params: the workspace's.
        audit: whose page it is.
        bound: the reviewer; empty where the link was nobody's own.
        fields: as they were sent.

    Raises:
        FormError: when a link of one's own is needed.
    """
    if bound:
        return {**fields, "reviewer": bound}
    if keys := listed_keys(params, audit):
        raise FormError(own_link(audit, keys))
    return fields


def own_link(audit: str, keys: Iterable[str]) -> str:
    """What somebody is told whose link does not say who they are."""
    return (
        f"Decisions on {audit} are signed, so each reviewer ({', '.join(keys)}) needs a link of their own:"
        f" faded review {audit} --link --reviewer NAME"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def moment(time: str | datetime) -> str:
    """A time (ISO 8601 in UTC) as people read it."""
    when = time if isinstance(time, datetime) else datetime.fromisoformat(time)
    return when.astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")


def open_standing(params: Params, audit: str, revise: bool) -> Standing:
    """What has been decided on a landscape that is to be reviewed now.

    Raises:
        AlreadyDecided: when nobody is asked any more, unless an earlier decision is to be revised.
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
