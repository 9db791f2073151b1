"""The Prefect API a flow talks to: the configured one, or a local server that lives as long as the command.

The local server is our own child rather than Prefect's ephemeral one, for three reasons: it starts while the task's
configuration is being checked, it dies with us even by kill -9, and it keeps its database in the workspace
(.faded/prefect), away from that of other tools, so that migrating it is paid for once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from flows.processes import child
from flows.workspace import LOGS
from stages.environment import WORK
from stages.errors import InfrastructureError

_START_LIMIT = 180.0  # seconds; a loaded machine needs ten to migrate a new database


def start_prefect_api() -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Start a local server unless PREFECT_API_URL (environment or profile) names one.

    Returns:
        A function to call when the API is needed: it waits until the server answers, and returns the context in
        which flows find it.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    if get_current_settings().api.url:
        return contextlib.nullcontext
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / "prefect-server.log"
    env = {**os.environ, "PREFECT_SERVER_LOGGING_LEVEL": "WARNING", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}
    env.setdefault("PREFECT_HOME", str((WORK / "prefect").resolve()))
    command = ["uvicorn", "--factory", "flows.server:app", "--host", "127.0.0.1", "--port", str(port)]
    life = contextlib.ExitStack()
    output = life.enter_context(log.open("w"))
    command += ["--log-level", "warning"]
    # Not interruptible: after Ctrl-C it is still told how the run ended.
    process = life.enter_context(child("prefect-server", command, env, output, interruptible=False))
    # Not earlier: Prefect hands over the last logs and events when the interpreter ends, in hooks that run before this.
    atexit.register(life.close)

    def ready() -> contextlib.AbstractContextManager[Any]:
        _wait(url, lambda: process.poll() is None, str(log))
        return temporary_settings({PREFECT_API_URL: url})

    return ready


def _wait(url: str, alive: Callable[[], bool], log: str) -> None:
    import httpx

    deadline = time.monotonic() + _START_LIMIT
    while alive() and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.05)
    raise InfrastructureError(f"the local Prefect server did not start, see {log}")


def app() -> Any:
    """Build the server's application: no web pages, no background services that only a long-lived server needs."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)
