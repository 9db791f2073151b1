"""The Prefect API a flow talks to: the configured one, that of `faded serve`, or one that lives as long as the command.

A local server is our own child rather than Prefect's ephemeral one, for three reasons: it starts while the task's
configuration is being checked, it dies with us even by kill -9, and it keeps its database in the workspace
(.faded/prefect), away from that of other tools, so that migrating it is paid for once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from flows.processes import RECORDS, child
from flows.workspace import LOGS
from stages.environment import WORK
from stages.errors import InfrastructureError

HOME = WORK / "prefect"  # its database
RECORD = WORK / "prefect-server.json"  # where the server of `faded serve` is found by other commands
_START_LIMIT = 180.0  # seconds; a loaded machine needs ten to migrate a new database


def configured_api() -> str | None:
    """Where an API is to be found: PREFECT_API_URL (environment or profile), else the server of `faded serve`."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or served_api()


def served_api() -> str | None:
    """The API of the server that `faded serve` runs in this workspace, if it does and the server answers."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, psutil.Error):
        record = json.loads(RECORD.read_text())
        # A process id alone may have been given to another process meanwhile.
        if psutil.Process(record["pid"]).create_time() == record["started"] and answers(record["url"]):
            return str(record["url"])
    return None


def start_prefect_api(records: Path = RECORDS) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Start a local server unless there is one to talk to, see `configured_api`.

    Args:
        records: where the server is recorded as a child; `faded serve` and what may run beside an audit keep theirs
            apart, because an audit ends what it finds in its own.

    Returns:
        A function to call when the API is needed: it waits until the server answers, and returns the context in
        which flows find it.
    """
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    if get_current_settings().api.url:
        return contextlib.nullcontext
    if (served := served_api()) is not None:
        return lambda: temporary_settings({PREFECT_API_URL: served})
    life = contextlib.ExitStack()
    # Not interruptible: after Ctrl-C it is still told how the run ended.
    base, process = life.enter_context(_server("app", 0, records))
    # Not earlier: Prefect hands over the last logs and events when the interpreter ends, in hooks that run before this.
    atexit.register(life.close)

    def ready() -> contextlib.AbstractContextManager[Any]:
        _wait(base, process)
        return temporary_settings({PREFECT_API_URL: f"{base}/api"})

    return ready


@contextlib.contextmanager
def long_lived_server(port: int, records: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a server with web pages and all services on loopback, and let other commands of the workspace find it."""
    with _server("served_app", port, records) as (base, process):
        _wait(base, process)
        record = {"url": f"{base}/api", "pid": process.pid, "started": psutil.Process(process.pid).create_time()}
        partial = RECORD.with_suffix(".partial")
        partial.write_text(json.dumps(record))
        partial.replace(RECORD)
        try:
            yield process
        finally:
            RECORD.unlink(missing_ok=True)


def free_port(wanted: int = 0) -> int:
    """A port of loopback that is free: the wanted one if it is."""
    with contextlib.suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", wanted)) as probe:
        return int(probe.getsockname()[1])
    return free_port()


def ui_url(api: str) -> str:
    """The web pages that belong to an API."""
    return api.removesuffix("/").removesuffix("/api")


def _environment(port: int) -> dict[str, str]:
    """Settings of a server, wherever the user has not set something else.

    Whoever can call its API can start processes as this user, now or, as the database is shared, once `faded serve`
    runs. It has no password of its own (PREFECT_SERVER_API_AUTH_STRING gives it one), so pages of other sites that are
    open in a browser are kept out: no cross-origin requests, a token for each change, no foreign host name.
    """
    base = f"http://127.0.0.1:{port}"
    env = {
        "PREFECT_SERVER_UI_API_URL": f"{base}/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{base},http://localhost:{port}",
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_HOME": str(HOME.resolve()),
        **os.environ,
    }
    return env | {"PREFECT_SERVER_LOGGING_LEVEL": "WARNING", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}


@contextlib.contextmanager
def _server(factory: str, port: int, records: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start one on a port of loopback, 0 for any; gives its address, which answers once `_wait` is done."""
    LOGS.mkdir(parents=True, exist_ok=True)
    HOME.mkdir(parents=True, exist_ok=True)
    HOME.chmod(0o700)  # Prefect encrypts secrets with a key that lies beside them
    with contextlib.ExitStack() as life:
        # The server is given the socket, not the port: it takes seconds to start, and meanwhile somebody else might
        # take the port, answer in its place, and end in the middle of our run.
        with socket.create_server(("127.0.0.1", port)) as listening:
            port = int(listening.getsockname()[1])
            fd = listening.fileno()
            command = ["uvicorn", "--factory", f"flows.server:{factory}", "--fd", str(fd), "--log-level", "warning"]
            # Appended to: one that was started again must not wipe out why the last one ended.
            output = life.enter_context(_log().open("a"))
            running = child(
                "prefect-server",
                command,
                _environment(port),
                output,
                interruptible=False,
                records=records,
                pass_fds=[fd],
            )
            process = life.enter_context(running)
        yield f"http://127.0.0.1:{port}", process


def _log() -> Path:
    return LOGS / "prefect-server.log"


def _wait(base: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while process.poll() is None and time.monotonic() < deadline:
        if answers(f"{base}/api"):
            return
        time.sleep(0.05)
    raise InfrastructureError(f"the local Prefect server did not start, see {_log()}")


def answers(url: str) -> bool:
    """Whether a Prefect API is there."""
    import httpx

    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    return False


def app() -> Any:
    """Build the application of a short-lived server: no web pages, no services that only a long-lived one needs."""
    from prefect.server.api.server import create_app

    return _of_this_machine(create_app(ephemeral=True, final=True))


def served_app() -> Any:
    """Build the application of a long-lived server: web pages, scheduler, automations."""
    from prefect.server.api.server import create_app

    return _of_this_machine(create_app(final=True))


def _of_this_machine(application: Any) -> Any:
    """Refuse foreign host names: a page whose name comes to mean 127.0.0.1 (DNS rebinding) is no page of ours."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # Around it, not in it: the server's own services (automations) call it within the process, by a name of their own.
    return TrustedHostMiddleware(application, allowed_hosts=["127.0.0.1", "localhost"])
