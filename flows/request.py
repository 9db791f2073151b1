"""The gate where a person decides, as what waits there: which landscape of an audit, since when, and for whom.

That a flow run waits without a process is in flows/suspend.py, what a decision sets going in flows/approval.py.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, Field

from stages.environment import WORK
from stages.errors import UsageError
from stages.files import read_state, stage_dir, write_state
from stages.params import Params, load_params

if TYPE_CHECKING:
    from stages.decisions import ModeDecision
    from stages.records import ModeRecord

GATED = "collect_feedback"
REQUESTS = WORK / "requests"


class Request(BaseModel):
    """That a landscape waits for a decision: .faded/requests/<audit>.json.

    Args:
        landscape: its hash; None once it was decided, as long as there are runs to be told.
        asked: when it first waited.
        expires: when no decision becomes a rejection; None for never.
        runs: flow runs that are suspended on the audit or were, by their id, each with the URL of its Prefect API.
    """

    landscape: str | None
    asked: AwareDatetime
    expires: AwareDatetime | None = None
    runs: dict[str, str] = Field(default_factory=dict)

    @property
    def seconds_left(self) -> int | None:
        """Whole seconds until it expires, at least one; None for no limit."""
        return None if self.expires is None else max(1, math.ceil((self.expires - _now()).total_seconds()))


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
    """What the person is told, and of decisions that do not count why."""
    until = f" until {minutes(expires)}" if (expires := deadline(audit)) else ""
    problems = "".join(f" ({why})" for why in _not_counting(audit))
    return f"{audit} waits for a decision on its landscape{until}{problems}: `faded review {audit}`"


def _not_counting(audit: str) -> Sequence[str]:
    from stages.decisions import standing

    with contextlib.suppress(UsageError):  # whoever asks what is decided is told of that
        return standing(load_params(), audit).problems
    return ()


def open_request(params: Params, audit: str, run: tuple[str, str] | None = None) -> Request:
    """Note that the audit's present landscape waits; one that waited before keeps the time at which it was asked.

    Args:
        params: the workspace's; a `timeout_hours` that was changed meanwhile counts.
        audit: whose landscape waits.
        run: id and API URL of a flow run that is going to be suspended on it.
    """
    from stages.decisions import landscape_hash
    from stages.decisions.files import recording

    with recording(audit):  # a run may be added and the time be looked at by two processes at once
        now, before = landscape_hash(audit), read_request(audit)
        asked = before.asked if before is not None and before.landscape == now else _now()
        hours = params.repair(audit).feedback.timeout_hours
        request = Request(
            landscape=now,
            asked=asked,
            expires=None if hours is None else asked + timedelta(hours=hours),
            # Runs that wait on an earlier landscape are kept, for somebody has to end them.
            runs={**(before.runs if before is not None else {}), **(dict([run]) if run is not None else {})},
        )
        if request != before:
            _write(audit, request)
    return request


def close_request(audit: str, runs: Mapping[str, str] | None = None) -> None:
    """Forget that the audit waited, but not these runs: they were not told yet."""
    if runs:
        _write(audit, Request(landscape=None, asked=_now(), runs=dict(runs)))
    else:
        _path(audit).unlink(missing_ok=True)


def read_request(audit: str) -> Request | None:
    """What the audit waits for, or waited for last; None where there is no record, or one that cannot be read."""
    return read_state(_path(audit), Request)


def deadline(audit: str) -> datetime | None:
    """Until when the audit's present landscape waits; None if it has no limit, or did not wait yet."""
    request = read_request(audit)
    return request.expires if request is not None and request.landscape == present(audit) else None


def choose(
    modes: Sequence[ModeRecord],
    repair: Mapping[str, str] | None = None,
    accept: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
) -> list[ModeDecision]:
    """A word on every mode, from those that a person named.

    Args:
        modes: of the landscape.
        repair: why, of each mode to repair.
        accept: why, of each mode to accept.
        ignore: modes to ignore.

    Raises:
        UsageError: when a mode is unknown or named for two, or a choice or reason is missing.
    """
    from stages.decisions import ModeDecision

    repair, accept = repair or {}, accept or {}
    undecided, silent = missing(modes, repair, accept, ignore)
    if undecided:
        raise UsageError(f"{', '.join(undecided)}: nothing was chosen; expected repair, accept or ignore")
    if silent:
        raise UsageError(f"{', '.join(silent)}: a reason is required to repair or accept it, found none")
    words = {name: ModeDecision(id=name, action="repair", reason=why.strip()) for name, why in repair.items()}
    words |= {name: ModeDecision(id=name, action="accept", reason=why.strip()) for name, why in accept.items()}
    return [words.get(mode.id, ModeDecision(id=mode.id, action="ignore")) for mode in modes]


def missing(
    modes: Sequence[ModeRecord], repair: Mapping[str, str], accept: Mapping[str, str], ignore: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Modes that a person has to choose for and did not, and those of which they did not say why.

    Args:
        modes: of the landscape.
        repair: why, of each mode to repair.
        accept: why, of each mode to accept.
        ignore: modes to ignore.

    Raises:
        UsageError: when a mode is unknown, or named for two.
    """
    known, named = [mode.id for mode in modes], [*repair, *accept, *ignore]
    if unknown := [name for name in dict.fromkeys(named) if name not in known]:
        raise UsageError(f"unknown mode(s) {', '.join(unknown)}; the landscape has {', '.join(known) or 'none'}")
    if twice := [name for name in known if named.count(name) > 1]:
        raise UsageError(f"mode(s) {', '.join(twice)} are named twice, expected one of repair, accept and ignore")
    undecided = [mode.id for mode in modes if mode.id not in named]
    return undecided, [name for name, why in [*repair.items(), *accept.items()] if not why.strip()]


def read_modes(audit: str) -> list[ModeRecord]:
    """The failure modes of the audit's present landscape."""
    from stages.records import audit_folder

    return audit_folder(audit).summarize.landscape.modes


def present(audit: str) -> str | None:
    """The hash of the audit's present landscape, None where there is none."""
    from stages.decisions import landscape_hash

    try:
        return landscape_hash(audit)
    except UsageError:  # there is no landscape yet
        return None


def _write(audit: str, request: Request) -> None:
    write_state(_path(audit), request)


def _path(audit: str) -> Path:
    return REQUESTS / f"{audit}.json"


def _now() -> datetime:
    return datetime.now(UTC)


def minutes(when: datetime) -> str:
    """A time for people."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
