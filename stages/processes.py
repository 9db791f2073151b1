"""Further processes of one stage, which answer, train or fit beside it: the results are those of one process.

Threads of one process wait for each other by spinning, so that beside one other busy program two of them take two to
four times as long as two processes, and sums depend on how many they are in their last bits. Processes of one thread
each have neither trouble, and as many are used as there are cores.
"""

from __future__ import annotations

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

from stages.environment import die_with_parent
from stages.errors import UsageError

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

MEMORY = 0.5  # of what is free, that further processes may take
WORTH = 10.0  # seconds of answering after which others help: each has to import and load all it needs first
_LIMIT, _USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def cores() -> int:
    """CPU cores this process may use: by its affinity, its container's quota, and `LOKY_MAX_CPU_COUNT`.

    Raises:
        UsageError: when that is not a number.
    """
    import loky

    try:
        return int(loky.cpu_count())
    except ValueError:
        found = os.environ.get("LOKY_MAX_CPU_COUNT")
        raise UsageError(f"LOKY_MAX_CPU_COUNT is {found!r}, expected a number of CPU cores") from None


class Crew:
    """Processes that do a share of what this one is asked.

    Should one of them die (for lack of memory), this one does all from then on.

    Args:
        size: how many there are at most, with this one; memory may allow fewer.
        load: makes the copy whose methods the others call. None: functions are called.
        after: seconds of work that this process does alone before the others are started.
    """

    def __init__(self, size: int, load: Callable[[], object] | None = None, after: float = 0.0) -> None:
        self.size = size
        self._load, self._alone = load, after
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, do: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What comes of n calls, in order.

        Args:
            do: a function, or a method bound to what `load` makes a copy of.
            pieces: the arguments of n calls; these and what comes of them are pickled.
        """
        found: list[Any] = []
        for k, piece in enumerate(pieces):
            if len(pieces) - k > 1 and (pool := self._opened()) is not None:
                return found + self._divide(pool, do, pieces[k:])
            begun = time.perf_counter()
            found.append(do(*piece))
            self._alone -= time.perf_counter() - begun
        return found

    def _opened(self) -> ProcessPoolExecutor | None:
        """The others, who start when this process has worked alone for long enough."""
        if self._pool is None and self._alone <= 0:
            self._start()
        return self._pool

    def _start(self) -> None:
        from loky import ProcessPoolExecutor

        self._alone = float("inf")  # tried, and not again
        if count := _fitting(self.size - 1):
            print(f"{count + 1} processes at work", flush=True)
            begin = partial(_begin, os.getpid(), self._load)
            self._pool = ProcessPoolExecutor(count, timeout=None, initializer=begin)
            atexit.register(self._pool.shutdown, wait=False, kill_workers=True)

    def _divide(
        self, pool: ProcessPoolExecutor, do: Callable[..., Any], pieces: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        found: dict[int, Any] = {}
        with contextlib.suppress(BrokenExecutor):
            sent = do.__name__ if inspect.ismethod(do) else do
            given: dict[int, Future[Any]] = {
                k: pool.submit(_done, sent, pieces[k]) for k in range(1, len(pieces))
            }  # the first is done here
            found[0] = do(*pieces[0])
            for k in reversed(given):  # and from the other end what nobody has begun with
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
    """How many of so many further processes, each as large as this one, there is memory for."""
    import psutil

    free, own = psutil.virtual_memory().available, psutil.Process().memory_info().rss
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
        free = min(free, int(_LIMIT.read_text()) - int(_USED.read_text()))
    return max(0, min(wanted, int(MEMORY * free / own)))


_copy: list[object] = []  # of a process that was started, the one that it loaded


def _begin(parent: int, load: Callable[[], object] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the stage is told, and ends them
    die_with_parent(parent)
    if load is not None:
        _copy.append(load())


def _done(do: str | Callable[..., Any], piece: tuple[Any, ...]) -> Any:
    called = getattr(_copy[0], do) if isinstance(do, str) else do
    return called(*piece)
