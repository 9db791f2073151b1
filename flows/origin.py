"""Host names of our own for the servers of a workspace, so that no other server shares their cookies.

Cookies know hosts, not ports: whatever listens on another port of 127.0.0.1, another user's program included, would be
sent a cookie of 127.0.0.1. A random name under `localhost`, which browsers resolve to this machine by themselves (RFC
6761), cannot be guessed, so no foreign page can lead a browser to it on a port of its own.
"""

from __future__ import annotations

import secrets


def new_host() -> str:
    """A host name for one server that runs now, never used again: who gets its port later gets nothing with it."""
    return f"faded-{secrets.token_hex(16)}.localhost"
