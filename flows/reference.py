"""The generated part of docs/commands.md: `python -m flows.reference` writes it."""

import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from enum import EnumType
from pathlib import Path
from types import NoneType
from typing import Any

from rich.text import Text
from typer.models import ArgumentInfo, OptionInfo
from typer.utils import get_params_from_function

import flows.cli  # noqa: F401  # importing it adds all commands to `app`
from flows.commands import app
from flows.commands.init import InitCommand, of_kinds

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
MARKER = "<!-- below: written by `python -m flows.reference` -->"
_METAVARS = {int: "N", float: "NUMBER"}


@dataclass(frozen=True)
class Parameter:
    """An argument or option as people type it.

    Args:
        names: the spellings of an option (`--open`, `--no-open`), or the placeholder of an argument (`[AUDIT]`).
        value: the placeholder of an option's value; empty for a switch or an argument.
    """

    names: tuple[str, ...]
    value: str
    required: bool

    @property
    def usage(self) -> str:
        """Its form in the usage line."""
        text = "/".join(name for name in self.names if name.startswith("--")) or self.names[0]
        text = f"{text} {self.value}".strip()
        return text if self.required or text.startswith("[") else f"[{text}]"


@dataclass(frozen=True)
class Command:
    """A command as in `faded --help`: its first paragraph there, and its parameters."""

    name: str
    about: str
    parameters: tuple[Parameter, ...]


def commands() -> list[Command]:
    """All visible commands."""
    return [_command(info) for info in app.registered_commands if not info.hidden]


def _command(info: Any) -> Command:
    callback: Callable[..., Any] = info.callback
    of_tasks = get_params_from_function(of_kinds()) if info.cls is InitCommand else {}
    return Command(
        info.name or callback.__name__.replace("_", "-"),
        Text.from_markup(inspect.cleandoc(info.help or inspect.getdoc(callback) or "")).plain.partition("\n\n")[0],
        tuple(
            _parameter(name, given.annotation, given.default)
            for name, given in {**get_params_from_function(callback), **of_tasks}.items()
            if isinstance(given.default, ArgumentInfo | OptionInfo) and not given.default.hidden  # others are typer's
        ),
    )


def _parameter(name: str, hint: Any, info: ArgumentInfo | OptionInfo) -> Parameter:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not NoneType]
    required = info.default is ...
    if isinstance(info, ArgumentInfo):
        return Parameter((info.metavar or (name.upper() if required else f"[{name.upper()}]"),), "", required)
    value = "" if kinds == [bool] else info.metavar or _metavar(kinds)
    plain = name.replace("_", "-")
    given = info.param_decls or [f"--{plain}/--no-{plain}" if kinds == [bool] else f"--{plain}"]
    return Parameter(tuple(spelling.strip() for one in given for spelling in one.split("/")), value, required)


def _metavar(kinds: list[Any]) -> str:
    if isinstance(kinds[0], EnumType):
        return "|".join(str(choice.value) for choice in list[Any](kinds[0]))
    if all(isinstance(kind, str) for kind in kinds):  # a Literal
        return "|".join(kinds)
    return next((_METAVARS[kind] for kind in kinds if kind in _METAVARS), "TEXT")


def reference(order: list[str]) -> str:
    """All commands as Markdown."""
    place = {name: n for n, name in enumerate(order)}
    return "\n".join(map(_section, sorted(commands(), key=lambda c: place.get(c.name, len(place)))))


def _section(command: Command) -> str:
    words = [parameter.usage.replace(" ", "\0") for parameter in command.parameters]  # an option stays on one line
    first = f"faded {command.name} "
    usage = textwrap.fill(" ".join(words), 100, initial_indent=first, subsequent_indent=4 * " ", break_on_hyphens=False)
    usage = usage or first.rstrip()  # nothing to fill in
    return f"## faded {command.name}\n\n{command.about}\n\n```text\n{usage}\n```\n".replace("\0", " ")


def page_text(page: str) -> str:
    """The page with everything below the marker generated again, in the order of the links above it."""
    head, marker, _ = page.partition(MARKER)
    return f"{head}{marker}\n\n{reference(linked(head))}"


def linked(head: str) -> list[str]:
    """The commands that the hand-written part links to."""
    return re.findall(r"\(#faded-([a-z-]+)\)", head)


if __name__ == "__main__":
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE}\n")
