"""Access to the review server that runs in this workspace: its record, and one-time links from it."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from urllib.parse import quote

import psutil
from pydantic import BaseModel, ValidationError

from stages.core.environment import WORK
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import replace_file, stage_dir

RECORD = WORK / "review-server.json"
REPORTS = {  # reports of an audit, by the last part of their address
    "landscape": ("report", "The whole landscape"),
    "repair": ("conclude", "The last repair, before and after"),
}
_PATIENCE = 30.0  # seconds for a response of a local server, which may have to import its pages first


class Running(BaseModel):
    """A running review server.

    Args:
        url: where commands on this machine reach it. Its pages have another host, which only links contain.
        pid: its process id.
        started: start time of the process, as process ids are reused.
        secret: authenticates commands of the same user that request links; only that user can read the file.
    """

    url: str
    pid: int
    started: float
    secret: str


def page_path(audit: str) -> str:
    """The path of an audit's page."""
    return f"/review/{quote(audit, safe='')}"


def report_path(audit: str, name: str) -> Path:
    """The path of one of REPORTS."""
    return stage_dir(audit, REPORTS[name][0]) / "report.html"


def write_record(record: Running) -> None:
    """Write the record for other commands."""
    replace_file(RECORD, record.model_dump_json(), mode=0o600)


def remove_record(record: Running) -> None:
    """Remove the record, unless it is another server's by now."""
    if _read() == record:
        RECORD.unlink(missing_ok=True)


def write_way_in(audit: str, link: str) -> Path:
    """Write a file that redirects a browser to a link, as every user of the machine can read a browser's arguments.

    Only the user can read it, and it is useless once the link was opened.
    """
    path, to = WORK / f"review-{audit}.html", escape(link)
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={to}"><a href="{to}">Review</a>\n'
    replace_file(path, page, mode=0o600)
    return path.resolve()


def _read() -> Running | None:
    try:
        return Running.model_validate_json(RECORD.read_bytes())
    except (OSError, ValidationError):
        return None


def running() -> Running | None:
    """The review server that runs in this workspace; None if there is none or it does not respond."""
    record = _read()
    return record if record is not None and _served(record) is not None else None


def review_url(audit: str) -> str | None:
    """Address of an audit's page on the running review server, without a secret; None if none shows this audit.

    If prefect.yaml has a `public_url`, the address is under it, whether or not the server is running.
    """
    from flows.recur.schedule import public_url

    if (public := public_url()) is not None:
        return public + page_path(audit)
    record = _read()
    if record is None or audit not in (_served(record) or ()):
        return None
    return record.url + page_path(audit)


def report_urls(audit: str) -> dict[str, str]:
    """Addresses of an audit's reports beside its page, by title; empty if there is no such page."""
    url = review_url(audit)
    there = {name: title for name, (_, title) in REPORTS.items() if report_path(audit, name).is_file()}
    return {} if url is None else {title: f"{url}/{name}" for name, title in there.items()}


def one_time_link(audit: str, reviewer: str = "") -> str:
    """Request a link that opens an audit's page once from the running review server, which from then on serves it.

    Args:
        audit: its name.
        reviewer: the only name that the page accepts decisions in; empty if reviewers enter theirs there.

    Raises:
        UsageError: if no server runs here.
        InfrastructureError: if it returns no link.
    """
    record = running()
    if record is None:
        raise UsageError(f"no review server runs in this workspace: `faded review {audit}` starts one")
    answer = _ask(record, "POST", audit=audit, reviewer=reviewer)
    if answer is None or not isinstance(answer.get("link"), str):
        raise InfrastructureError(
            f"the review server (process {record.pid}, {record.url}) gave no link: start it again"
        )
    return str(answer["link"])


def _served(record: Running) -> list[str] | None:
    """Audits that a server shows; None if it no longer runs."""
    try:
        if psutil.Process(record.pid).create_time() != record.started:
            return None
    except psutil.Error:
        return None
    answer = _ask(record, "GET")
    audits = answer.get("audits") if answer is not None else None
    return audits if isinstance(audits, list) else None


def _ask(record: Running, method: str, **query: str) -> dict[str, object] | None:
    import httpx

    headers = {"Authorization": f"Bearer {record.secret}"}
    url = f"{record.url}/links"
    try:
        answer = httpx.request(method, url, params=query, headers=headers, timeout=_PATIENCE, trust_env=False)
        body = answer.json() if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return body if isinstance(body, dict) else None
