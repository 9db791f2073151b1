"""`faded serve`: all that recurring audits need, in one command, for as long as it runs.

A Prefect server (the configured one, else our own), this workspace's work pool and deployments, a worker, the review
pages, and the clock of decisions that nobody takes. Children die with it, even by kill -9; whatever was interrupted
goes on when it is started again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows.processes import child, end_leftovers
from flows.schedule import Entry, apply, read_entries, work_pool
from flows.server import free_port, long_lived_server, ui_url
from flows.workspace import LOGS, stage_environment
from stages.environment import WORK
from stages.errors import FadedError, InfrastructureError, UsageError
from stages.params import Params, load_params

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

# Apart from .faded/run: an audit, which may be our own grandchild, ends whatever it finds recorded there.
RECORDS = WORK / "serve"
LOCK = WORK / "serve.lock"
_PORT = WORK / "prefect" / "port"  # of our own server: links that were sent to people keep working
_UI_PORT = 4200  # Prefect's own
_STEP = 1.0  # seconds between looks at the children
_EXPIRY = 30.0  # seconds between looks at decisions that wait
_LONGEST_WAIT = 60.0  # seconds before a child that keeps dying is started again
_STARTS = 5  # of one run; one that takes its machine down each time must not do so for ever


def serve(params: Params, console: Console, *, port: int | None = None, review: bool = True) -> None:
    """Serve the workspace until Ctrl-C or SIGTERM.

    Args:
        params: of the workspace.
        console: where to say what runs.
        port: of our own Prefect server; by default the one it had last, 4200 at first, or another if that is taken.
        review: whether to serve the review pages, too.

    Raises:
        UsageError: when `faded serve` runs here already, or the work pool belongs to another workspace.
        InfrastructureError: when the Prefect server cannot be reached or started.
    """
    with _alone(), _ended_by_signals(), ExitStack() as life:
        for name in end_leftovers(RECORDS):
            console.print(f"ended {name}, left over by a `faded serve` that was killed", highlight=False)
        with console.status("starting the Prefect server ..."):
            api, server = _api(life, port)
        entries = read_entries()
        with console.status(f"applying prefect.yaml to {api} ..."):
            told = [*apply(entries), *go_on_with_interrupted(work_pool(entries))]
        worker = Kept("worker", lambda: _worker(work_pool(entries), api))
        life.callback(worker.end)
        worker.start()
        pages = life.enter_context(_review_pages(list(params.audits))) if review else None
        _show(params, console, api, pages, entries, told)
        with contextlib.suppress(KeyboardInterrupt):
            _watch(console, [server, worker] if server is not None else [worker], work_pool(entries))
        console.print("stopped; what was interrupted goes on at the next `faded serve`")


class Kept:
    """A child that is started again when it ends, each time after a longer wait while it keeps dying.

    Args:
        name: what people are told.
        start: gives its process, as a context that ends it.
    """

    def __init__(self, name: str, start: Callable[[], AbstractContextManager[subprocess.Popen[str]]]) -> None:
        self.name, self._start = name, start
        self._life = ExitStack()
        self._process: subprocess.Popen[str] | None = None
        self._wait = 1.0
        self._since = 0.0

    def start(self) -> None:
        """Start it; should that fail, it is due again after the wait."""
        self._since = time.monotonic() + self._wait
        self._process = self._life.enter_context(self._start())
        self._since = time.monotonic()

    def died(self) -> int | None:
        """Its exit code if it has ended; then its remains are cleared away."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self.end()
            lived = time.monotonic() - self._since
            self._wait = 1.0 if lived > _LONGEST_WAIT else min(2 * self._wait, _LONGEST_WAIT)
            self._since = time.monotonic() + self._wait
        return code

    def due(self) -> bool:
        """Whether it is to be started again now."""
        return self._process is None and time.monotonic() >= self._since

    def end(self) -> None:
        """End it, by force: a flow run does not survive its worker, and is not reported as crashed but goes on."""
        self._life.close()
        self._process = None


def go_on_with_interrupted(pool: str) -> list[str]:
    """Schedule anew what ran when its worker was killed; DVC goes on where it was.

    Called while no worker of this workspace runs. Where another one polls the same pool its runs cannot be told from
    dead ones: then the automation on heartbeats finds those.

    Returns:
        What was done, in sentences.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus, WorkPoolFilter, WorkPoolFilterName
    from prefect.states import AwaitingRetry, Cancelled, Crashed

    told = []
    with get_client(sync_client=True) as client:
        online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
        if any(worker.name != _worker_name() for worker in client.read_workers_for_work_pool(pool, online)):
            return []
        ours = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
        for run in client.read_flow_runs(work_pool_filter=ours, flow_run_filter=_busy()):
            if run.state is not None and run.state.is_cancelling():
                state: Any = Cancelled(message="its process is gone")
            elif run.run_count >= _STARTS:
                state = Crashed(message=f"started {run.run_count} times, and its process died each time")
                told.append(f"{_named(run)} was started {run.run_count} times and died each time: given up")
            else:
                state = AwaitingRetry(message="its process ended with `faded serve`; it goes on where it was")
                told.append(f"{_named(run)} was interrupted and goes on")
            client.set_flow_run_state(run.id, state, force=True)
    return told


def _busy() -> Any:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    types = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    return FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=types)))


def _named(run: FlowRun) -> str:
    audits = ", ".join(run.parameters.get("audits", []))
    return f"the audit of {audits} (flow run {run.name})"


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    WORK.mkdir(exist_ok=True)
    with LOCK.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            who = lock.read().strip() or "unknown"
            raise UsageError(f"faded serve runs in {Path.cwd()} already (process {who}): one is enough") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _api(life: ExitStack, port: int | None) -> tuple[str, Kept | None]:
    """The API and, where it is our own, its server."""
    from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

    from flows.server import answers

    if (configured := get_current_settings().api.url) is not None:
        if not answers(configured):
            raise InfrastructureError(
                f"the configured Prefect server {configured} (PREFECT_API_URL) does not answer: start it, or unset "
                "PREFECT_API_URL and `faded serve` runs its own"
            )
        return configured, None
    last = int(_PORT.read_text()) if _PORT.exists() else _UI_PORT
    if port is not None and port != free_port(port):
        raise UsageError(f"--port {port}: something else listens there")
    taken = free_port(port or last)
    server = Kept("Prefect server", lambda: long_lived_server(taken, RECORDS))
    life.callback(server.end)
    server.start()
    _PORT.parent.mkdir(parents=True, exist_ok=True)
    _PORT.write_text(str(taken))
    api = f"http://127.0.0.1:{taken}/api"
    life.enter_context(temporary_settings({PREFECT_API_URL: api}))
    return api, server


def _worker_name() -> str:
    return f"faded serve on {socket.gethostname()}"


@contextlib.contextmanager
def _worker(pool: str, api: str) -> Iterator[subprocess.Popen[str]]:
    """A process worker as `prefect worker start` runs it; each flow run is a child of it, see flows/engine.py."""
    env = {**stage_environment(), "PREFECT_API_URL": api}
    # What `faded` itself keeps quiet belongs into the worker's log.
    env["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "INFO"
    env.setdefault("PREFECT_WORKER_QUERY_SECONDS", "5")
    command = ["prefect", "--no-prompt", "worker", "start", "--pool", pool, "--type", "process", "--limit", "1"]
    command += ["--name", _worker_name(), "--install-policy", "never", "--no-create-pool-if-not-found"]
    LOGS.mkdir(parents=True, exist_ok=True)
    with (
        (LOGS / "worker.log").open("a") as log,
        child("worker", command, env, log, interruptible=False, records=RECORDS) as process,
    ):
        yield process


@contextlib.contextmanager
def _review_pages(audits: list[str]) -> Iterator[str]:
    from flows.review.server import serve_review

    with serve_review(audits) as server:
        yield server.url


def _show(params: Params, console: Console, api: str, pages: str | None, entries: list[Entry], told: list[str]) -> None:
    from flows.notify import current
    from flows.overview import overview, show_schedules

    for line in told:
        console.print(line, markup=False, highlight=False)
    lines = [f"Runs and logs:  {ui_url(api)}"]
    lines += [f"Review pages:   {pages}  (`faded review AUDIT --link` gives you a way in)"] if pages is not None else []
    lines += [f"Notifications:  {current() or 'none, see `faded notify --help`'}"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    show_schedules(console, overview(params, entries, api))
    console.print("Ctrl-C ends it all; what was interrupted goes on at the next `faded serve`.")


def _watch(console: Console, kept: list[Kept], pool: str) -> None:
    told = _Told(console)
    expiry = 0.0
    while True:
        for one in kept:
            if (code := one.died()) is not None:
                console.print(f"[yellow]the {one.name} ended (exit code {code}): it is started again[/]")
            elif one.due():
                with told:
                    for line in go_on_with_interrupted(pool) if one.name == "worker" else []:
                        console.print(line, markup=False, highlight=False)
                    one.start()
        if time.monotonic() >= expiry:
            expiry = time.monotonic() + _EXPIRY
            with told:
                _expire(console)
        time.sleep(_STEP)


class _Told:
    """What goes wrong once may go well the next time: it is told, not over and over, and nothing ends."""

    def __init__(self, console: Console) -> None:
        self._console, self._last = console, ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        import httpx

        if not isinstance(error, (FadedError, httpx.HTTPError, OSError)):
            return False
        if (text := f"{type(error).__name__}: {error}") != self._last:
            self._last = text
            self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)
        return True


def _expire(console: Console) -> None:
    from flows.approval import expire

    params = load_params()  # each time: people edit it meanwhile
    for audit in params.audits:
        if (recorded := expire(params, audit)) is not None:
            told = f"{audit}: nobody decided in time, recorded as a rejection ({recorded.reason})"
            console.print(told, markup=False, highlight=False, soft_wrap=True)
