"""Further processes of one stage, which answer, train or fit in parallel; results equal those of one process.

Threads of one process spin while they wait for each other, so beside one other busy program two threads take two to
four times as long as two processes. The last bits of sums also depend on the number of threads. Single-threaded
processes have neither problem, and one runs per core.
"""

import atexit
import contextlib
import inspect
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.core.environment import die_with_parent
from stages.core.errors import UsageError

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

MEMORY = 0.5  # share of the free memory that further processes may take
WORTH = 10.0  # seconds of answering before others start: each first has to import and load everything it needs
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def cores() -> int:
    """Return the CPU cores this process may use, by its affinity, its container's quota, and `LOKY_MAX_CPU_COUNT`.

    Raises a UsageError if `LOKY_MAX_CPU_COUNT` is not a number.
    """
    import loky

    try:
        return int(loky.cpu_count())
    except ValueError:
        found = os.environ.get("LOKY_MAX_CPU_COUNT")
        raise UsageError(f"LOKY_MAX_CPU_COUNT is {found!r}, expected a number of CPU cores") from None


class Crew:
    """Processes that share the work of this one.

    If one of them dies (for lack of memory), this one does all further work.

    Args:
        size: maximum number of processes, including this one; memory may allow fewer.
        load: creates the copy whose methods the other processes call; None if plain functions are called.
        after: seconds of work this process does alone before it starts the others.
    """

    def __init__(self, size: int, load: Callable[[], object] | None = None, after: float = 0.0) -> None:
        self.size = size
        self._load, self._alone = load, after
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, do: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the results of n calls, in order.

        Args:
            do: a function, or a method bound to the kind of object that `load` creates.
            pieces: the arguments of n calls; these and the results are pickled.
        """
        found: list[Any] = []
        for k, piece in enumerate(pieces):
            if len(pieces) - k > 1 and (pool := self._opened()) is not None:
                return found + self._divide(pool, do, pieces[k:])
            begun = time.perf_counter()
            found.append(do(*piece))
            self._alone -= time.perf_counter() - begun
        return found

    def _opened(self) -> "ProcessPoolExecutor | None":
        """Return the pool, and start it once this process has worked alone for long enough."""
        if self._pool is None and self._alone <= 0:
            self._start()
        return self._pool

    def _start(self) -> None:
        from loky import ProcessPoolExecutor

        self._alone = float("inf")  # tried once only
        if count := _fitting(self.size - 1):
            print(f"{count + 1} processes at work", flush=True)
            begin = partial(_begin, os.getpid(), self._load)
            self._pool = ProcessPoolExecutor(count, timeout=None, initializer=begin)
            atexit.register(self._pool.shutdown, wait=False, kill_workers=True)

    def _divide(
        self, pool: "ProcessPoolExecutor", do: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        found: dict[int, Any] = {}
        with contextlib.suppress(BrokenExecutor):
            sent = do.__name__ if inspect.ismethod(do) else do
            given: dict[int, Future[Any]] = {
                k: pool.submit(_done, sent, pieces[k]) for k in range(1, len(pieces))
            }  # this process does the first
            found[0] = do(*pieces[0])
            for k in reversed(given):  # and takes, from the end, calls that no process has started
                if not given[k].cancel():
                    break
                found[k] = do(*pieces[k])
            for k, future in given.items():
                if k not in found:
                    found[k] = future.result()
        if len(found) < len(pieces):
            print("note: a worker process has died, so this one continues alone", flush=True)
            self._pool = None
        return [found[k] if k in found else do(*pieces[k]) for k in range(len(pieces))]


def _fitting(wanted: int) -> int:
    """Return how many of the wanted further processes, each as large as this one, fit into memory."""
    import psutil

    free, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    with contextlib.suppress(OSError, ValueError):  # no container, or no memory limit
        free = min(free, int(_LIMIT.read_text()) - int(_USED.read_text()))
    return max(0, min(wanted, int(MEMORY * free / own)))


_copy: list[object] = []  # in a worker process, the object it loaded


def _begin(parent: int, load: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage receives Ctrl-C and ends its workers
    die_with_parent(parent)
    if load is not None:
        _copy.append(load())


def _done(do: str | Callable[..., Any], piece: tuple[Any, ...]) -> Any:
    called = getattr(_copy[0], do) if isinstance(do, str) else do
    return called(*piece)
