"""How far a long loop is: a bar on a terminal, a line now and then where the output is a pipe or a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_STEPS = 10  # lines of a whole loop, at most
_INTERVAL = 2.0  # seconds between two lines, at least


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show how far a loop is; yields what to call as `(completed, note)`, as often as is convenient.

    Under the flow a stage writes to a pipe, in which a bar would show only when it is full. There a line is printed
    every 10%, but none sooner than two seconds after the last; the one at the end always is.

    Args:
        description: what the loop does.
        total: what `completed` is when it is done.
    """
    console = Console()
    if not console.is_terminal:
        yield _lines(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bars:
        bar = bars.add_task(escape(description), total=total, note="")
        yield lambda completed, note: bars.update(bar, completed=completed, note=escape(note))


def _lines(description: str, total: int) -> Callable[[int, str], None]:
    told, last = 0, time.monotonic()

    def tell(completed: int, note: str) -> None:
        nonlocal told, last
        step = _STEPS if completed >= total else _STEPS * completed // total
        if step > told and (step == _STEPS or time.monotonic() - last >= _INTERVAL):
            told, last = step, time.monotonic()
            print(f"{description}: {completed:,} of {total:,}" + (f", {note}" if note else ""), flush=True)

    return tell
