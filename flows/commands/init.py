"""Set up an audit of your own model and data."""

import sys
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from flows.commands import command, console, flag, value

_ANSWERS = "faded.init"  # key for the values of options that are answers


class InitCommand(TyperCommand):
    """Adds the options that are answers; those of kinds of tasks come last, and import these kinds."""

    def get_params(self, ctx: Any) -> list[Any]:
        from flows.init.propose import ANSWERS

        folder, *own, help_ = super().get_params(ctx)
        answers = _answers()
        return [folder, *answers[: len(ANSWERS)], *own, *answers[len(ANSWERS) :], help_]


@cache
def _answers() -> list[Any]:
    """Return options that are answers as typer makes them, from a function with such parameters."""
    from flows.init.propose import options

    hints: dict[str, Any] = {}
    for name, option in options().items():
        info = typer.Option(
            f"--{name}/--no-{name}" if option.switch else f"--{name}",
            metavar=None if option.switch else option.metavar,
            help=option.help,
            show_default=False,
        )
        of = bool if option.switch else list[str] if option.many else str
        hints[name.replace("-", "_")] = Annotated[of | None, info]  # type: ignore[valid-type]

    def nothing() -> None: ...

    nothing.__annotations__ = hints
    nothing.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()]
    )
    made = typer.Typer(add_completion=False)
    made.command()(nothing)
    found = get_command(made).params
    for one in found:
        one.expose_value, one.callback = False, _keep
    return found


def _keep(ctx: Any, option: Any, value: Any) -> None:
    name = option.opts[0].removeprefix("--")
    ctx.meta.setdefault(_ANSWERS, {})[name] = None if value in ((), []) else value


@command(
    "faded init",
    "faded init --model resnet18.pth --data pets --yes",
    "faded init --model facebook/bart-large-cnn --data news.jsonl --no-repair",
    cls=InitCommand,
)
def init(
    ctx: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="Folder in a git repository; the current one by default.")
    ] = Path(),
    budget: Annotated[
        int | None, value("N", "Unique probes for the search.", min=1, show_default="about 10 minutes' worth")
    ] = None,
    probes: Annotated[
        int | None,
        value(
            "N",
            "Unique probes for the sweep of each concept alone.",
            min=100,
            show_default="a minute's worth, from 500 to 4,000",
        ),
    ] = None,
    copy: Annotated[
        bool, flag("--copy", "Copy model and data into the audit's inputs instead of linking them.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept all guesses and ask nothing.")] = False,
    bare: Annotated[bool, flag("--bare", "Create a workspace without an audit, which you write by hand.")] = False,
) -> None:
    """Set up an audit of your own: inspect a model and data, propose concepts, sweep each alone, and write params.yaml.

    Every question is also an option. Levels go to the end of what people accept, concept by concept; the sweep shows
    how often the model fails there, and for which items. The same command resumes an interrupted set-up. Other
    pipelines in the repository stay as they are.
    """
    from flows.init.run import Options, init_audit, init_bare

    options = Options(ctx.meta[_ANSWERS], copy=copy, budget=budget, probes=probes, yes=yes)
    if bare:
        init_bare(folder, options, console)
    else:
        init_audit(folder, options, console, asks=sys.stdin.isatty() and console.is_terminal)
