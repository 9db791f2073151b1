"""The Prefect API a flow talks to: the configured one, that of `faded serve`, or one that lives as long as the command.

A local server is our own child rather than Prefect's ephemeral one, for three reasons: it starts while the task's
configuration is being checked, it dies with us even by kill -9, and it keeps its database in the workspace
(.faded/prefect), away from that of other tools, so that migrating it is paid for once.

It answers to nobody without its credential (flows/guard.py), and should it die it is started again under the same
address: whoever talks to it waits for a moment, and nothing is lost, as its database is in the workspace.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NoReturn

import psutil
from pydantic import BaseModel, ValidationError

from flows.credential import authorization, client_settings, new_credential
from flows.origin import new_host
from flows.processes import RECORDS, child, end_all
from flows.workspace import LOGS
from stages.environment import WORK
from stages.errors import Exit, InfrastructureError, UsageError
from stages.files import replace_file

HOME = WORK / "prefect"  # its database
RECORD = WORK / "prefect-server.json"  # where the server of `faded serve` is found by other commands
_START_LIMIT = 180.0  # seconds; a loaded machine needs ten to migrate a new database
_DEATHS = 3  # of the server of one command, each soon after the last, until it is given up
_SOON = 60.0  # seconds
_CREDENTIAL = "PREFECT_SERVER_API_AUTH_STRING"  # in the environment of a server: what it demands
_HOST = "FADED_PREFECT_HOST"  # likewise: the name of its pages


class Record(BaseModel):
    """The running server of `faded serve`; the file is readable by its user alone.

    Args:
        url: of its API.
        pid: its process.
        started: when that started, as a process id alone may have been given to another process meanwhile.
        credential: what it demands.
        host: the name under which browsers see its pages.
    """

    url: str
    pid: int
    started: float
    credential: str
    host: str


def configured_api() -> str | None:
    """Where an API is to be found: PREFECT_API_URL (environment or profile), else the server of `faded serve`."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or served_api()


def served_api() -> str | None:
    """The API of the server that `faded serve` runs in this workspace, if it does and the server answers."""
    record = _served()
    return record.url if record is not None and _healthy(record.url, record.credential) else None


def answers(api: str) -> bool:
    """Whether a Prefect API is there."""
    return _healthy(api, _credential_of(api))


def talking_to(api: str) -> AbstractContextManager[Any]:
    """The context in which Prefect's clients talk to an API; to that of `faded serve` with its credential."""
    from prefect.settings import temporary_settings

    return temporary_settings(client_settings(api, _credential_of(api)))


def one_time_link() -> str:
    """Ask the server of `faded serve` for a link that opens its pages once, in one browser.

    Raises:
        UsageError: when none runs here.
        InfrastructureError: when it gives none.
    """
    import httpx

    from flows.guard import LINKS

    if (record := _served()) is None:
        raise UsageError("no Prefect server of `faded serve` is running in this workspace")
    headers = {"Authorization": authorization(record.credential)}
    url = record.url.removesuffix("/api") + LINKS
    try:
        return str(httpx.post(url, headers=headers, timeout=30, trust_env=False).raise_for_status().json()["link"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        who = f"the Prefect server (process {record.pid}, {record.url})"
        raise InfrastructureError(f"{who} gave no link: {error}") from None


def _credential_of(api: str) -> str | None:
    record = _served()
    return record.credential if record is not None and record.url == api else None


def _served() -> Record | None:
    """The record, if its process lives: then the port is still its own, and nobody else is shown the credential."""
    with contextlib.suppress(OSError, ValidationError, psutil.Error):
        record = Record.model_validate_json(RECORD.read_text(encoding="utf-8"))
        if psutil.Process(record.pid).create_time() == record.started:
            return record
    return None


def start_prefect_api(records: Path = RECORDS) -> Callable[[], AbstractContextManager[Any]]:
    """Start a local server unless there is one to talk to, see `configured_api`.

    Args:
        records: where the server is recorded as a child; `faded serve` and what may run beside an audit keep theirs
            apart, because an audit ends what it finds in its own.

    Returns:
        A function to call when the API is needed: it waits until the server answers, and returns the context in
        which flows find it.
    """
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return contextlib.nullcontext
    if (served := served_api()) is not None:
        return lambda: talking_to(served)
    server = OwnServer("app", 0, records)
    server.start()
    # Not earlier: Prefect hands over the last logs and events when the interpreter ends, in hooks that run before this.
    atexit.register(server.close)

    def ready() -> AbstractContextManager[Any]:
        server.wait()
        server.keep()
        return server.clients()

    return ready


class OwnServer:
    """A server on loopback, whose address and credential stay the same when it is started again.

    The port is held here, not by the server: it takes seconds to start, and meanwhile, or when it has died, somebody
    else might take the port, answer in its place, and be shown the credential.

    Args:
        factory: of its application, in this module.
        port: of loopback, 0 for any.
        records: where it is recorded as a child.
    """

    def __init__(self, factory: str, port: int, records: Path) -> None:
        self._listening, self._held = _listen(port)
        self.port = int(self._listening.getsockname()[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        self._factory, self._records = factory, records
        self.credential, self.host = new_credential(), new_host()
        self._life = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None

    def clients(self) -> AbstractContextManager[Any]:
        """The context in which Prefect's clients talk to it."""
        from prefect.settings import PREFECT_UI_URL, temporary_settings

        return temporary_settings({**client_settings(self.api, self.credential), PREFECT_UI_URL: self.pages})

    @property
    def pages(self) -> str:
        """The address of its web pages."""
        return f"http://{self.host}:{self.port}"

    def start(self) -> subprocess.Popen[str]:
        """Start its process; it answers once `wait` is done."""
        LOGS.mkdir(parents=True, exist_ok=True)
        HOME.mkdir(parents=True, exist_ok=True)
        HOME.chmod(0o700)  # Prefect encrypts secrets with a key that lies beside them
        fd = self._listening.fileno()
        command = ["uvicorn", "--factory", f"flows.server:{self._factory}", "--fd", str(fd), "--log-level", "warning"]
        # Appended to: one that was started again must not wipe out why the last one ended.
        output = self._life.enter_context(_log().open("a"))
        running = child(
            "prefect-server",
            command,
            self._environment(),
            output,
            interruptible=False,  # after Ctrl-C it is still told how the run ended
            records=self._records,
            pass_fds=[fd],
        )
        self._process = self._life.enter_context(running)
        return self._process

    def _environment(self) -> dict[str, str]:
        """Settings of its process, wherever the user has not set something else."""
        env = {
            "PREFECT_UI_URL": self.pages,
            "PREFECT_SERVER_UI_API_URL": f"{self.pages}/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.pages,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_HOME": str(HOME.resolve()),
            **os.environ,
            _CREDENTIAL: self.credential,
            _HOST: self.host,
        }
        return env | {"PREFECT_SERVER_LOGGING_LEVEL": "WARNING", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING"}

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            InfrastructureError: when it ends before.
        """
        assert self._process is not None
        deadline = time.monotonic() + _START_LIMIT
        while self._process.poll() is None and time.monotonic() < deadline:
            # Impatient: what was asked before it died is answered by nobody.
            if _healthy(self.api, self.credential, patience=1):
                return
            time.sleep(0.05)
        raise InfrastructureError(f"the local Prefect server did not start, see {_log()}")

    @contextlib.contextmanager
    def served(self) -> Iterator[subprocess.Popen[str]]:
        """Run it, and let other commands of the workspace find it."""
        try:
            process = self.start()
            self.wait()
            started = psutil.Process(process.pid).create_time()
            record = Record(url=self.api, pid=process.pid, started=started, credential=self.credential, host=self.host)
            replace_file(RECORD, record.model_dump_json(), mode=0o600)
            yield process
        finally:
            RECORD.unlink(missing_ok=True)
            self._life.close()

    def keep(self) -> None:
        """Start it again whenever it dies, until it is closed."""
        self._keeper = threading.Thread(target=self._keep, name="prefect-server", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        deaths, since = 0, time.monotonic()
        # The next one is started in this thread and dies with it, so it lives as long as the server is wanted.
        while not self._closing.wait(0.1):
            if self._process is not None and self._process.poll() is not None:
                deaths = deaths + 1 if time.monotonic() - since < _SOON else 1
                if deaths == _DEATHS:
                    _give_up(f"died {_DEATHS} times in a row, see {_log()}")
                since = time.monotonic()
                self._life.close()
                try:
                    self.start()
                except OSError as error:
                    _give_up(f"died and cannot be started again: {error}")

    def close(self) -> None:
        """End it for good."""
        self._closing.set()
        if self._keeper is not None:
            self._keeper.join()
        self._life.close()
        self._listening.close()
        if self._held is not None:
            self._held.close()


def _listen(port: int) -> tuple[socket.socket, socket.socket | None]:
    """Listen on a port of 127.0.0.1, 0 for any, and keep others from the same one of ::1.

    Browsers take a name under localhost to ::1, too: whoever listened there would be sent the one-time link.

    Returns:
        The socket that listens, and the one that only holds its place; None where there is no ::1.
    """
    for attempt in range(10):
        listening = socket.create_server(("127.0.0.1", port))
        held = None
        try:
            held = socket.socket(socket.AF_INET6)
            held.bind(("::1", listening.getsockname()[1]))  # not to be shared, so without SO_REUSEADDR
            return listening, held
        except OSError as error:
            if held is not None:
                held.close()
            if error.errno != errno.EADDRINUSE:  # the machine has no ::1
                return listening, None
            listening.close()
            if port or attempt == 9:
                raise
    raise AssertionError


def _give_up(why: str) -> NoReturn:
    """End the command, by force: without a server Prefect's clients try again for minutes, and say so at length."""
    end_all()
    sys.stdout.flush()
    print(f"error: the local Prefect server {why}; the same command resumes from here", file=sys.stderr)
    sys.stderr.flush()
    os._exit(Exit.INFRASTRUCTURE)


def ui_url(api: str) -> str:
    """The web pages that belong to an API; those of our own server have a host name of their own."""
    base = api.removesuffix("/").removesuffix("/api")
    record = _served()
    return base if record is None or record.url != api else f"http://{record.host}:{base.rpartition(':')[2]}"


def _log() -> Path:
    return LOGS / "prefect-server.log"


def _healthy(api: str, credential: str | None, patience: float = 5) -> bool:
    import httpx

    headers = {} if credential is None else {"Authorization": authorization(credential)}
    with contextlib.suppress(httpx.TransportError):
        # Reading all certificates takes ten times as long as the question, which is asked twenty times a second.
        verify = not api.startswith("http:")
        answer = httpx.get(f"{api}/health", headers=headers, timeout=patience, trust_env=False, verify=verify)
        return answer.status_code == httpx.codes.OK
    return False


def app() -> Any:
    """Build the application of a short-lived server: no web pages, no services that only a long-lived one needs."""
    return _guarded(None)


def served_app() -> Any:
    """Build the application of a long-lived server: web pages, scheduler, automations."""
    return _guarded(os.environ[_HOST])


def _guarded(host: str | None) -> Any:
    from flows.guard import Guard

    # Around it, not in it: the server's own services (automations) call it within the process, without a credential.
    # Prefect does not learn of it: it would let some routes through, and have its pages ask for a password.
    credential = os.environ.pop(_CREDENTIAL)
    from prefect.server.api.server import create_app

    return Guard(create_app(ephemeral=host is None, final=True), credential, host)
