"""The commands of `faded`, one module per purpose.

They only connect other modules, and import them when they run, so that `--help` is fast.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typer.core import TyperGroup

from flows.terminal import as_json, error_as_json, harmless, print_plain
from stages.core.errors import Exit, FadedError, UsageError, machine_failure, missing_package, stop_code

if TYPE_CHECKING:
    from stages.params import Params


class _Group(TyperGroup):
    """Sends text to standard error where JSON is wanted, prints errors as JSON then, and how to resume after Ctrl-C.

    Click would print "Aborted!" after Ctrl-C, and exit with the code of a failed gate.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer bundles click under another name
        console.stderr = "--json" in args
        ctx.meta["command"] = next((word for word in args if not word.startswith("-")), "")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        command = ctx.meta["command"]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            _error_as_json(command, "stopped", stop_code(stop))
            errors.print("stopped; the same command resumes from here")
            raise typer.Exit(stop_code(stop)) from None
        except typer.Exit:
            raise
        except Exception as error:  # the exit codes are those of flows/cli.py
            if (missing := missing_package(error)) is not None:
                _error_as_json(command, str(missing), missing.exit_code)
                raise missing from None
            refused = getattr(error, "format_message", None)  # click's: of an option
            told = refused() if refused else error_text(error) or f"a bug in faded: {type(error).__name__}"
            _error_as_json(command, told, getattr(error, "exit_code", 3))
            raise


def error_text(error: Exception) -> str | None:
    """What to say of an error; None if it is a bug."""
    return str(error) if isinstance(error, FadedError) else machine_failure(error)


def _error_as_json(command: str, message: str, exit_code: int) -> None:
    if console.stderr:
        sys.stdout.write(error_as_json(command, message, exit_code) + "\n")


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


Command = TypeVar("Command", bound=Callable[..., None])


def command(*examples: str, **settings: Any) -> Callable[[Command], Command]:
    """Add a command to `app`, with examples below its help."""
    shown = "   ".join(f"[cyan]{one}[/]" for one in examples)
    return app.command(epilog=f"{'Examples' if len(examples) > 1 else 'Example'}:  {shown}", **settings)


def flag(name: str, told: str, **settings: Any) -> Any:
    """An option without a value."""
    return typer.Option(name, help=told, **settings)


def value(metavar: str, told: str, **settings: Any) -> Any:
    """An option with a value, named by its parameter."""
    return typer.Option(metavar=metavar, help=told, **settings)


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render as rich does; only rich itself controls the terminal, not what is printed."""
        for one in super().render(renderable, options):
            yield one if one.control else one._replace(text=harmless(one.text))

    def on_broken_pipe(self) -> None:
        """End as rich does if the pipe is closed, but not with the exit code of a failed gate."""
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(int(Exit.INFRASTRUCTURE)) from None


console = _Console(highlight=False)
errors = _Console(stderr=True, highlight=False)


def say(*lines: str, style: str | None = None) -> None:
    """Print lines as they are, without markup or line breaks."""
    print_plain(console, *lines, style=style)


Found = TypeVar("Found")


def tell(command: str, found: Found, show: Callable[[Console, Found], None]) -> None:
    """Print what a command found: with --json as JSON on standard output, otherwise as text by `show`."""
    if console.stderr:
        sys.stdout.write(as_json(command, found) + "\n")
    else:
        show(console, found)


Json = Annotated[bool, flag("--json", "Print JSON, and everything else to standard error (docs/commands.md).")]
Audits = Annotated[
    list[str] | None,
    typer.Argument(metavar="[AUDIT]...", help="Names of audits in params.yaml; the first one by default."),
]
All = Annotated[bool, flag("--all", "All audits in params.yaml.")]
Audit = Annotated[
    str | None, typer.Argument(metavar="[AUDIT]", help="Name of an audit in params.yaml; the first one by default.")
]
Preset = Annotated[str | None, value("NAME", "A variant of the audit: AUDIT-NAME in params.yaml, such as news-quick.")]


def open_workspace(
    audits: list[str] | None, all_: bool, preset: str | None = None, *, to_run: bool = False
) -> "tuple[Params, list[str]]":
    """Enter the workspace, and return its checked params.yaml and the names of audits, or of their presets if named.

    Raises a UsageError if there is no such audit or preset, or a preset is combined with all audits.

    Args:
        to_run: whether the audits are to be run: new ones are checked before any folder is made for them.
    """
    from flows.workspace import bring_up_to_date, enter_workspace
    from stages.params import DATA, load_params

    enter_workspace(update=not to_run)
    params = load_params(Path("params.yaml"))
    if all_ and preset is not None:
        raise UsageError("--all includes every audit in params.yaml, and presets too: with --preset, name the audits")
    names = list(params.audits) if all_ else list(dict.fromkeys(audits or list(params.audits)[:1]))
    for name in names:
        params.audit(name)
    names = names if preset is None else [_preset(params, name, preset) for name in names]
    if to_run:
        if new := [name for name in names if not (DATA / name).exists()]:
            from flows.places.runners import check_stages, chosen_runner

            check_stages(params, new, chosen_runner(params, None))
        bring_up_to_date()
    return params, names


def _preset(params: "Params", name: str, preset: str) -> str:
    if (wanted := f"{name}-{preset}") not in params.audits:
        known = [other.removeprefix(f"{name}-") for other in params.audits if other.startswith(f"{name}-")]
        found = ", ".join(known) or "none"
        raise UsageError(f"audit {name!r} has no preset {preset!r} ({wanted} in params.yaml), found: {found}")
    return wanted
