"""When audits run by themselves: the deployments of prefect.yaml, read, changed, and applied to a server.

The file is the one source of truth: `faded schedule` edits it, `faded serve` and `prefect deploy` apply it.
"""

from __future__ import annotations

import asyncio
import io
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.credential import client_environment
from flows.edit_params import replace_file
from flows.workspace import stage_environment
from stages.errors import InfrastructureError, UsageError
from stages.params import Params

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from ruamel.yaml import YAML

FILE = Path("prefect.yaml")
EXAMPLE = '"0 3 * * 1" is Mondays at 3:00, "0 3 * * *" every night, "0 */6 * * *" every six hours'
_SLUG = "faded"  # of the schedule that `faded schedule` edits; others of the same deployment stay as they are
_MARK = "faded-common"  # stands for `<<` until the file is written: ruamel has no stable way to add a merge key
_OWNED = "Audits of "  # how the description of a work pool of ours begins
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
      job_variables: {command: python -P -m flows.engine, env: {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: "30"}}

deployments: []
"""


@dataclass(frozen=True)
class Entry:
    """One deployment of prefect.yaml that runs one audit.

    Args:
        name: of the deployment.
        audit: name under audits: in params.yaml.
        pool: its work pool.
        cron: when it starts, None if it has no cron schedule.
        timezone: in which the cron string is meant.
        active: whether that schedule is on.
    """

    name: str
    audit: str
    pool: str
    cron: str | None
    timezone: str
    active: bool

    def next_start(self) -> datetime | None:
        """When the server will start it next, by the server's own reckoning; None if it is off."""
        if self.cron is None or not self.active:
            return None
        from prefect.server.schemas.schedules import CronSchedule

        dates = asyncio.run(CronSchedule(cron=self.cron, timezone=self.timezone).get_dates(1))
        return dates[0].astimezone() if dates else None


@dataclass(frozen=True)
class Recipe:
    """What prefect.yaml says of how the runs of a deployment are started.

    Args:
        entrypoint: of the flow.
        job_variables: command and environment.
        pull_steps: as `prefect deploy` hands them to a server.
        parameters: that a run may have: the deployment's, or those of one of its schedules.
    """

    entrypoint: str
    job_variables: dict[str, Any]
    pull_steps: list[Any]
    parameters: list[dict[str, Any]]


def read_recipes() -> dict[str, Recipe]:
    """How the audits of prefect.yaml are started, by the names of their deployments.

    Raises:
        UsageError: when the file is not what Prefect reads.
    """
    from ruamel.yaml import YAML

    _read(_yaml())  # tells what is wrong with it
    document = YAML(typ="safe").load(FILE) if FILE.exists() else {"deployments": []}
    return {
        str(data["name"]): _recipe(document, data) for data in document["deployments"] if _audit_of(data) is not None
    }


def _recipe(document: Any, data: Any) -> Recipe:
    here = {"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd())}}
    pull = data.get("pull", document.get("pull"))
    own = data.get("parameters") or {}
    scheduled = [schedule.get("parameters") or {} for schedule in data.get("schedules") or []]
    return Recipe(
        entrypoint=str(data.get("entrypoint")),
        job_variables=(data.get("work_pool") or {}).get("job_variables") or {},
        pull_steps=[here] if pull is None else pull,
        parameters=[own, *({**own, **more} for more in scheduled)],
    )


def read_entries() -> list[Entry]:
    """The deployments of prefect.yaml that run audits, in its order; none if there is no such file.

    Raises:
        UsageError: when the file is not what Prefect reads, or its entries use different work pools.
    """
    entries = [_entry(data, audit) for data in _read(_yaml())["deployments"] if (audit := _audit_of(data)) is not None]
    if len(pools := sorted({entry.pool for entry in entries})) > 1:
        raise UsageError(f"{FILE}: one workspace has one work pool, found {', '.join(pools)}")
    return entries


def work_pool(entries: Sequence[Entry]) -> str:
    """The work pool of the workspace."""
    return entries[0].pool if entries else "faded"


def add_missing(params: Params) -> list[str]:
    """Give each audit that has no deployment one, its schedule off; presets of other audits are left out.

    Returns:
        Names of the audits that were added.
    """
    yaml = _yaml()
    document = _read(yaml)
    known = {_audit_of(data) for data in document["deployments"]}
    missing = [name for name in params.audits if name not in known and not _is_preset(params, name)]
    for name in missing:
        _add(document, name)
    if missing:
        _write(yaml, document)
    return missing


def set_schedule(params: Params, audit: str, cron: str | None, timezone: str | None = None) -> Entry:
    """Write to prefect.yaml when an audit starts; nothing else in the file is touched.

    Args:
        params: of the workspace.
        audit: name under audits:.
        cron: five fields; None turns the schedule off and keeps it for later.
        timezone: IANA name; by default the one the schedule has.

    Raises:
        UsageError: when there is no such audit, cron or timezone is not valid, or nothing is there to turn off.
    """
    params.audit(audit)
    yaml = _yaml()
    document = _read(yaml)
    found = [data for data in document["deployments"] if _audit_of(data) == audit]
    data = found[0] if found else None
    schedule = None if data is None else _schedule(data)
    if cron is None:
        if schedule is None:
            raise UsageError(f"audit {audit!r} has no schedule in {FILE}: nothing to turn off")
        schedule["active"] = False
    else:
        zone = timezone or (str(schedule["timezone"]) if schedule and schedule.get("timezone") else "UTC")
        _check(cron, zone, "--")
        data = _add(document, audit) if data is None else data
        if schedule is None:
            schedule = _flow_map({"slug": _SLUG})
            data["schedules"] = [*(data.get("schedules") or []), schedule]
        schedule["cron"] = _quoted(cron)
        schedule["timezone"] = zone
        schedule["active"] = True
    _write(yaml, document)
    return next(entry for entry in read_entries() if entry.audit == audit)


def apply(entries: Sequence[Entry]) -> list[str]:
    """Bring the server of the current settings to what prefect.yaml says: work pool, deployments, automations.

    Returns:
        What a person should know, in sentences.

    Raises:
        UsageError: when the work pool or a deployment belongs to another workspace.
        InfrastructureError: when the server refuses.
    """
    from prefect.client.orchestration import get_client

    from flows.automations import ensure_automations
    from flows.notify import block_id

    if not entries:
        return []
    pool = work_pool(entries)
    with get_client(sync_client=True) as client:
        _ensure_pool(client, pool)
        for entry in entries:
            _refuse_foreign(client, entry)
        _deploy([entry.name for entry in entries])
        ours = _deployments(client, pool)
        told = []
        for name in sorted(set(ours) - {entry.name for entry in entries}):
            client.pause_deployment(ours[name])
            told.append(f"deployment {name} is not in {FILE} any more: its schedules are paused")
        ensure_automations(client, pool, [ours[entry.name] for entry in entries], block_id(client, pool))
    return told


def refresh_automations() -> None:
    """Bring the automations to the notifications that are set, where the deployments are on the server already."""
    from prefect.client.orchestration import get_client

    from flows.automations import ensure_automations
    from flows.notify import block_id

    pool = work_pool(entries := read_entries())
    with get_client(sync_client=True) as client:
        ours = _deployments(client, pool)
        if ids := [ours[entry.name] for entry in entries if entry.name in ours]:
            ensure_automations(client, pool, ids, block_id(client, pool))


def _ensure_pool(client: SyncPrefectClient, pool: str) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    mine = f"{_OWNED}{Path.cwd()} on {socket.gethostname()}"
    try:
        found = client.read_work_pool(pool)
    except ObjectNotFound:
        template = ProcessWorker.get_default_base_job_template()
        # One audit at a time: they share the workspace, and often the only GPU.
        client.create_work_pool(
            WorkPoolCreate(name=pool, type="process", description=mine, concurrency_limit=1, base_job_template=template)
        )
        return
    if (found.description or "").startswith(_OWNED) and found.description != mine:
        raise UsageError(
            f"work pool {pool!r} of this Prefect server belongs to another workspace ({found.description}), this is "
            f"{Path.cwd()}: give this one's another name in {FILE} (work_pool: name), and its deployments; if that "
            f"folder has moved here, run `prefect work-pool delete {pool}` first"
        )


def _refuse_foreign(client: SyncPrefectClient, entry: Entry) -> None:
    """Prefect would move a deployment of this name here, and the other workspace's schedule with it."""
    from prefect.exceptions import ObjectNotFound

    try:
        found = client.read_deployment_by_name(f"audit/{entry.name}")
    except ObjectNotFound:
        return
    if found.work_pool_name not in (None, entry.pool):
        raise UsageError(
            f"deployment audit/{entry.name} of this Prefect server runs in work pool {found.work_pool_name!r}, not "
            f"{entry.pool!r}: give it another name in {FILE}, or run `prefect deployment delete audit/{entry.name}`"
        )


def _deploy(names: Sequence[str]) -> None:
    """As a person who knows Prefect would: the file is read by Prefect itself."""
    command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy"]
    for name in names:
        command += ["--name", name]
    env = {**stage_environment(), **client_environment(), "COLUMNS": "200"}
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode or done.stdout.count("successfully created") != len(names):
        told = "\n".join(f"  {line}" for line in (done.stdout + done.stderr).strip().splitlines()[-15:])
        raise InfrastructureError(f"Prefect did not take {FILE}, `prefect deploy --all` says:\n{told}")


def _deployments(client: SyncPrefectClient, pool: str) -> dict[str, Any]:
    """Ids of the deployments that the server has in the pool, by name."""
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName

    found = client.read_deployments(work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])))
    return {deployment.name: deployment.id for deployment in found}


def _check(cron: str, timezone: str, where: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron)
    except ValidationError:
        raise UsageError(
            f"{where}cron {cron!r} is no schedule, expected five fields (minute, hour, day of month, month, day of "
            f"week): {EXAMPLE}"
        ) from None
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError:
        raise UsageError(
            f"{where}timezone {timezone!r} is unknown, expected a name like Europe/Berlin or UTC"
        ) from None


def _is_preset(params: Params, name: str) -> bool:
    return any(name.startswith(f"{other}-") for other in params.audits)


def _yaml() -> YAML:
    from ruamel.yaml import YAML

    yaml = YAML()  # the round-trip loader: comments and order stay
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _read(yaml: YAML) -> Any:
    from ruamel.yaml.error import YAMLError

    try:
        document = yaml.load(FILE.read_text(encoding="utf-8") if FILE.exists() else _NEW)
    except (YAMLError, OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{FILE} is no YAML: {str(error)[:500]}") from None
    listed = document.get("deployments") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(data, dict) and data.get("name") for data in listed):
        raise UsageError(f"{FILE}: expected `deployments:` with a list of named deployments, found {listed!r:.80}")
    for data in listed:
        _check_shape(data)
    return document


def _check_shape(data: Any) -> None:
    """Refuse what people get wrong by hand; the rest of Prefect's format is Prefect's to check."""
    schedules = data.get("schedules")
    listed = schedules if isinstance(schedules, list) else []
    for key, found, fits, expected in (
        ("parameters", data.get("parameters"), dict, "a mapping like {audits: [NAME]}"),
        ("work_pool", data.get("work_pool"), dict, "a mapping like {name: faded}"),
        ("schedules", schedules, list, "a list"),
        *(("schedules", one, dict, 'mappings like {cron: "0 3 * * 1", timezone: UTC}') for one in listed),
        *(("active", one.get("active"), bool, "true or false") for one in listed if isinstance(one, dict)),
    ):
        if found is not None and not isinstance(found, fits):
            raise UsageError(f"{FILE}, deployment {data['name']!r}, {key}: expected {expected}, found {found!r:.80}")


def _write(yaml: YAML, document: Any) -> None:
    text = io.StringIO()
    yaml.dump(document, text)
    if not FILE.exists():
        FILE.touch()  # `replace_file` keeps the mode of what it replaces
    replace_file(FILE, text.getvalue().replace(f"{_MARK}: ", "<<: *"))


def _audit_of(data: Any) -> str | None:
    audits = (data.get("parameters") or {}).get("audits")
    return str(audits[0]) if isinstance(audits, list) and len(audits) == 1 else None


def _schedule(data: Any) -> Any:
    """The cron schedule of a deployment that `faded schedule` edits."""
    listed = [schedule for schedule in data.get("schedules") or [] if "cron" in schedule]
    return next((s for s in listed if s.get("slug") == _SLUG), listed[0] if len(listed) == 1 else None)


def _entry(data: Any, audit: str) -> Entry:
    schedule = _schedule(data) or {}
    name = str(data["name"])
    if "cron" in schedule:
        _check(str(schedule["cron"]), str(schedule.get("timezone") or "UTC"), f"{FILE}, deployment {name!r}, ")
    return Entry(
        name=name,
        audit=audit,
        pool=str((data.get("work_pool") or {}).get("name") or "faded"),
        cron=str(schedule["cron"]) if "cron" in schedule else None,
        timezone=str(schedule.get("timezone") or "UTC"),
        active=bool(schedule.get("active", True)) and "cron" in schedule,
    )


def _add(document: Any, audit: str) -> Any:
    """A new deployment with what the others have in common."""
    from ruamel.yaml.comments import CommentedMap

    new = CommentedMap()
    if (common := (document.get("definitions") or {}).get("common")) is not None:
        anchor = common.anchor.value or "common"
        common.yaml_set_anchor(anchor, always_dump=True)
        new[_MARK] = anchor
    else:
        new.update(dict(_yaml().load(_NEW)["definitions"]["common"]))
    new["name"] = audit
    new["parameters"] = _flow_map({"audits": [audit]})
    if not document["deployments"]:
        document["deployments"].fa.set_block_style()  # it was []
    document["deployments"].append(new)
    return new


def _flow_map(values: dict[str, Any]) -> Any:
    """A mapping that is written on one line."""
    from ruamel.yaml.comments import CommentedMap

    flow = CommentedMap(values)
    flow.fa.set_flow_style()
    return flow


def _quoted(text: str) -> Any:
    from ruamel.yaml.scalarstring import DoubleQuotedScalarString

    return DoubleQuotedScalarString(text)
