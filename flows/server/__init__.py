"""The Prefect API a flow uses: the configured one, that of `faded serve`, or one that lives as long as the command.

A local server is our own child rather than Prefect's ephemeral one, for three reasons: it starts while the task's
configuration is being checked, it dies with us even on kill -9, and it keeps its database in the workspace
(.faded/prefect), separate from that of other tools, so that its tables are made only once.

It answers no request without its credential (flows/server/security.py). If it dies, it is restarted at the same
address: clients wait for a moment, and nothing is lost, as its database is in the workspace.
"""

import atexit
import contextlib
import errno
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from flows.processes import RECORDS, child, end_children
from flows.server.security import LINKS, Guard, ServerRecord, authorization, client_settings, new_credential, new_host
from flows.server.tables import make_tables
from flows.workspace import LOGS
from stages.core.environment import WORK
from stages.core.errors import Exit, InfrastructureError, UsageError
from stages.core.files import replace_file

if TYPE_CHECKING:
    import uvicorn

HOME = WORK / "prefect"  # its database
_LOG = LOGS / "prefect-server.log"
RECORD = WORK / "prefect-server.json"  # record of the server of `faded serve` for other commands
_START_LIMIT = 180.0  # seconds; a loaded machine needs ten to make a new database
_DEATHS = 3  # deaths in quick succession after which a command gives up its server
_SOON = 60.0  # seconds
_END_LIMIT = 10.0  # seconds
_CREDENTIAL = "PREFECT_SERVER_API_AUTH_STRING"  # environment variable of a server: the credential it demands


def configured_api() -> str | None:
    """URL of an existing API: PREFECT_API_URL (environment or profile), else the server of `faded serve`."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url or served_api()


def served_api() -> str | None:
    """URL of the API that `faded serve` runs in this workspace; None if there is none or it does not respond."""
    record = ServerRecord.read(RECORD)
    return record.url if record is not None and _healthy(record.url, record.secret) else None


def responds(api: str) -> bool:
    """Whether a Prefect API responds."""
    return _healthy(api, _credential_of(api))


def talking_to(api: str) -> AbstractContextManager[Any]:
    """The context in which Prefect's clients use an API; that of `faded serve` with its credential."""
    from prefect.settings import temporary_settings

    return temporary_settings(client_settings(api, _credential_of(api)))


def prefect_link() -> str:
    """Request a link from the server of `faded serve` that opens its pages once, in one browser.

    Raises a UsageError if none runs here, and an InfrastructureError if it returns no link.
    """
    import httpx

    if (record := ServerRecord.read(RECORD)) is None:
        raise UsageError("no Prefect server of `faded serve` is running in this workspace")
    headers = {"Authorization": authorization(record.secret)}
    url = record.url.removesuffix("/api") + LINKS
    try:
        return str(httpx.post(url, headers=headers, timeout=30, trust_env=False).raise_for_status().json()["link"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        who = f"the Prefect server (process {record.pid}, {record.url})"
        raise InfrastructureError(f"{who} gave no link: {error}") from None


def _credential_of(api: str) -> str | None:
    record = ServerRecord.read(RECORD)
    return record.secret if record is not None and record.url == api else None


def start_prefect_api(records: Path = RECORDS) -> Callable[[], AbstractContextManager[Any]]:
    """Start a local server unless there is one already, see `configured_api`.

    It returns a function to call when the API is needed, which waits until the server responds, and returns the context
    in which flows use it. Commands that may run beside an audit need a folder of records of their own, because an audit
    ends whatever is in its folder.
    """
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return contextlib.nullcontext
    if (served := served_api()) is not None:
        return lambda: talking_to(served)
    server = OwnServer(0, records)
    server.start()
    # Not earlier: at exit, Prefect sends the last logs and events in hooks that run before this one.
    atexit.register(server.close)

    def ready() -> AbstractContextManager[Any]:
        server.wait()
        server.keeper.start()
        return server.clients()

    return ready


class OwnServer:
    """A server on loopback: a child that keeps its address and credential when it is restarted, or a thread.

    This process holds the port, not the server, which takes seconds to start. Meanwhile, or after it died, another
    program could otherwise take the port, respond in its place, and receive the credential.
    """

    def __init__(self, port: int, records: Path = RECORDS) -> None:
        for folder in (LOGS, HOME):
            folder.mkdir(parents=True, exist_ok=True)
        HOME.chmod(0o700)  # Prefect encrypts secrets with a key that is stored beside them
        self._sockets = _listen(port)
        self.port = int(self._sockets[0].getsockname()[1])
        self.api = f"http://127.0.0.1:{self.port}/api"
        self._records = records
        self.credential, self.host = new_credential(), new_host()
        self._life = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._closing = threading.Event()
        self.keeper = threading.Thread(target=self._keep, name="prefect-server", daemon=True)

    def clients(self) -> AbstractContextManager[Any]:
        """The context in which Prefect's clients use it."""
        from prefect.settings import PREFECT_UI_URL, temporary_settings

        return temporary_settings({**client_settings(self.api, self.credential), PREFECT_UI_URL: self.pages})

    @property
    def pages(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> None:
        """Start it as a child."""
        fd = self._sockets[0].fileno()
        levels = dict.fromkeys(("PREFECT_SERVER_LOGGING_LEVEL", "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"), "WARNING")
        command = ["uvicorn", "--factory", "flows.server:app", "--fd", str(fd), "--log-level", "warning"]
        # Append: a restarted server must not overwrite why the last one ended.
        output = self._life.enter_context(_LOG.open("a"))
        running = child(
            "prefect-server",
            command,
            {**self._defaults(), **os.environ, **levels, _CREDENTIAL: self.credential},
            output,
            interruptible=False,  # after Ctrl-C, the end of the run is still reported to it
            records=self._records,
            pass_fds=[fd],
        )
        self._process = self._life.enter_context(running)

    def _defaults(self) -> dict[str, str]:
        """Settings of the server; the user's own take precedence."""
        return {
            "PREFECT_UI_URL": self.pages,
            "PREFECT_SERVER_UI_API_URL": f"{self.pages}/api",
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.pages,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
            "PREFECT_HOME": str(HOME.resolve()),
        }

    @property
    def alive(self) -> bool:
        if self._thread is not None:
            return self._thread.is_alive()
        return self._process is not None and self._process.poll() is None

    def wait(self) -> None:
        """Wait until it responds. Raises an InfrastructureError if it ends first."""
        deadline = time.monotonic() + _START_LIMIT
        while self.alive and time.monotonic() < deadline:
            # With a short time-out, as requests from before it died are never answered.
            if _healthy(self.api, self.credential, patience=1):
                return
            time.sleep(0.05)
        raise InfrastructureError(f"the local Prefect server did not start, see {_LOG}")

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """Run it in a thread, with web pages and services, and write its record for other commands of the workspace.

        `faded serve` is a client of its own server: another process would take Prefect's memory a second time. Raises
        an InfrastructureError if it does not start.
        """
        with _LOG.open("a") as log:
            self._thread = threading.Thread(target=self._serve, args=(log,), name="prefect-server", daemon=True)
            try:
                self._thread.start()
                self.wait()
                ServerRecord.of(os.getpid(), self.api, self.credential, self.host).write(RECORD)
                yield
            finally:
                RECORD.unlink(missing_ok=True)
                if self._uvicorn is not None:
                    self._uvicorn.should_exit = self._uvicorn.force_exit = True
                self._thread.join(_END_LIMIT)

    def _serve(self, log: IO[str]) -> None:
        import uvicorn
        from prefect import settings

        defaults = {getattr(settings, name): value for name, value in self._defaults().items()}
        levels = {settings.PREFECT_SERVER_LOGGING_LEVEL: "WARNING"}
        # Prefect must not know of the credential, see `_guarded`.
        with settings.temporary_settings(levels, defaults, {settings.PREFECT_SERVER_API_AUTH_STRING}):
            try:
                ready = self._tables_ready(settings.PREFECT_API_DATABASE_CONNECTION_URL.value(), log)
                with contextlib.redirect_stderr(log):  # loggers keep the stderr that they find
                    application = _guarded(self.credential, self.host)
                    self._uvicorn = uvicorn.Server(uvicorn.Config(application, log_level="warning"))
                with settings.temporary_settings(
                    {settings.PREFECT_API_DATABASE_MIGRATE_ON_START: False} if ready else {}
                ):
                    self._uvicorn.run(self._sockets[:1])
            except Exception:
                traceback.print_exc(file=log)

    def _tables_ready(self, url: str, log: IO[str]) -> bool:
        """Bring our own database up to date in another process; False if the server has to, or will say why it fails.

        This process would keep the 30 MB that a new database takes, or 7 for any other, until it ends.
        """
        import prefect

        if (database := _own_database(url)) is None:
            return False
        made_by = database.with_name("made-by")  # the version of Prefect that the database is of
        if _has_tables(database) and made_by.exists() and made_by.read_text() == prefect.__version__:
            return True
        upgrade = ["prefect", "server", "database", "upgrade", "--yes"]
        make = upgrade if database.exists() else ["flows.server.tables", str(database)]
        command = [sys.executable, "-P", "-m", "flows.start.child", str(os.getpid()), *make]
        env = {**self._defaults(), **os.environ}
        done = subprocess.run(command, env=env, stdout=log, stderr=log, check=False)
        if done.returncode == 0:
            replace_file(made_by, prefect.__version__)
        return done.returncode == 0

    def _keep(self) -> None:
        """Restart it whenever it dies, until it is closed.

        The restarted server is a child of this thread and dies with it, so the thread lives as long as it is needed.
        """
        deaths, since = 0, time.monotonic()
        while not self._closing.wait(0.1):
            if self._process is not None and self._process.poll() is not None:
                deaths = deaths + 1 if time.monotonic() - since < _SOON else 1
                if deaths == _DEATHS:
                    _give_up(f"died {_DEATHS} times in a row, see {_LOG}")
                since = time.monotonic()
                self._life.close()
                try:
                    self.start()
                except OSError as error:
                    _give_up(f"died and cannot be started again: {error}")

    def close(self) -> None:
        self._closing.set()
        if self.keeper.is_alive():
            self.keeper.join()
        self._life.close()
        for one in self._sockets:
            one.close()


def _own_database(url: str) -> Path | None:
    """The workspace's own database, if a URL is of it."""
    database = HOME.resolve() / "prefect.db"
    return database if url.endswith(str(database)) else None


def _has_tables(database: Path) -> bool:
    """Whether a SQLite file has Prefect's tables; of one that is damaged, the server would wait in vain for minutes."""
    try:
        with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute("SELECT version_num FROM alembic_version").fetchone() is not None
    except sqlite3.Error:
        return False


def _listen(port: int) -> list[socket.socket]:
    """Listen on a port of 127.0.0.1, 0 for any, and block the same port of ::1 by a second socket.

    Browsers may resolve a name under localhost to ::1 as well: a program listening there would get the one-time link.
    """
    while True:
        sockets = [socket.create_server(("127.0.0.1", port))]
        try:
            sockets.append(socket.socket(socket.AF_INET6))
            sockets[1].bind(("::1", sockets[0].getsockname()[1]))  # without SO_REUSEADDR, so that it is not shared
            return sockets
        except OSError as error:
            if error.errno != errno.EADDRINUSE:  # the machine has no ::1
                return sockets
            for one in sockets:
                one.close()
            if port:
                raise


def _give_up(why: str) -> NoReturn:
    """Kill the command: without a server, Prefect's clients retry for minutes, with long messages."""
    end_children()
    sys.stdout.flush()
    print(f"error: the local Prefect server {why}; the same command resumes from here", file=sys.stderr)
    sys.stderr.flush()
    os._exit(Exit.INFRASTRUCTURE)


def ui_url(api: str) -> str:
    """The web pages of an API; those of our own server have their own host name."""
    base = api.removesuffix("/").removesuffix("/api")
    record = ServerRecord.read(RECORD)
    return base if record is None or record.url != api else f"http://{record.host}:{base.rpartition(':')[2]}"


def _healthy(api: str, credential: str | None, patience: float = 5) -> bool:
    import httpx

    headers = {} if credential is None else {"Authorization": authorization(credential)}
    with contextlib.suppress(httpx.TransportError):
        # Loading all certificates takes ten times as long as the request, which is sent twenty times a second.
        verify = not api.startswith("http:")
        answer = httpx.get(f"{api}/health", headers=headers, timeout=patience, trust_env=False, verify=verify)
        return answer.status_code == httpx.codes.OK
    return False


def app() -> Any:
    """Build the application of a short-lived server, without web pages and the services of a long-lived one."""
    credential = os.environ.pop(_CREDENTIAL)  # before Prefect reads its settings, see `_guarded`
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

    if (database := _own_database(PREFECT_API_DATABASE_CONNECTION_URL.value())) and not database.exists():
        make_tables(database)
    return _guarded(credential, None)


def _guarded(credential: str, host: str | None) -> Any:
    """Prefect's application behind access control.

    It is wrapped, as its own services (automations) call it within the process, without a credential. Prefect must not
    know of the credential: it would exempt some routes, and make its pages ask for a password.
    """
    from prefect.server.api.server import create_app

    return Guard(create_app(ephemeral=host is None, final=True), credential, host)
