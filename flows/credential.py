"""The credential of a Prefect server that Faded starts, and how Faded's own processes show it.

It is made when the server starts and stands on no command line and in no log: children get it in their environment,
other commands of the same user read it from the record of `faded serve` (flows/server.py).
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

_HEADER = "Authorization"
_OURS = "faded:"  # how a generated one begins


def new_credential() -> str:
    """For a server that is about to start: the user's own if there is one, else a random one."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    for own in (settings.server.api.auth_string, settings.api.auth_string):
        if own is not None and own.get_secret_value():
            return own.get_secret_value()
    return _OURS + secrets.token_urlsafe(32)


def authorization(credential: str) -> str:
    """The value of the header that shows it."""
    return "Basic " + base64.b64encode(credential.encode()).decode("ascii")


def client_settings(api: str, credential: str | None = None) -> dict[Any, Any]:
    """Settings with which Prefect's clients talk to a server.

    Args:
        api: its address.
        credential: of a server of ours; None for one that is not, which is not shown ours either.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CUSTOM_HEADERS, get_current_settings

    settings = get_current_settings()
    shown = settings.client.custom_headers.get(_HEADER, "")
    # A header rather than PREFECT_API_AUTH_STRING: that one is sent over a websocket once it is open.
    if credential is not None:
        return {PREFECT_API_URL: api, PREFECT_CLIENT_CUSTOM_HEADERS: {_HEADER: authorization(credential)}}
    if api != settings.api.url and shown.startswith(authorization(_OURS)):
        return {PREFECT_API_URL: api, PREFECT_CLIENT_CUSTOM_HEADERS: {_HEADER: ""}}
    return {PREFECT_API_URL: api}


def client_environment() -> dict[str, str]:
    """The same for a child process: what the present settings say of the server and how to talk to it."""
    from prefect.settings import get_current_settings

    variables = get_current_settings().to_environment_variables(exclude_unset=True)
    names = ("PREFECT_API_URL", "PREFECT_CLIENT_CUSTOM_HEADERS", "PREFECT_UI_URL")
    return {name: variables[name] for name in names if name in variables}
