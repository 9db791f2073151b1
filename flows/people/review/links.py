"""One-time links to the review pages: how the server makes them, and how other commands of the workspace get them."""

import contextlib
import json
import queue
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from flows.request import needs_decision
from flows.server.security import EVERY, Keys, ServerRecord, Session
from stages.core.environment import WORK
from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import replace_file, stage_dir
from stages.params import load_params

if TYPE_CHECKING:
    from fastapi import Request

    from flows.people.approval import DecisionOutcome

RECORD = WORK / "review-server.json"
REPORTS = {  # reports of an audit, by the last part of their address
    "landscape": ("report", "The whole landscape"),
    "repair": ("conclude", "The last repair, before and after"),
}
_PATIENCE = 30.0  # seconds for a response of a local server, which may have to import its pages first


def page_path(audit: str) -> str:
    """The path of an audit's page."""
    return f"/review/{quote(audit, safe='')}"


def report_path(audit: str, name: str) -> Path:
    """The path of one of REPORTS."""
    return stage_dir(audit, REPORTS[name][0]) / "report.html"


def reports_of(audit: str) -> list[tuple[str, str]]:
    """The names and titles of those of REPORTS that an audit has."""
    return [(name, title) for name, (_, title) in REPORTS.items() if report_path(audit, name).is_file()]


@dataclass
class Served:
    """Pages that are served: the state that their routes share."""

    audits: list[str]  # that are shown; holders of the secret may add more
    address: str  # where other commands reach the server; links have another, secret host
    host: str  # the only host name under which the pages are shown
    url: str
    cookie: str  # name of the session's cookie; browsers share cookies between all ports of a host
    behind_proxy: bool = False  # whether they are reached through a proxy, and only under its name
    path: Callable[[str], str] = page_path  # of an audit's page
    command: str = "faded review AUDIT --link"  # that prints another link
    keys: Keys = field(default_factory=Keys)
    outcomes: "queue.Queue[DecisionOutcome]" = field(default_factory=queue.Queue)  # recorded and answered

    def link(self, audit: str, reviewer: str = "") -> str:
        """An address that opens an audit's page once, in the name of this reviewer if one is given.

        The audit is served from then on. For EVERY, it opens the page of all audits that are.
        """
        if audit not in (EVERY, *self.audits):
            self.audits.append(audit)
        return f"{self.url}{self.page(audit)}?token={self.keys.make_token(audit, reviewer)}"

    def page(self, audit: str) -> str:
        """The path of what a link to an audit opens."""
        return "/" if audit == EVERY else self.path(audit)

    def session(self, request: "Request") -> Session | None:
        return self.keys.session(request.cookies.get(self.cookie))

    def next_outcome(self) -> "DecisionOutcome":
        """Wait for the next decision; by then its reviewer has the response."""
        return self.outcomes.get()

    def undecided(self) -> int:
        """Number of browsers that did not decide on an audit that waits; if 0, of decisions not yet processed here."""
        params = load_params()
        waiting = {audit for audit in self.audits if audit in params.repairs and needs_decision(params, audit)}
        return self.keys.undecided(waiting) or self.outcomes.qsize()


def write_way_in(audit: str, link: str) -> Path:
    """Write a file that redirects a browser to a link, as every user of the machine can read a browser's arguments.

    Only the user can read it, and it is useless once the link was opened.
    """
    path, to = WORK / f"review-{audit}.html", escape(link)
    page = f'<!doctype html><meta http-equiv="refresh" content="0; url={to}"><a href="{to}">Review</a>\n'
    replace_file(path, page, mode=0o600)
    return path.resolve()


def running() -> ServerRecord | None:
    """The review server that runs in this workspace; None if there is none or it does not respond."""
    record = ServerRecord.read(RECORD)
    return record if record is not None and _audits_of(record) is not None else None


def review_url(audit: str) -> str | None:
    """Address of an audit's page on the running review server, without a secret; None if none shows this audit.

    If prefect.yaml has a `public_url`, the address is under it, whether or not the server is running.
    """
    from flows.recur.schedule import public_url

    if (public := public_url()) is not None:
        return public + page_path(audit)
    record = ServerRecord.read(RECORD)
    if record is None or not (_listens(record) if audit in record.audits else audit in (_audits_of(record) or ())):
        return None
    return record.url + page_path(audit)


def one_time_link(audit: str, reviewer: str = "") -> str:
    """Request a link that opens an audit's page once from the running review server, which from then on serves it.

    Raises a UsageError if no server runs here, and an InfrastructureError if it returns no link.

    Args:
        audit: its name; EVERY for the page of all audits.
        reviewer: the only name that the page accepts decisions in; empty if reviewers enter theirs there.
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


def _listens(record: ServerRecord) -> bool:
    """Whether a server accepts connections; a request would make it import its pages, at the end of every run."""
    there = urlsplit(record.url)
    with contextlib.suppress(OSError):
        socket.create_connection((there.hostname or "", there.port or 0), _PATIENCE).close()
        return True
    return False


def _audits_of(record: ServerRecord) -> list[str] | None:
    """Audits that a server shows; None if it does not respond."""
    answer = _ask(record, "GET")
    audits = answer.get("audits") if answer is not None else None
    return audits if isinstance(audits, list) else None


def _ask(record: ServerRecord, method: str, **query: str) -> dict[str, object] | None:
    import httpx

    headers = {"Authorization": f"Bearer {record.secret}"}
    url = f"{record.url}/links"
    try:
        answer = httpx.request(method, url, params=query, headers=headers, timeout=_PATIENCE, trust_env=False)
        body = answer.json() if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return body if isinstance(body, dict) else None
