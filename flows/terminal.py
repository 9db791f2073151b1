"""What all output in the terminal has in common: plain lines and tables, and JSON for programs.

The JSON has the dataclasses that a command prints as text, field by field; docs/commands.md describes them. A field
that is renamed or removed makes a new version of its command's schema.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table

from stages.core.errors import Exit

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


VERSIONS = dict.fromkeys(("audit", "compare", "error", "gate", "history", "plan", "reproduce", "status", "verify"), 1)
TEXT_ONLY = {"text only": True}  # the metadata of a dataclass field that is left out
_KINDS = {Exit.GATE_FAILED: "failed", Exit.USAGE: "usage", 130: "stopped"}


def as_json(command: str, found: object) -> str:
    """A JSON document: the schema of a command, and everything that it found."""
    document = {"schema": f"faded/{command}/{VERSIONS[command]}", **_plain(found)}
    return json.dumps(document, indent=1, allow_nan=False)  # ASCII: nothing in it can control a terminal


def error_as_json(command: str, message: str, exit_code: int) -> str:
    """The same of an error: its kind (failed, usage, infrastructure, stopped), message and exit code."""
    kind = _KINDS.get(exit_code, "infrastructure")
    return as_json("error", {"command": command, "kind": kind, "message": message, "exit_code": int(exit_code)})


def _plain(value: Any) -> Any:
    """Plain data, NaN as null."""
    if (named := _named(value)) is not None:
        return {str(name): _plain(one) for name, one in named.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    if isinstance(value, Path | datetime):
        return str(value.absolute()) if isinstance(value, Path) else value.isoformat()
    value = value.item() if hasattr(value, "item") else value  # a number of numpy's
    return None if isinstance(value, float) and not isfinite(value) else value


def _named(value: Any) -> Mapping[Any, Any] | None:
    """The parts of a value by name: a dataclass's fields and public properties; None if it has no named parts."""
    if is_dataclass(value):
        names = [one.name for one in fields(value) if one.metadata != TEXT_ONLY]
        names += [name for name, of in vars(type(value)).items() if isinstance(of, property) and name[0] != "_"]
        return {name: getattr(value, name) for name in names}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return value if isinstance(value, Mapping) else None
