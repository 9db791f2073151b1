"""Random host names for the servers of a workspace, so that no other server shares their cookies.

Browsers send cookies by host and ignore the port: a cookie of 127.0.0.1 would go to any server on another of its ports,
including another user's. A random name under `localhost`, which browsers resolve to this machine by themselves (RFC
6761), cannot be guessed, so no foreign page can lead a browser to that name on its own port.
"""

from __future__ import annotations

import secrets


def new_host() -> str:
    """A host name for one run of a server, never used again: a later server on the same port gets no cookies."""
    return f"faded-{secrets.token_hex(16)}.localhost"
