"""The review server: listens in its own thread as long as it is needed, and writes a record of itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flows.people.review.links import RECORD, Served
from flows.server.security import ServerRecord, is_loopback, new_host
from stages.core.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from fastapi import APIRouter
    from starlette.types import ASGIApp, Receive, Scope, Send

HOST = "127.0.0.1"
PORT = 8711  # a fixed one if it is free, so that it can be forwarded
_START_LIMIT = 30.0  # seconds
REQUEST_SECONDS = 10.0  # from connecting, or the last response, to a complete request
MAX_WAITING = 200  # connections without a request; a process may open about 1000 files


@contextlib.contextmanager
def serve_review(
    audits: Sequence[str], host: str = HOST, port: int | None = None, public: str | None = None
) -> Iterator[Served]:
    """Serve the review pages of these audits in a background thread while the block runs.

    Raises a UsageError if it cannot listen on host and port, and an InfrastructureError if the server does not start.

    Args:
        port: port to listen on; 0 for any free one, by default PORT if it is free.
        public: address of a proxy in front of it, if there is one; pages are then served under that address only.
    """
    with serve_pages(audits, host, port, public) as served:
        record = ServerRecord.of(os.getpid(), served.address, served.keys.secret, audits=audits)
        try:
            record.write(RECORD)
            yield served
        finally:
            record.remove(RECORD)


@contextlib.contextmanager
def serve_pages(
    audits: Sequence[str],
    host: str = HOST,
    port: int | None = None,
    public: str | None = None,
    pages: APIRouter | None = None,
    **served_with: Any,
) -> Iterator[Served]:
    """Serve pages of these audits in a background thread while the block runs; see `serve_review`.

    Args:
        pages: their routes, by default those of reviews.
        served_with: further fields of `Served`.
    """
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in _listen(host, port)]
        number = listeners[0].getsockname()[1]
        name = new_host() if is_loopback(host) else _reached(host)
        url = f"http://{name}:{number}"
        if public is not None:
            name, url = urlsplit(public).hostname or "", public
        address, cookie = f"http://{_local(host)}:{number}", f"faded-review-{number}"
        served = Served(list(audits), address, name, url, cookie, behind_proxy=public is not None, **served_with)

        @cache
        def application() -> ASGIApp:  # at the first request, so that it takes no memory until then
            from flows.people.review.app import make_app

            return make_app(served, pages)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            await application()(scope, receive, send)

        config = uvicorn.Config(
            answer,
            http=Impatient,
            backlog=100,
            access_log=False,  # it would contain tokens
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": listeners}, name="pages", daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + _START_LIMIT
            while not server.started:
                if not thread.is_alive() or time.monotonic() > deadline:
                    raise InfrastructureError("the review server did not start")
                time.sleep(0.01)
            yield served
        finally:
            server.should_exit = True
            thread.join(10)


class Impatient(H11Protocol):
    """A connection that is closed if no complete request arrives in time, or if too many others are waiting as well.

    Uvicorn itself does not limit how long a request may take to arrive.
    """

    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()
        waiting = [c for c in self.connections if isinstance(c, Impatient) and c.waits()]
        if len(waiting) > MAX_WAITING:
            min(waiting, key=Impatient._merit).transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._timer.cancel()
            self._expect()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of one that was answered before it was read."""
        self._timer.cancel()
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def waits(self) -> bool:
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def _merit(self) -> tuple[bool, float]:
        # A client that got a response and sends nothing may be a reviewer who is reading.
        return self.conn.their_state is h11.IDLE and self.cycle is not None, self._timer.when()

    def _expect(self) -> None:
        self._timer = self.loop.call_later(REQUEST_SECONDS, self._expire)

    def _expire(self) -> None:
        if self.waits():
            self.transport.abort()


def _listen(host: str, port: int | None) -> list[socket.socket]:
    hosts = [host]
    if is_loopback(host):
        # Browsers may resolve a name under localhost to either: a program on the other one would get our requests.
        hosts = [HOST, "::1"]
        if host not in (*hosts, "localhost"):
            raise UsageError(f"--host {host}: browsers find the page at {' and '.join(hosts)} alone")
    for number in [port] if port else [*([PORT] if port is None else []), *[0] * 10]:
        try:
            return _listen_on(hosts, number)
        except (OSError, OverflowError) as error:
            found = error
    raise UsageError(f"--host {host}, --port {port}: cannot listen there: {found}")


def _listen_on(hosts: Sequence[str], number: int) -> list[socket.socket]:
    """Listen on one port of several hosts; all but the first may be missing on a machine."""
    listeners: list[socket.socket] = []
    try:
        for host in hosts:
            try:
                family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
                listeners.append(socket.create_server((host, number), family=family))
                number = listeners[0].getsockname()[1]
            except OSError as error:
                if not listeners or error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _reached(host: str) -> str:
    """The host for an address; the machine's name for a server on all interfaces."""
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _local(host: str) -> str:
    if host == "::":
        return "[::1]"
    return HOST if host in ("0.0.0.0", "") or is_loopback(host) else _reached(host)


def warning(host: str) -> str | None:
    """A warning about a host that others can reach."""
    if is_loopback(host):
        return None
    return (
        f"listening on {host}: others on the network reach this page too; its one-time link is all that protects it,"
        " and nothing is encrypted"
    )
