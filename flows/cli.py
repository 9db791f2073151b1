"""The entry point of the `faded` command, with its errors and exit codes. The commands are in flows/commands."""

import signal
import traceback
from importlib.metadata import entry_points, version
from typing import Annotated

import typer
from typer.models import CommandInfo

# Importing these modules adds their commands to `app`.
import flows.commands.audits
import flows.commands.decide
import flows.commands.evidence
import flows.commands.init
import flows.commands.people
import flows.commands.recur  # noqa: F401
from flows.commands import app, console, error_text, errors
from flows.terminal import print_plain
from stages.core.errors import Exit, FadedError, Terminated, stop_code

FIRST = ("init", "plan", "audit", "status", "report", "review", "gate", "export", "serve", "schedule")  # in `--help`


def _place(command: CommandInfo) -> int:
    name = command.name or getattr(command.callback, "__name__", "")
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _add_optional_commands() -> None:
    """Import the modules of the entry points `faded.commands`, Faded's own and those of other distributions."""
    for entry in entry_points(group="faded.commands"):
        try:
            entry.load()
        except Exception as error:  # a plugin's module may raise anything, and the other commands work without it
            errors.print(f"the commands of {entry.value} are missing: {type(error).__name__}: {error}", markup=False)


_add_optional_commands()
app.registered_commands.sort(key=_place)
for command in app.registered_commands[len(FIRST) :]:
    command.rich_help_panel = "More"


def main() -> None:
    """Run the command and turn errors into a message and an exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app()
    except KeyboardInterrupt as stop:  # before the command started
        raise SystemExit(stop_code(stop)) from None
    except Exception as error:
        if (told := error_text(error)) is not None:
            errors.print("[bold red]error:[/]", end=" ")
            print_plain(errors, told)
        else:
            traceback.print_exc()
            errors.print("[bold red]this is a bug in faded[/], please report it with the lines above")
        raise SystemExit(int(error.exit_code if isinstance(error, FadedError) else Exit.INFRASTRUCTURE)) from None
    finally:
        # Don't wait for what libraries do at exit, such as sending the last logs; a Python handler that raises in the
        # middle of it would only print their traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _terminate(_number: int, _frame: object) -> None:
    raise Terminated


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"faded {version('faded')}")
        raise typer.Exit


@app.callback()
def faded(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find the workspace upward from here; see the commands below."""


if __name__ == "__main__":
    main()
