"""Requests for a person's decision: which landscape of an audit waits, since when, and until when.

How a flow run waits without a process is in flows/people/suspend.py, what happens after a decision in
flows/people/approval.py.
"""

import contextlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, Field

from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.files import decisions_lock, read_state, stage_dir, write_state
from stages.params import Params, load_params

if TYPE_CHECKING:
    from stages.decisions import Standing
    from stages.records import ModeRecord

GATED = "collect_feedback"
REQUESTS = WORK / "requests"


class Request(BaseModel):
    """The record of a landscape that waits for a decision: .faded/requests/<audit>.json.

    Args:
        landscape: its hash; None once it is decided, while there are still runs to be resumed.
        asked: when it started to wait.
        expires: when a missing decision becomes a rejection; None for never.
        runs: flow runs that are or were suspended on the audit: the URL of the Prefect API, by id.
    """

    landscape: str | None
    asked: AwareDatetime
    expires: AwareDatetime | None = None
    runs: dict[str, str] = Field(default_factory=dict)

    @property
    def seconds_left(self) -> int | None:
        """Whole seconds until it expires, at least one; None for no limit."""
        return None if self.expires is None else max(1, math.ceil((self.expires - datetime.now(UTC)).total_seconds()))


def waits_for_person(params: Params, audit: str) -> bool:
    """Whether a person decides on the audit at all."""
    return audit in params.repairs and params.repairs[audit].feedback.policy == "wait"


def needs_decision(params: Params, audit: str) -> str | None:
    """The hash of the audit's landscape if it waits for a person's decision, else None, also without a landscape."""
    now = current_standing(params, audit)
    return None if now is None or now.complete else now.landscape


def current_standing(params: Params, audit: str) -> "Standing | None":
    """The decisions on the audit's landscape; None if there is no landscape, or people do not decide on it."""
    if not waits_for_person(params, audit) or not (stage_dir(audit, "summarize") / "landscape.json").exists():
        return None
    from stages.decisions import standing

    return standing(params, audit)


def how_to_decide(audit: str) -> str:
    """The message for the person who decides: who did so far, and why decisions do not count, if some do not."""
    from stages.decisions import standing

    told = ""
    with contextlib.suppress(UsageError):  # reading decisions for use reports what is wrong
        now = standing(load_params(), audit)
        told = f", {decided_so_far(now)}" if now.decisions else ""
        told += "".join(f" ({why})" for why in now.problems)
    return f"{waits_until(audit)}{told}: `faded review {audit}`"


def decided_so_far(now: "Standing") -> str:
    """Who decided what: "rejected by Ada: REASON", or "approved by 1 of 2 reviewers (Ada)"; empty if nobody did."""
    if (no := now.rejection) is not None:
        by = "" if no.via == "time-out" else f" by {no.reviewer}"
        return f"rejected{by}" + (f": {no.reason}" if no.reason else "")
    names = ", ".join(decision.reviewer for decision in now.decisions)
    if now.missing and names:
        return f"approved by {len(now.decisions)} of {now.needed} reviewers ({names})"
    return f"approved by {names}" if names else ""


def waits_until(audit: str) -> str:
    """That the audit waits for a person, and until when."""
    until = f" until {minutes(expires)}" if (expires := deadline(audit)) else ""
    return f"{audit} waits for a decision on its landscape{until}"


def open_request(params: Params, audit: str, run: tuple[str, str] | None = None) -> Request:
    """Record that the audit's current landscape waits; if it already did, the time since when is kept.

    Args:
        params: the workspace's parameters; a changed `timeout_hours` takes effect.
        run: id and API URL of a flow run that is going to be suspended on it.
    """
    from stages.decisions import landscape_hash

    with decisions_lock(audit):  # two processes may add a run and check the time at once
        now, before = landscape_hash(audit), read_request(audit)
        asked = before.asked if before is not None and before.landscape == now else datetime.now(UTC)
        hours = params.repair(audit).feedback.timeout_hours
        request = Request(
            landscape=now,
            asked=asked,
            expires=None if hours is None else asked + timedelta(hours=hours),
            # Keep runs that wait on an earlier landscape, as somebody has to end them.
            runs={**(before.runs if before is not None else {}), **(dict([run]) if run is not None else {})},
        )
        if request != before:
            write_state(_path(audit), request)
    return request


def close_request(audit: str, runs: Mapping[str, str] | None = None) -> None:
    """Remove the request, except for runs that were not resumed or ended yet."""
    if runs:
        write_state(_path(audit), Request(landscape=None, asked=datetime.now(UTC), runs=dict(runs)))
    else:
        _path(audit).unlink(missing_ok=True)


def read_request(audit: str) -> Request | None:
    """The audit's current or last request; None if there is no record, or it cannot be read."""
    return read_state(_path(audit), Request)


def deadline(audit: str) -> datetime | None:
    """Until when the audit's current landscape waits; None if it has no limit, or has not waited yet."""
    request = read_request(audit)
    return request.expires if request is not None and request.landscape == present(audit) else None


def read_modes(audit: str) -> "list[ModeRecord]":
    """The failure modes of the audit's current landscape."""
    from stages.records import audit_folder

    return audit_folder(audit).summarize.landscape.modes


def present(audit: str) -> str | None:
    """The hash of the audit's current landscape, None if there is none."""
    from stages.decisions import landscape_hash

    try:
        return landscape_hash(audit)
    except UsageError:  # there is no landscape yet
        return None


def _path(audit: str) -> Path:
    return REQUESTS / f"{audit}.json"


def minutes(when: datetime) -> str:
    """A time in a message: 2026-11-30 14:05 UTC."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def moment(when: datetime | str) -> str:
    """A time (or its ISO 8601) where people review: 30 Nov 2026, 14:05 UTC."""
    when = when if isinstance(when, datetime) else datetime.fromisoformat(when)
    return when.astimezone(UTC).strftime("%-d %b %Y, %H:%M UTC")
