"""The `faded` command: its errors and exit codes. The commands themselves are in flows/commands."""

from __future__ import annotations

import traceback
from importlib.metadata import version
from typing import Annotated

import typer

# Importing them adds their commands to `app`; in this order `--help` lists them.
# isort: off
import flows.commands.init
import flows.commands.audits
import flows.commands.tune
import flows.commands.prefetch
import flows.commands.shard
import flows.commands.decide
import flows.commands.approve
import flows.commands.reviewers
import flows.commands.ratings
import flows.commands.recur
import flows.commands.evidence  # noqa: F401

# isort: on
from flows.commands import app, console, errors
from stages.errors import Exit, FadedError


def main() -> None:
    """Run the command and turn what goes wrong into a message and an exit code."""
    try:
        app()
    except FadedError as error:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(int(error.exit_code)) from None
    except Exception:
        traceback.print_exc()
        errors.print("[bold red]this is a bug in faded[/], please report it with the lines above")
        raise SystemExit(int(Exit.INFRASTRUCTURE)) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(f"faded {version('faded')}", highlight=False)
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
