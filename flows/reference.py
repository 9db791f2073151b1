"""The generated part of docs/commands.md: `python -m flows.reference` writes it."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections import Counter
from collections.abc import Callable, Iterable
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
        required: whether it must be given.
        about: one sentence about it.
        default: its default, for people.
    """

    names: tuple[str, ...]
    value: str
    required: bool
    about: str
    default: str

    @property
    def usage(self) -> str:
        """Its form in the usage line."""
        text = "/".join(name for name in self.names if name.startswith("--")) or self.names[0]
        text = f"{text} {self.value}".strip()
        return text if self.required or text.startswith("[") else f"[{text}]"


@dataclass(frozen=True)
class Command:
    """A command as in `faded --help`."""

    name: str
    help: str
    epilog: str
    parameters: tuple[Parameter, ...]


def commands() -> list[Command]:
    """All visible commands."""
    return [_command(info) for info in app.registered_commands if not info.hidden]


def _command(info: Any) -> Command:
    callback: Callable[..., Any] = info.callback
    return Command(
        info.name or callback.__name__.replace("_", "-"),
        _plain(inspect.cleandoc(info.help or inspect.getdoc(callback) or "")),
        _plain(info.epilog),
        tuple(
            _parameter(name, given.annotation, given.default)
            for name, given in {**get_params_from_function(callback), **_of_kinds(info)}.items()
            if isinstance(given.default, ArgumentInfo | OptionInfo) and not given.default.hidden  # others are typer's
        ),
    )


def _of_kinds(info: Any) -> dict[str, Any]:
    """Options that a command gets from installed tasks."""
    return get_params_from_function(of_kinds()) if info.cls is InitCommand else {}


def _parameter(name: str, hint: Any, info: ArgumentInfo | OptionInfo) -> Parameter:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not NoneType]
    required = info.default is ...
    about = " ".join(_plain(info.help).split())
    if info.envvar:
        about += f" Or set `{info.envvar}`."
    names: tuple[str, ...]
    if isinstance(info, ArgumentInfo):
        names, value = (info.metavar or (name.upper() if required else f"[{name.upper()}]"),), ""
    else:
        names, value = _spellings(name, info, kinds), "" if kinds == [bool] else info.metavar or _metavar(kinds)
    return Parameter(names, value, required, about, _default(info, names, required))


def _spellings(name: str, info: OptionInfo, kinds: list[Any]) -> tuple[str, ...]:
    plain = f"--{name.replace('_', '-')}"
    if info.param_decls:
        return tuple(spelling.strip() for given in info.param_decls for spelling in given.split("/"))
    return (plain, f"--no-{plain[2:]}") if kinds == [bool] else (plain,)


def _metavar(kinds: list[Any]) -> str:
    if isinstance(kinds[0], EnumType):
        return "|".join(str(choice.value) for choice in list[Any](kinds[0]))
    if all(isinstance(kind, str) for kind in kinds):  # a Literal
        return "|".join(kinds)
    return next((_METAVARS[kind] for kind in kinds if kind in _METAVARS), "TEXT")


def _default(info: ArgumentInfo | OptionInfo, names: tuple[str, ...], required: bool) -> str:
    if required:
        return "required"
    if isinstance(info.show_default, str):
        return info.show_default
    default = info.default
    if isinstance(default, bool):
        switches = [name for name in names if name.startswith("--")]  # on, off
        return f"`{switches[not default]}`" if len(switches) > 1 else ""
    return "" if default is None or default in ("", (), []) else f"`{getattr(default, 'value', default)}`"


def _plain(text: str | None) -> str:
    return Text.from_markup(text or "").plain


def reference(order: list[str]) -> str:
    """All commands as Markdown, after a table of what several of them take.

    Args:
        order: names of commands that come first, in this order.
    """
    place = {name: n for n, name in enumerate(order)}
    known = sorted(commands(), key=lambda c: place.get(c.name, len(place)))
    taken = Counter(parameter for command in known for parameter in command.parameters)
    shared = [parameter for parameter, commands_ in taken.items() if commands_ > 2]
    return "\n".join([f"## What several commands take\n\n{_table(shared)}\n", *(_section(c, shared) for c in known)])


def _section(command: Command, shared: list[Parameter]) -> str:
    own = [parameter for parameter in command.parameters if parameter not in shared]
    words = [p.usage for p in command.parameters if p in shared or not p.names[0].startswith("-")]
    usage = " ".join(["faded", command.name, *words, *["[OPTIONS]"] * any(p.names[0].startswith("-") for p in own)])
    parts = [f"## faded {command.name}", f"```text\n{usage}\n```", command.help]
    if own:
        parts.append(_table(own))
    if command.epilog:
        title, _, examples = command.epilog.partition(":")
        lines = re.split(r"\s{2,}", examples.strip())
        parts.append(f"{title}:\n\n```text\n" + "\n".join(lines) + "\n```")
    return "\n\n".join(parts) + "\n"


def _table(parameters: Iterable[Parameter]) -> str:
    rows = [
        f"| {', '.join(f'`{name}`' for name in (f'{p.names[0]} {_cell(p.value)}'.strip(), *p.names[1:]))}"
        f" | {_cell(p.about)} | {_cell(p.default)} |"
        for p in parameters
    ]
    return "\n".join(["| | | default |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


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
