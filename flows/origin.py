"""Host names of our own for the servers of a workspace, so that no other server shares their cookies.

Cookies know hosts, not ports: whatever listens on another port of 127.0.0.1, another user's program included, would be
sent a cookie of 127.0.0.1. A random name under `localhost`, which browsers resolve to this machine by themselves (RFC
6761), cannot be guessed, so no foreign page can lead a browser to it on a port of its own.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from pathlib import Path

from stages.environment import WORK

_NAME = re.compile(r"faded-[0-9a-f]{32}\.localhost")


def new_host() -> str:
    """A host name for one server that runs now, never used again: who gets its port later gets nothing with it."""
    return f"faded-{secrets.token_hex(16)}.localhost"


def own_host(server: str) -> str:
    """The host name of a server of this workspace; the same each time, so that links sent to people keep working.

    Args:
        server: which one: `prefect` or `review`. Each has a name of its own.
    """
    path = WORK / f"{server}.host"
    try:
        if _NAME.fullmatch(name := path.read_text(encoding="ascii").strip()):
            return name
    except (OSError, UnicodeDecodeError):
        pass
    name = new_host()
    WORK.mkdir(exist_ok=True)
    number, partial = tempfile.mkstemp(dir=WORK, prefix=path.name, suffix=".partial")  # with mode 0600
    with os.fdopen(number, "w", encoding="ascii") as file:
        file.write(name + "\n")
    Path(partial).replace(path)
    return name
