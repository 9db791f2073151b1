"""Access to the servers of a workspace: records, credentials, one-time links, sessions, and where a request comes from.

Prefect's API can start processes, and a decision on the review page changes a model. So listening on loopback only is
not enough: other users and programs of the machine can connect too, and any web page open in a browser may send
requests. Commands of the same user find a server by its record, which only that user can read. It has the secret that
the server demands, which never appears on a command line or in a log.

A server answers nothing without its credential. Programs send the credential in a header. A browser signs in by a
one-time link and then sends the cookie it received. Cookies ignore ports, so this one is accepted only under a host
name that no other server has (`new_host`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from pydantic import BaseModel, ValidationError
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.websockets import WebSocket

from stages.core.files import replace_file

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


LINK_SECONDS = 3600  # an unopened link expires after this
IDLE_SECONDS = 12 * 3600  # so does a session without requests, as a server may run for months
MAX_BODY = 1_000_000  # bytes of a form: a large landscape with every field filled in takes a tenth

_HEADER = "Authorization"
_OURS = "faded:"  # prefix of a generated credential

# Only the page's own style sheet and script, and pictures that are part of the page.
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that, browsers send `Origin: null`, and our forms look like any other site's.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class ServerRecord(BaseModel):
    """A running server of a workspace, for the other commands of its user.

    Args:
        url: where programs on this machine reach it, with the secret.
        started: when the process started, in seconds since the machine did, as process ids are reused.
        host: the host name under which browsers see its pages; empty if only its links contain it.
        audits: audits whose pages it shows from the start.
    """

    url: str
    pid: int
    started: float
    secret: str
    host: str = ""
    audits: list[str] = []

    @classmethod
    def of(cls, pid: int, url: str, secret: str, host: str = "", audits: Sequence[str] = ()) -> ServerRecord:
        return cls(url=url, pid=pid, started=_started(pid), secret=secret, host=host, audits=list(audits))

    @classmethod
    def read(cls, path: Path) -> ServerRecord | None:
        """The record in a file, if its process lives: then nobody else has its port, and receives the secret."""
        with contextlib.suppress(OSError, ValidationError, psutil.Error):
            record = cls.model_validate_json(path.read_bytes())
            if _started(record.pid) == record.started:
                return record
        return None

    def write(self, path: Path) -> None:
        replace_file(path, self.model_dump_json(), mode=0o600)

    def remove(self, path: Path) -> None:
        """Remove the record from a file, unless that is another server's by now."""
        with contextlib.suppress(OSError, ValidationError):
            if ServerRecord.model_validate_json(path.read_bytes()) == self:
                path.unlink()


def _started(pid: int) -> float:
    # Its time of day would change whenever the system's clock is set.
    return round(psutil.Process(pid).create_time() - psutil.boot_time(), 2)


def new_host() -> str:
    """A host name for one run of a server, never used again: a later server on the same port gets no cookies.

    Browsers send cookies by host and ignore the port: a cookie of 127.0.0.1 would go to any server on another of its
    ports, including another user's. A random name under `localhost`, which browsers resolve to this machine by
    themselves (RFC 6761), cannot be guessed, so no foreign page can lead a browser to that name on its own port.
    """
    return f"faded-{secrets.token_hex(16)}.localhost"


def new_credential() -> str:
    """A credential for a Prefect server that is about to start: the one the user configured, otherwise a random one."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    for own in (settings.server.api.auth_string, settings.api.auth_string):
        if own is not None and own.get_secret_value():
            return own.get_secret_value()
    return _OURS + secrets.token_urlsafe(32)


def authorization(credential: str) -> str:
    """The value of the header that carries it."""
    return "Basic " + base64.b64encode(credential.encode()).decode("ascii")


def client_settings(api: str, credential: str | None = None) -> dict[Any, Any]:
    """Settings for Prefect's clients of a server; without a credential if Faded did not start it."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CUSTOM_HEADERS, get_current_settings

    settings = get_current_settings()
    shown = settings.client.custom_headers.get(_HEADER, "")
    # A header rather than PREFECT_API_AUTH_STRING, which Prefect sends over a websocket once it is open.
    if credential is not None:
        return {PREFECT_API_URL: api, PREFECT_CLIENT_CUSTOM_HEADERS: {_HEADER: authorization(credential)}}
    if api != settings.api.url and shown.startswith(authorization(_OURS)):
        return {PREFECT_API_URL: api, PREFECT_CLIENT_CUSTOM_HEADERS: {_HEADER: ""}}
    return {PREFECT_API_URL: api}


def client_environment() -> dict[str, str]:
    """The same for a child process: the variables of the current settings that name the server and its headers."""
    from prefect.settings import get_current_settings

    variables = get_current_settings().to_environment_variables(exclude_unset=True)
    names = ("PREFECT_API_URL", "PREFECT_CLIENT_CUSTOM_HEADERS", "PREFECT_UI_URL")
    return {name: variables[name] for name in names if name in variables}


EVERY = ""  # the audit of a link that is for all of them


@dataclass
class Session:
    """A browser that signed in with a one-time link.

    Args:
        id: value of its cookie.
        csrf: token that its forms have to contain, which no other page can know.
        audits: audits that its links were for; it sees no others, unless EVERY is among them.
        seen, done: audits it was shown, and those on which it recorded a decision.
        reviewer: the name it last decided under; empty before.
        bound: the reviewer whose link opened it, and who alone decides in it; empty for a link for anybody.
        used: time of its last request, by the monotonic clock.
    """

    id: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    audits: set[str] = field(default_factory=set)
    seen: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    reviewer: str = ""
    bound: str = ""
    used: float = field(default_factory=time.monotonic)

    def sees(self, audit: str) -> bool:
        return audit in self.audits or EVERY in self.audits


class Keys:
    """Unopened links and open sessions. Thread-safe."""

    def __init__(self) -> None:
        self.secret = secrets.token_urlsafe(32)  # for other commands of the same user, see links.py
        # By digest of the token: its audit, its reviewer, and when it expires.
        self._links: dict[str, tuple[str, str, float]] = {}
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def make_token(self, audit: str, reviewer: str = "") -> str:
        """A token that opens an audit's page once; in the name of this reviewer alone, if one is given."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._links[_digest(token)] = audit, reviewer, time.monotonic() + LINK_SECONDS
        return token

    def redeem(self, token: str, audit: str, cookie: str | None = None) -> Session | None:
        """Redeem a token for a session: the cookie's or a new one, which may see the audit from now on.

        None if the token was used before, has expired, or is for another audit.
        """
        with self._lock:
            of, reviewer, expires = self._links.get(_digest(token), ("", "", 0.0))
            if of != audit or expires < time.monotonic():  # one for another audit can still open its own
                return None
            del self._links[_digest(token)]
            session = self._live(cookie)
            if session is not None and reviewer not in ("", session.bound):
                self._sessions.pop(_digest(session.id))
                session = None
            if session is None:
                session = Session(bound=reviewer)
            session.audits.add(audit)
            self._sessions[_digest(session.id)] = session
            return session

    def session(self, cookie: str | None) -> Session | None:
        with self._lock:
            if (session := self._live(cookie)) is not None:
                session.used = time.monotonic()
            return session

    def undecided(self, audits: Collection[str]) -> int:
        """Number of browsers that were shown one of these audits without recording a decision on it."""
        with self._lock:
            self._live(None)
            return sum(bool((s.seen - s.done).intersection(audits)) for s in self._sessions.values())

    def _live(self, cookie: str | None) -> Session | None:
        """The session of a cookie, if it has one; sessions that were idle for long are forgotten."""
        oldest = time.monotonic() - IDLE_SECONDS
        self._sessions = {digest: session for digest, session in self._sessions.items() if session.used > oldest}
        return self._sessions.get(_digest(cookie)) if cookie else None


def _digest(text: str) -> str:
    # Looking secrets up by digest leaks nothing about them through timing.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def same(given: str | None, expected: str) -> bool:
    """Whether a secret is the expected one, compared in constant time."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


def is_loopback(host: str) -> bool:
    """Whether a host name or address is loopback, which other machines cannot reach."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def host_of(header: str | None) -> str:
    """The host in a request's Host header, without its port; empty if it has none."""
    try:
        return urlsplit(f"//{header or ''}").hostname or ""
    except ValueError:
        return ""


def knows_host(header: str | None, host: str) -> bool:
    """Whether a request's Host is one of ours, which refuses pages of other names that resolve to this machine.

    Ours is a secret name, or the host that `--host` made reachable; the port may differ, as through a tunnel.
    """
    named = host_of(header)
    if host.endswith(".localhost"):
        return named == host
    if is_loopback(named):
        return True
    try:
        ipaddress.ip_address(named)
        return True  # an address, not a name that could be made to resolve to us
    except ValueError:
        return named in {name.lower() for name in (host, socket.gethostname(), socket.getfqdn())}


def same_origin(headers: Mapping[str, str]) -> bool:
    """Whether one of our pages sent a request: its origin, or without one its referrer, has our host."""
    host, source = headers.get("host"), headers.get("origin", headers.get("referer"))
    if not source or not host:
        return False
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()


LINKS, OPEN = "/faded/links", "/faded/open"  # where commands request a one-time link, and its target
_COOKIE = "faded-prefect"
_PAGES = "prefect"  # purpose of the links
_SIGN_IN = """\
<!doctype html><html lang="en"><meta charset="utf-8"><title>Sign in</title>
<body style="font: 1rem/1.5 sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>These pages need a link</h1>
<p>They are opened by a link that works once, so that nobody else on this machine can start audits as you. In the
workspace, run <code>faded serve --link</code> and open what it prints in this browser. Then load this page again.</p>
"""


class Guard:
    """An ASGI application that passes on requests with the credential or from a signed-in browser.

    Browsers see its pages under `host`; without one no cookie is accepted.
    """

    def __init__(self, app: ASGIApp, credential: str, host: str | None = None) -> None:
        self._app, self._authorization, self._host = app, authorization(credential), host
        self._keys = Keys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (answer := self._answer(HTTPConnection(scope))) is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await answer(scope, receive, send)
        else:
            # Before it is accepted, so that the handshake fails.
            await WebSocket(scope, receive, send).send_denial_response(answer)

    def _answer(self, asked: HTTPConnection) -> Response | None:
        """The answer to a request about sign-in or one that is refused; None if it is passed on."""
        host = asked.headers.get("host", "")
        name = host.rpartition(":")[0] or host
        shown = asked.headers.get("authorization")
        program = name in ("127.0.0.1", "localhost", self._host) and same(shown, self._authorization)
        path, method = asked.scope["path"], asked.scope.get("method", "websocket")
        if self._host is not None and program and (method, path) == ("POST", LINKS):
            port = host.removeprefix(name)
            return JSONResponse({"link": f"http://{self._host}{port}{OPEN}?token={self._keys.make_token(_PAGES)}"})
        if program:
            return None
        if name == self._host:
            cookie = asked.cookies.get(_COOKIE)
            if (method, path) == ("GET", OPEN):
                session = self._keys.redeem(asked.query_params.get("token", ""), _PAGES, cookie)
                session = session or self._keys.session(cookie)
                return _refused(page=True) if session is None else _opened(session)
            # Browsers send the cookie with every request to this host, whichever site caused the request.
            ours = method in ("GET", "HEAD", "OPTIONS") or same_origin(asked.headers)
            if ours and self._keys.session(cookie) is not None:
                return None
        return _refused(page="text/html" in asked.headers.get("accept", ""))


def _opened(session: Session) -> Response:
    response = RedirectResponse("/", 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"})
    # Not strict, as links in messages lead here from other sites. Of requests that change anything the origin counts.
    response.set_cookie(_COOKIE, session.id, httponly=True, samesite="lax", path="/")
    return response


def _refused(*, page: bool) -> Response:
    if page:
        return HTMLResponse(_SIGN_IN, 401, {"Cache-Control": "no-store"})
    return JSONResponse({"exception_message": "Unauthorized"}, 401, {"Cache-Control": "no-store"})
