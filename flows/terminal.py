"""What all output in the terminal has in common: plain lines, tables, and numbers of bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

# Characters that a terminal obeys, or that reverse the order of letters
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """Escape what controls a terminal in text of a model, a server or a file."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def print_plain(console: Console, *lines: str, style: str | None = None) -> None:
    """Print lines as they are, without markup or line breaks."""
    for line in lines:
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def new_table(*columns: str, title: str | None = None, right: tuple[str, ...] = ()) -> Table:
    """A table without rows, whose cells fold instead of being cut; columns named in `right` are aligned there."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def narrow_table(
    *columns: str, title: str | None = None, whole: tuple[str, ...] = (), right: tuple[str, ...] = ()
) -> Table:
    """The same with little space between columns, for 80 of a terminal; those in `whole` never break."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in right else "left"
        table.add_column(column, overflow="fold", no_wrap=column in whole, justify=justify)
    return table


def first_of(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def bytes_in_words(n_bytes: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
