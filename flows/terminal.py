"""What all output in the terminal has in common: plain lines and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

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
    table = new_table(*columns, title=title, right=right)
    table.padding = (0, 1, 0, 0)
    for column in table.columns:
        column.no_wrap = column.header in whole
    return table


def first_of(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
