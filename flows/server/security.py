"""Access control of the review page: one-time links, sessions, and checks of where a request comes from.

The page shows a model's words, and the decision changes a model, so listening on loopback only is not enough: other
users and programs of the machine can connect too, and any web page open in a browser may send requests to it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LINK_SECONDS = 3600  # an unopened link expires after this
IDLE_SECONDS = 12 * 3600  # so does a session without requests, as a server may run for months
MAX_BODY = 1_000_000  # bytes of a form: a large landscape with every field filled in takes a tenth

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


@dataclass
class Session:
    """A browser that signed in with a one-time link.

    Args:
        id: value of its cookie.
        csrf: token that its forms have to contain, which no other page can know.
        audits: audits that its links were for; it sees no others.
        seen: audits it was shown.
        done: audits on which it recorded a decision.
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

        Returns:
            None if the token was used before, has expired, or is for another audit.
        """
        with self._lock:
            of, reviewer, expires = self._links.pop(_digest(token), ("", "", 0.0))
            if of != audit or expires < time.monotonic():
                return None
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
        """The session of a cookie."""
        with self._lock:
            if (session := self._live(cookie)) is not None:
                session.used = time.monotonic()
            return session

    def undecided(self) -> int:
        """Number of browsers that were shown an audit without recording a decision on it."""
        with self._lock:
            self._forget()
            return sum(bool(s.seen - s.done) for s in self._sessions.values())

    def _live(self, cookie: str | None) -> Session | None:
        self._forget()
        return self._sessions.get(_digest(cookie)) if cookie else None

    def _forget(self) -> None:
        oldest = time.monotonic() - IDLE_SECONDS
        self._sessions = {digest: session for digest, session in self._sessions.items() if session.used > oldest}


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

    Args:
        header: the request's Host header; its port may differ, as through a tunnel.
        host: the host of the pages: a secret name, or the host that `--host` made reachable.
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


def same_origin(host: str | None, origin: str | None, referrer: str | None) -> bool:
    """Whether one of our pages sent a form: its origin, or without one its referrer, has our host."""
    source = origin if origin is not None else referrer
    if not source or not host:
        return False
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
