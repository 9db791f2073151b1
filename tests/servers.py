"""Servers that tests start themselves."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from flows.server import OwnServer


@contextlib.contextmanager
def long_lived_server(port: int, records: Path) -> Iterator[OwnServer]:
    """A Prefect server as run by `faded serve`, with its record for other commands of the workspace."""
    with contextlib.closing(OwnServer("served_app", port, records)) as server, server.served():
        yield server


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
