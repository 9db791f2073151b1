"""Servers that tests start themselves, and clients of Prefect's."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from flows.server import OwnServer, talking_to


@contextlib.contextmanager
def long_lived_server(port: int, records: Path) -> Iterator[OwnServer]:
    """A Prefect server as run by `faded serve`, with its record for other commands of the workspace."""
    with contextlib.closing(OwnServer("served_app", port, records)) as server, server.served():
        yield server


@contextlib.contextmanager
def client_of(api: str) -> Iterator[Any]:
    """A client of a Prefect server."""
    from prefect.client.orchestration import get_client

    with talking_to(api), get_client(sync_client=True) as client:
        yield client


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def until(what: Callable[[], Any], limit: float = 120.0, log: Path | None = None) -> Any:
    """Wait until something is true, for at most `limit` seconds; then fail, with the log if there is one."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} never came true" if log is None else log.read_text())


class Came(NamedTuple):
    """A request that came."""

    path: str
    headers: str
    body: str


@contextlib.contextmanager
def http_server(
    answer: Callable[[str], tuple[int, dict[str, str], bytes]],
) -> Iterator[tuple[int, queue.Queue[Came]]]:
    """Another program on loopback: its port, and the requests that came; `answer` has the response to a path."""
    came: queue.Queue[Came] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            came.put(Came(self.path, str(self.headers), self.rfile.read(size).decode()))
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, came
        server.shutdown()
