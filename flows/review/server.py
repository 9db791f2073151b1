"""The review server: listens in a thread of its own as long as it is needed, and leaves a record of itself."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import uvicorn

from flows.review.app import Served, make_app
from flows.review.links import Running, remove_record, write_record
from flows.review.recording import Outcome
from flows.review.security import is_loopback
from stages.errors import InfrastructureError, UsageError

HOST = "127.0.0.1"
PORT = 8711  # always the same one if it is free: browsers keep drafts by address
_START_LIMIT = 30.0  # seconds


class ReviewServer:
    """A running review server.

    Args:
        url: its address, as a person of this machine reaches it.
        served: what it shows, to whom.
        outcomes: decisions that were recorded and answered.
    """

    def __init__(self, url: str, served: Served, outcomes: queue.Queue[Outcome]) -> None:
        self.url, self._served, self._outcomes = url, served, outcomes

    def one_time_link(self, audit: str) -> str:
        """An address that opens an audit's page once, in one browser."""
        return self._served.link(audit)

    def next_outcome(self) -> Outcome:
        """Wait for the next decision; its reviewer has been answered by then."""
        return self._outcomes.get()

    def undecided(self) -> int:
        """How many browsers were shown an audit and recorded no decision on it, or one that is to be told here yet."""
        return self._served.keys.undecided() or self._outcomes.qsize()


@contextlib.contextmanager
def serve_review(audits: Sequence[str], host: str = HOST, port: int | None = None) -> Iterator[ReviewServer]:
    """Serve the review pages of these audits in a background thread, as long as the block takes.

    Args:
        audits: names under audits: in params.yaml.
        host: name or address to listen on.
        port: to listen on; 0 for any that is free, by default PORT if that is free.

    Raises:
        UsageError: when host and port cannot be listened on.
        InfrastructureError: when the server does not start.
    """
    with _listen(host, port) as listener:
        number = listener.getsockname()[1]
        url = f"http://{_reached(host)}:{number}"
        outcomes: queue.Queue[Outcome] = queue.Queue()
        served = Served(audits, host, url, f"faded-review-{number}", outcomes.put)
        config = uvicorn.Config(
            make_app(served),
            access_log=False,  # it would hold tokens
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="review", daemon=True)
        thread.start()
        record = Running(url=f"http://{_local(host)}:{number}", pid=os.getpid(), secret=served.keys.secret)
        try:
            _wait(server, thread)
            write_record(record)
            yield ReviewServer(url, served, outcomes)
        finally:
            remove_record(record)
            server.should_exit = True
            thread.join(10)


def _listen(host: str, port: int | None) -> socket.socket:
    for number in (PORT, 0) if port is None else (port,):
        try:
            family = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, number), family=family)
        except (OSError, OverflowError) as error:
            found = error
    raise UsageError(f"--host {host}, --port {port}: cannot be listened on: {found}")


def _reached(host: str) -> str:
    """The host as it stands in an address; that of a server on all interfaces is the machine's name."""
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _local(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return HOST if host != "::" else "[::1]"
    return _reached(host)


def _wait(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise InfrastructureError("the review server did not start")
        time.sleep(0.01)


def warning(host: str) -> str | None:
    """What to say of a host that others can reach too."""
    if is_loopback(host):
        return None
    return (
        f"listening on {host}: others on the network reach this page too; its one-time link is all that protects it,"
        " and nothing is encrypted"
    )
