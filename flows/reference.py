"""The generated part of docs/commands.md: `python -m flows.reference` writes it."""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperArgument
from typer.main import get_group

import flows.cli  # noqa: F401  # importing it adds all commands to `app`
from flows.commands import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
MARKER = "<!-- below: written by `python -m flows.reference` -->"


def commands() -> dict[str, Any]:
    """All visible commands, by name."""
    return {name: command for name, command in get_group(app).commands.items() if not command.hidden}


def parameters(command: Any) -> list[Any]:
    """The arguments and options of a command, `--help` last."""
    found: list[Any] = command.get_params(typer.Context(command))
    return found


def _usage(parameter: Any) -> str:
    """A parameter in the usage line: `[AUDIT]`, `[--open/--no-open]`, `--reason TEXT`."""
    if isinstance(parameter, TyperArgument):
        text = parameter.metavar or parameter.name.upper()
    else:
        names = [*parameter.opts, *parameter.secondary_opts]
        value = "" if parameter.is_flag else f" {parameter.metavar or 'TEXT'}"
        text = "/".join(name for name in names if name.startswith("--")) + value
    return text if parameter.required or text.startswith("[") else f"[{text}]"


def _section(name: str, command: Any) -> str:
    about = Text.from_markup(command.help).plain.partition("\n\n")[0]
    words = [_usage(one).replace(" ", "\0") for one in parameters(command)[:-1]]  # an option stays on one line
    first = f"faded {name} "
    usage = textwrap.fill(" ".join(words), 100, initial_indent=first, subsequent_indent=4 * " ", break_on_hyphens=False)
    return f"## {first.rstrip()}\n\n{about}\n\n```text\n{usage}\n```\n".replace("\0", " ")


def page_text(page: str) -> str:
    """The page with everything below the marker generated again, in the order of the links above it."""
    head, marker, _ = page.partition(MARKER)
    order = {name: n for n, name in enumerate(linked(head))}
    shown = sorted(commands().items(), key=lambda named: order.get(named[0], len(order)))
    return f"{head}{marker}\n\n" + "\n".join(_section(*named) for named in shown)


def linked(head: str) -> list[str]:
    """The commands that the hand-written part links to."""
    return re.findall(r"\(#faded-([a-z-]+)\)", head)


if __name__ == "__main__":
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE}\n")
