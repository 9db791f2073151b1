"""The schedules of audits: the deployments of prefect.yaml, read and edited.

The file is the single source of truth: `faded schedule` edits it, `faded serve` and `prefect deploy` apply it.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import HttpUrl, TypeAdapter, ValidationError

from stages.core.errors import UsageError
from stages.core.files import replace_file
from stages.params import Params
from stages.params.strict import parse_yaml, read_bytes

FILE = Path("prefect.yaml")
EXAMPLE = '"0 3 * * 1" is Mondays at 3:00, "0 3 * * *" every night, "0 */6 * * *" every six hours'
_SLUG = "faded"  # slug of the schedule that `faded schedule` edits; a deployment's others are kept
_MARK = "faded-common"  # placeholder for `<<`, as ruamel has no stable way to add a merge key
_NEW = """\
# When audits run by themselves; `faded schedule` edits this file, `faded serve` and `prefect deploy --all` apply it.
name: faded

definitions:
  common: &common
    entrypoint: flows.audit.audit
    tags: [faded]
    concurrency_limit: {limit: 1, collision_strategy: ENQUEUE}
    work_pool:
      name: faded
      job_variables: {command: python -P -m flows.start.engine, env: {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: "30"}}

deployments: []
"""


@dataclass(frozen=True)
class Entry:
    """One deployment of prefect.yaml that runs one audit."""

    name: str
    audit: str
    pool: str
    cron: str | None  # when it starts, None if it has no cron schedule
    timezone: str
    active: bool  # whether that schedule is on
    entrypoint: str
    job_variables: dict[str, Any]
    pull_steps: list[Any]  # as `prefect deploy` sends them to a server
    parameters: list[dict[str, Any]]  # allowed for a run: its own, or those of one of its schedules

    def next_start(self) -> datetime | None:
        """When the server will start it next, computed by Prefect's own code; None if it is off."""
        if self.cron is None or not self.active:
            return None
        from prefect.server.schemas.schedules import CronSchedule

        dates = asyncio.run(CronSchedule(cron=self.cron, timezone=self.timezone).get_dates(1))
        return dates[0].astimezone() if dates else None


def read_entries() -> list[Entry]:
    """The deployments of prefect.yaml that run audits, in its order; none if there is no such file.

    Raises a UsageError if Prefect cannot read the file, or its entries use different work pools.
    """
    document = _read()
    entries = [_entry(document, data) for data in document["deployments"] if _audit_of(data) is not None]
    if len(pools := sorted({entry.pool for entry in entries})) > 1:
        raise UsageError(f"{FILE}: a workspace has one work pool, found {', '.join(pools)}")
    return entries


def work_pool(entries: Sequence[Entry]) -> str:
    """The work pool of the workspace."""
    return entries[0].pool if entries else "faded"


def public_url() -> str | None:
    """Where other machines reach the review pages: `public_url` of the file, None if it has none.

    Raises a UsageError if it is not the address of a host, with or without a port.
    """
    given = _read().get("public_url")
    if given is None:
        return None
    with contextlib.suppress(ValidationError):
        url = TypeAdapter(HttpUrl).validate_python(given)
        more = (url.username, url.password, url.query, url.fragment)
        if not (url.path or "").strip("/") and all(part is None for part in more):
            return str(url).rstrip("/")
    found = re.sub("//.*@", "//...@", repr(given))  # don't print a password
    raise UsageError(
        f"{FILE}: public_url: expected an address like https://audits.example.org, without user, path, query or"
        f" fragment, found {found:.80}"
    )


def add_missing(params: Params) -> list[str]:
    """Add a deployment, with its schedule off, for each audit without one, except presets; return their names."""
    known = {_audit_of(data) for data in _read()["deployments"]}
    own = [name for name in params.audits if not any(name.startswith(f"{other}-") for other in params.audits)]
    missing = [name for name in own if name not in known]
    if missing:
        _edit(lambda document: [_add(document, name) for name in missing])
    return missing


def set_schedule(params: Params, audit: str, cron: str | None, timezone: str | None = None) -> Entry:
    """Write an audit's schedule to prefect.yaml; nothing else in the file is changed.

    Raises a UsageError if there is no such audit, cron or timezone is invalid, or there is no schedule to turn off.

    Args:
        cron: five fields; None turns the schedule off and keeps it for later.
        timezone: IANA name; by default the schedule's current one.
    """
    params.audit(audit)
    now = _schedule(_deployment(_read(), audit) or {})
    if cron is None and now is None:
        raise UsageError(f"audit {audit!r} has no schedule in {FILE}: nothing to turn off")
    zone = timezone or str((now or {}).get("timezone") or "UTC")
    if cron is not None:
        _check(cron, zone, "--")

    def change(document: Any) -> None:
        from ruamel.yaml.scalarstring import DoubleQuotedScalarString

        from flows.workspace.edit_params import in_one_line

        if (data := _deployment(document, audit)) is None:
            data = _add(document, audit)
        if (schedule := _schedule(data)) is None:
            schedule = in_one_line({"slug": _SLUG})
            data["schedules"] = [*(data.get("schedules") or []), schedule]
        if cron is not None:
            schedule.update(cron=DoubleQuotedScalarString(cron), timezone=zone)
        schedule["active"] = cron is not None

    _edit(change)
    return next(entry for entry in read_entries() if entry.audit == audit)


def _check(cron: str, timezone: str, where: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        if any("cron" in one["loc"] for one in error.errors()):
            expected = "five fields (minute, hour, day of month, month, day of week)"
            told = f"cron {cron!r} is not a valid schedule, expected {expected}: {EXAMPLE}"
        else:
            told = f"timezone {timezone!r} is unknown, expected a name like Europe/Berlin or UTC"
        raise UsageError(f"{where}{told}") from None


def _bytes() -> bytes:
    return read_bytes(FILE) if FILE.exists() else _NEW.encode()


def _read() -> Any:
    document = parse_yaml(_bytes(), str(FILE))  # which has limits: ruamel takes years for what is nested oddly
    listed = document.get("deployments") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(data, dict) and data.get("name") for data in listed):
        raise UsageError(f"{FILE}: expected `deployments:` with a list of named deployments, found {listed!r:.80}")
    # Common mistakes of hand-written files; Prefect checks the rest of its format.
    for data in listed:
        mapping = "a mapping like {audits: [NAME]}"
        _check_type(data, "parameters", data.get("parameters"), dict, mapping)
        _check_type(data, "work_pool", data.get("work_pool"), dict, "a mapping like {name: faded}")
        _check_type(data, "schedules", data.get("schedules"), list, "a list")
        for one in data.get("schedules") or []:
            _check_type(data, "schedules", one, dict, 'mappings like {cron: "0 3 * * 1", timezone: UTC}')
            _check_type(data, "active", (one or {}).get("active"), bool, "true or false")
            _check_type(data, "parameters", (one or {}).get("parameters"), dict, mapping)
    return document


def _check_type(data: Any, key: str, found: Any, fits: type, expected: str) -> None:
    if found is not None and not isinstance(found, fits):
        raise UsageError(f"{FILE}, deployment {data['name']!r}, {key}: expected {expected}, found {found!r:.80}")


def _edit(change: Callable[[Any], object]) -> None:
    from flows.workspace.edit_params import LayoutError, edited

    try:
        after = edited(_bytes().decode(), change, lambda line: line.replace(f"{_MARK}: ", "<<: *"))
    except LayoutError as error:
        raise UsageError(f"{FILE} cannot be changed without touching its layout: {error}") from None
    replace_file(FILE, after)


def _audit_of(data: Any) -> str | None:
    audits = (data.get("parameters") or {}).get("audits")
    return str(audits[0]) if isinstance(audits, list) and len(audits) == 1 else None


def _schedule(data: Any) -> Any:
    """The cron schedule of a deployment that `faded schedule` edits."""
    listed = [schedule for schedule in data.get("schedules") or [] if "cron" in schedule]
    return next((s for s in listed if s.get("slug") == _SLUG), listed[0] if len(listed) == 1 else None)


def _entry(document: Any, data: Any) -> Entry:
    schedule, work_pool = _schedule(data) or {}, data.get("work_pool") or {}
    name = str(data["name"])
    if "cron" in schedule:
        _check(str(schedule["cron"]), str(schedule.get("timezone") or "UTC"), f"{FILE}, deployment {name!r}, ")
    here = {"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}
    pull = data.get("pull", document.get("pull"))
    own = data["parameters"]
    scheduled = [one.get("parameters") or {} for one in data.get("schedules") or []]
    return Entry(
        name=name,
        audit=str(own["audits"][0]),
        pool=str(work_pool.get("name") or "faded"),
        cron=str(schedule["cron"]) if "cron" in schedule else None,
        timezone=str(schedule.get("timezone") or "UTC"),
        active=bool(schedule.get("active", True)) and "cron" in schedule,
        entrypoint=str(data.get("entrypoint")),
        job_variables=work_pool.get("job_variables") or {},
        pull_steps=[here] if pull is None else pull,
        parameters=[own, *({**own, **more} for more in scheduled)],
    )


def _deployment(document: Any, audit: str) -> Any:
    return next((data for data in document["deployments"] if _audit_of(data) == audit), None)


def _add(document: Any, audit: str) -> Any:
    """Add a deployment with the settings that all share."""
    from ruamel.yaml.comments import CommentedMap

    from flows.workspace.edit_params import in_one_line

    common = (document.get("definitions") or {}).get("common")
    if common is None:
        new = dict(yaml.safe_load(_NEW)["definitions"]["common"])
    elif isinstance(common, CommentedMap):
        anchor = common.anchor.value or "common"
        common.yaml_set_anchor(anchor, always_dump=True)
        new = {_MARK: anchor}
    else:
        new = dict(common)
    new |= {"name": audit, "parameters": in_one_line({"audits": [audit]})}
    document["deployments"] = [*document["deployments"], new]
    return new
