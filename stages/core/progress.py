"""Report the progress of a long loop: a bar on a terminal, occasional lines if the output is a pipe or a file."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_STEPS = 10  # maximum number of lines per loop
_INTERVAL = 2.0  # minimum seconds between two lines


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show the progress of a loop; yields a function to call with `(completed, note)` as often as convenient.

    Under the flow a stage writes to a pipe, where a bar would show only when its buffer is full. There, a line is
    printed every 10%, at most every two seconds, and one at the end of a loop that had any.

    Args:
        total: value of `completed` at the end.
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
        if step > told and ((told and step == _STEPS) or time.monotonic() - last >= _INTERVAL):
            told, last = step, time.monotonic()
            print(f"{description}: {completed:,} of {total:,}" + (f", {note}" if note else ""), flush=True)

    return tell
