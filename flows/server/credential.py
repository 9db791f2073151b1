"""The credential of a Prefect server that Faded starts, and how Faded's own processes use it.

It is created when the server starts and never appears on a command line or in a log. Child processes get it in their
environment; other commands of the same user read it from the record of `faded serve` (flows/server/__init__.py).
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

_HEADER = "Authorization"
_OURS = "faded:"  # prefix of a generated one


def new_credential() -> str:
    """A credential for a server that is about to start: the one the user configured, otherwise a random one."""
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    for own in (settings.server.api.auth_string, settings.api.auth_string):
        if own is not None and own.get_secret_value():
            return own.get_secret_value()
    return _OURS + secrets.token_urlsafe(32)


def authorization(credential: str) -> str:
    """The value of the header that carries it."""
    return "Basic " + base64.b64encode(credential.encode()).decode("ascii")


def client_settings(api: str, credential: str | None = None) -> dict[Any, Any]:
    """Settings for Prefect's clients of a server.

    Args:
        api: the server's address.
        credential: the credential of a server that Faded started; None for any other, which must not receive it.
    """
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CUSTOM_HEADERS, get_current_settings

    settings = get_current_settings()
    shown = settings.client.custom_headers.get(_HEADER, "")
    # A header rather than PREFECT_API_AUTH_STRING, which Prefect sends over a websocket once it is open.
    if credential is not None:
        return {PREFECT_API_URL: api, PREFECT_CLIENT_CUSTOM_HEADERS: {_HEADER: authorization(credential)}}
    if api != settings.api.url and shown.startswith(authorization(_OURS)):
        return {PREFECT_API_URL: api, PREFECT_CLIENT_CUSTOM_HEADERS: {_HEADER: ""}}
    return {PREFECT_API_URL: api}


def client_environment() -> dict[str, str]:
    """The same for a child process: the variables of the current settings that name the server and its headers."""
    from prefect.settings import get_current_settings

    variables = get_current_settings().to_environment_variables(exclude_unset=True)
    names = ("PREFECT_API_URL", "PREFECT_CLIENT_CUSTOM_HEADERS", "PREFECT_UI_URL")
    return {name: variables[name] for name in names if name in variables}
