"""The commands of `faded`, one module per purpose.

They only connect other modules, and import them when they run, so that `--help` is fast.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from flows.terminal import print_plain

if TYPE_CHECKING:
    from stages.params import Params


class _Group(TyperGroup):
    """Prints how to resume after Ctrl-C; click would print "Aborted!" and exit with the code of a failed gate."""

    def invoke(self, ctx: Any) -> Any:  # typer bundles click under another name
        from stages.core.errors import stop_code

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            errors.print("stopped; the same command resumes from here")
            raise typer.Exit(stop_code(stop)) from None


app = typer.Typer(
    name="faded",
    cls=_Group,
    help="Audit a pre-trained model before deployment: find its failures, show them, repair it, verify the repair.",
    epilog="Exit codes: 0 pass, 1 a gate failed, 2 bad input, 3 infrastructure (a retry may help).",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """End as rich does if the pipe is closed, but not with the exit code of a failed gate."""
        from stages.core.errors import Exit

        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(int(Exit.INFRASTRUCTURE)) from None


console = _Console()
errors = _Console(stderr=True)


def say(*lines: str, style: str | None = None) -> None:
    """Print lines as they are, without markup or line breaks."""
    print_plain(console, *lines, style=style)


Audits = Annotated[
    list[str] | None,
    typer.Argument(metavar="[AUDIT]...", help="Names of audits in params.yaml; the first one by default."),
]
All = Annotated[bool, typer.Option("--all", help="All audits in params.yaml.")]
Audit = Annotated[
    str | None, typer.Argument(metavar="[AUDIT]", help="Name of an audit in params.yaml; the first one by default.")
]
Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="A variant of the audit: AUDIT-NAME in params.yaml, such as news-quick."),
]


def open_workspace(audits: list[str] | None, all_: bool, preset: str | None = None) -> tuple[Params, list[str]]:
    """Enter the workspace, and return its checked params.yaml and the names of audits, or of their presets if named.

    Raises:
        UsageError: if there is no such audit or preset, or a preset is combined with all audits.
    """
    from flows.workspace import enter_workspace
    from stages.core.errors import UsageError
    from stages.params import load_params

    enter_workspace()
    params = load_params(Path("params.yaml"))
    if all_ and preset is not None:
        raise UsageError("--all includes every audit in params.yaml, and presets too: with --preset, name the audits")
    names = list(params.audits) if all_ else list(dict.fromkeys(audits or list(params.audits)[:1]))
    for name in names:
        params.audit(name)
    return params, names if preset is None else [_preset(params, name, preset) for name in names]


def _preset(params: Params, name: str, preset: str) -> str:
    """Return the name of the audit that is this preset of another."""
    from stages.core.errors import UsageError

    if (wanted := f"{name}-{preset}") not in params.audits:
        known = [other.removeprefix(f"{name}-") for other in params.audits if other.startswith(f"{name}-")]
        found = ", ".join(known) or "none"
        raise UsageError(f"audit {name!r} has no preset {preset!r} ({wanted} in params.yaml), found: {found}")
    return wanted


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show a status line while the block runs."""
    with console.status(f"{what} ..."):
        yield
