"""Servers that tests start themselves, and clients of Prefect's."""

import contextlib
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from flows.server import RECORD, talking_to
from flows.server.security import ServerRecord
from tests.endpoints import Responder, listening


class LongLived(NamedTuple):
    """A Prefect server as run by `faded serve`, in a process of its own."""

    api: str
    credential: str
    host: str
    port: int

    def clients(self) -> AbstractContextManager[Any]:
        """The context in which Prefect's clients use it."""
        return talking_to(self.api)


_SERVE = """
import contextlib, sys
from flows.server import OwnServer
with contextlib.closing(OwnServer(int(sys.argv[1]))) as server, server.served():
    print("serves", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def long_lived_server(port: int) -> Iterator[LongLived]:
    """Serve the current workspace, with the server's record for other commands."""
    command = [sys.executable, "-c", _SERVE, str(port)]
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            assert process.stdout.readline() == "serves\n"
            record = ServerRecord.read(RECORD)
            assert record is not None
            yield LongLived(record.url, record.secret, record.host, int(record.url.split(":")[-1].removesuffix("/api")))
        finally:
            process.stdin.close()


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
def http_server(answer: Callable[[str], tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[int, queue.Queue[Came]]]:
    """Another program on loopback: its port, and the requests that came; `answer` has the response to a path."""
    came: queue.Queue[Came] = queue.Queue()

    class Handler(Responder):
        def do_GET(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            came.put(Came(self.path, str(self.headers), self.rfile.read(size).decode()))
            self.respond(*answer(self.path))

        do_POST = do_GET

    with listening(Handler) as port:
        yield port, came
