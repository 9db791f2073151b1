"""`faded serve`: everything that recurring audits need in one command.

It runs a Prefect server (the configured one, or its own), this workspace's work pool and deployments, a worker whenever
a run is due, the review pages, and the time limits of decisions. Children die with it, even on kill -9. Whatever was
interrupted resumes when it is started again.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console

from flows.processes import child, end_leftovers
from flows.recur.deploy import apply, troubles
from flows.recur.notify import current
from flows.recur.runs import STOPPED, crash_silent, in_state, name_runs, of_pool, resume_interrupted, worker_name
from flows.recur.schedule import public_url, read_entries, work_pool
from flows.server import HOME, OwnServer, prefect_link, responds, served_api, ui_url
from flows.server.security import EVERY, client_environment
from flows.terminal import print_plain
from flows.workspace import LOGS, stage_environment
from stages.core.environment import WORK
from stages.core.errors import FadedError, InfrastructureError, UsageError
from stages.core.files import locked, replace_file
from stages.params import Params, load_params

# Separate from .faded/run: an audit, which may be our own grandchild, ends whatever is recorded there.
RECORDS = WORK / "serve"
LOCK = WORK / "serve.lock"
_PORT = HOME / "port"  # of our own server, kept so that forwarded ports and PREFECT_API_URL stay valid
_REVIEW_PORT = WORK / "review-port"  # of the review pages, kept for the same reason
_UI_PORT = 4200  # Prefect's default
_STEP = 1.0  # seconds between checks of the children
_ASK = 5.0  # seconds between queries for due runs
_QUERY_SECONDS = "PREFECT_WORKER_QUERY_SECONDS"  # environment variable that replaces _ASK
_LOOK = 30.0  # seconds between checks of pending decisions, and of crashed and late runs
_LONGEST_WAIT = 60.0  # seconds before a child that keeps dying is started again


def serve(params: Params, console: Console, *, port: int | None = None, review: bool = True) -> None:
    """Serve the workspace until Ctrl-C or SIGTERM.

    Raises a UsageError if `faded serve` is already running here, or the work pool belongs to another workspace; an
    InfrastructureError if the Prefect server cannot be reached or started.

    Args:
        port: port of our own Prefect server; by default the last one, 4200 at first, or another if that is taken.
    """

    def refuse(process: str) -> None:
        raise UsageError(f"faded serve is running in {Path.cwd()} already (process {process}): one is enough")

    # All threads allocate from one heap: glibc would give each its own, and these take 10 MB more.
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX in malloc.h
    with locked(LOCK, refuse), _ended_by_signals(), ExitStack() as life:
        for name in end_leftovers(RECORDS):
            console.print(f"ended {name}, left over by a `faded serve` that was killed")
        with console.status("starting the Prefect server ..."):
            api, server = _api(life, port)
        # Before anything is started that would have to be interrupted if their port is taken.
        pages = _review_pages(life, list(params.audits)) if review else None
        entries = read_entries()
        with console.status(f"applying prefect.yaml to {api} ..."):
            lines = [*apply(entries), *resume_interrupted(work_pool(entries))]
        _show(console, api, server is not None, pages, lines)
        _work(console, server, work_pool(entries), api)
        console.print("stopped; interrupted audits resume at the next `faded serve`")


def serve_pool(pool: str) -> None:
    """Run a pool's audits until Ctrl-C or SIGTERM, with a Prefect server that somebody else runs."""
    from prefect.settings import get_current_settings

    if (api := get_current_settings().api.url) is None:
        raise UsageError("a worker needs the address of a Prefect server in PREFECT_API_URL")
    with _ended_by_signals():
        _work(Console(highlight=False), None, pool, api)


def _work(console: Console, server: OwnServer | None, pool: str, api: str) -> None:
    worker, news = Child(lambda: _worker(pool, api)), _News(console)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _watch(console, news, server, worker, pool)
    finally:
        worker.end()
    with news("stop"):
        resume_interrupted(pool, STOPPED)


class Child:
    """A child that is restarted when it ends, after a growing delay while it keeps dying (with a code other than 0)."""

    def __init__(self, start: Callable[[], AbstractContextManager[subprocess.Popen[str]]]) -> None:
        self._start = start
        self._life = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._wait = 1.0
        self._since = 0.0

    def start(self) -> None:
        """Start it; if that fails, it is due again after the delay."""
        self._since = time.monotonic() + self._wait
        self._process = self._life.enter_context(self._start())
        self._since = time.monotonic()

    def died(self) -> int | None:
        """Its exit code if it has ended; its remains are then cleaned up."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self.end()
            well = code == 0 or time.monotonic() - self._since > _LONGEST_WAIT
            self._wait = 1.0 if well else min(2 * self._wait, _LONGEST_WAIT)
            self._since = time.monotonic() + self._wait
        return code

    def due(self) -> bool:
        return self._process is None and time.monotonic() >= self._since

    @property
    def alive(self) -> bool:
        return self._process is not None

    def end(self) -> None:
        """Kill it: a flow run does not survive its worker, and is resumed instead of reported as crashed."""
        self._life.close()
        self._process = None


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _api(life: ExitStack, port: int | None) -> tuple[str, OwnServer | None]:
    """The API that clients use from here on, and its server if it is our own."""
    from prefect.settings import get_current_settings

    if (configured := get_current_settings().api.url) is not None:
        if not responds(configured):
            raise InfrastructureError(
                f"the configured Prefect server {configured} (PREFECT_API_URL) does not answer: start it, or unset "
                "PREFECT_API_URL and `faded serve` runs its own"
            )
        return configured, None
    own = life.enter_context(contextlib.closing(_own_server(port)))
    life.enter_context(own.served())
    if port is not None:
        replace_file(_PORT, str(port))
    _keep_port(_PORT, own.port)
    life.enter_context(own.clients())
    return own.api, own


def _own_server(port: int | None) -> OwnServer:
    if port is not None:
        try:
            return OwnServer(port)
        except OSError as error:
            raise UsageError(f"--port {port} cannot be used: {os.strerror(error.errno or 0)}") from None
    try:
        return OwnServer(_last_port(_PORT, _UI_PORT))
    except OSError:
        return OwnServer(0)


def _last_port(kept: Path, first: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        if 0 < (port := int(kept.read_text())) < 2**16:
            return port
    return first


def _keep_port(kept: Path, port: int) -> None:
    """Store a port for the next time, unless another one is stored, as links that were sent contain that."""
    if _last_port(kept, port) == port:
        replace_file(kept, str(port))


def _holder(port: int) -> str:
    """The program that listens on a port; other users' programs are not visible to everybody."""
    with contextlib.suppress(psutil.Error):
        for found in psutil.net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid is not None:
                return f"{psutil.Process(found.pid).name()} (process {found.pid})"
    return "another program"


@contextlib.contextmanager
def _worker(pool: str, api: str) -> Iterator[subprocess.Popen[str]]:
    env = {**stage_environment(), **client_environment(), "PREFECT_API_URL": api}
    # Messages that `faded` itself hides belong in the worker's log.
    env["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    command = ["flows.worker", pool, "--once"]
    LOGS.mkdir(parents=True, exist_ok=True)
    with (
        (LOGS / "worker.log").open("a") as log,
        child("worker", command, env, log, interruptible=False, records=RECORDS) as process,
    ):
        yield process


def _review_pages(life: ExitStack, audits: list[str]) -> str:
    """Serve the review pages at their last port if it is free, so that links that were sent keep working."""
    from flows.people.review.server import PORT, serve_review

    public, last = public_url(), _last_port(_REVIEW_PORT, PORT)
    try:
        server = life.enter_context(serve_review(audits, port=last, public=public))
    except UsageError:
        if public is not None:
            raise UsageError(
                f"the proxy of {public} (public_url in prefect.yaml) leads to port {last}, which {_holder(last)} holds:"
                f" free it, or write another one into {_REVIEW_PORT} and have the proxy lead there"
            ) from None
        server = life.enter_context(serve_review(audits, public=public))
    _keep_port(_REVIEW_PORT, int(server.address.rpartition(":")[2]))
    return public or server.address


def _show(console: Console, api: str, own: bool, pages: str | None, lines: list[str]) -> None:
    lines += [f"Audits:         {pages}  (sign in with `faded serve --link`)"] if pages is not None else []
    lines += [f"Runs and logs:  {ui_url(api)}" + ("  (the same)" if own else "")]
    lines += [f"Notifications:  {current() or 'none, see `faded notify --help`'}"]
    print_plain(console, *lines)
    console.file.flush()
    # In a separate process, as the modules that read results take as much memory as everything else from here on.
    subprocess.run([sys.executable, "-P", "-m", "flows.cli", "schedule"], check=False)
    console.print("Ctrl-C stops everything; interrupted audits resume at the next `faded serve`.")


def show_links() -> list[str]:
    """Lines with links that sign in once: to the page of all audits, and to Prefect's pages if we serve them.

    Raises a UsageError if no `faded serve` runs here.
    """
    from flows.people.review.links import one_time_link, running

    audits = [f"Audits:         {one_time_link(EVERY)}"] if running() is not None else []
    own = [f"Runs and logs:  {prefect_link()}"] if served_api() is not None or not audits else []
    return audits + own


def _watch(console: Console, news: "_News", server: OwnServer | None, worker: Child, pool: str) -> None:
    from prefect.client.orchestration import get_client

    began, look, ask, cut_off = datetime.now(UTC), 0.0, 0.0, False
    with get_client(sync_client=True) as client:
        while True:
            if server is not None and not server.alive:
                raise InfrastructureError(f"the Prefect server ended, see {LOGS / 'prefect-server.log'}")
            if (code := worker.died()) is not None:
                if code not in (0, 1):  # 1 after a run that failed
                    console.print(f"[yellow]the worker ended (exit code {code}): restarting it[/]")
                cut_off = True
            if time.monotonic() >= ask:
                ask = time.monotonic() + float(os.environ.get(_QUERY_SECONDS, _ASK))
                with news("worker") as lines:
                    if worker.alive and client.read_flow_runs(**of_pool(pool), **in_state(type=["CANCELLING"])):
                        worker.end()
                        cut_off = True
                    if cut_off and worker.due():
                        lines.extend(resume_interrupted(pool))
                        cut_off = False
                    # Queried while it runs as well: Prefect marks a pool as not ready if nothing polls it.
                    if (
                        client.get_scheduled_flow_runs_for_work_pool(pool, scheduled_before=datetime.now(UTC))
                        and worker.due()
                    ):
                        name_runs(client, pool)
                        worker.start()
            if time.monotonic() >= look:
                look = time.monotonic() + _LOOK
                with news("heartbeat"):
                    client.send_worker_heartbeat(pool, worker_name(), _LOOK)
                _settle(news)
                with news("runs") as lines:
                    name_runs(client, pool)
                    if not worker.alive:  # ours ends with its run
                        crash_silent(pool)
                    lines.extend(troubles(pool, began))
            time.sleep(_STEP)


class _News:
    """Prints the results of repeated checks: unchanged lines are printed once, and errors end nothing.

    A check that fails once may succeed next time, and `faded serve` should still be running after weeks.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[list[str]]:
        """Print the lines that the block appends to the yielded list, or its error, unless printed last time."""
        lines: list[str] = []
        try:
            yield lines
        except Exception as error:
            lines.append(str(error) if isinstance(error, FadedError) else f"{what}: {type(error).__name__}: {error}")
        print_plain(self._console, *(line for line in lines if line not in self._last.get(what, [])))
        self._last[what] = lines


def _settle(news: _News) -> None:
    """Reject what nobody decided in time, and resume runs after decisions made meanwhile, such as by `git pull`."""
    from flows.people.approval import settle

    audits: list[str] = []
    with news("params.yaml"):
        params = load_params()  # each time, as people edit it meanwhile
        audits += params.audits
    for audit in audits:
        with news(audit) as lines:
            lines.extend(settle(params, audit))
