"""Set up an audit of your own model and data."""

import sys
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typer.main import get_command

from flows.commands import command, console, errors, flag, value

_KINDS = "faded.init"  # key for the values of options that kinds of tasks declare


class InitCommand(TyperCommand):
    """Adds the options that kinds of tasks declare, which imports these kinds."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return all parameters, `--help` last."""
        *own, help_ = super().get_params(ctx)
        return [*own, *_of_kinds(), help_]


@cache
def _of_kinds() -> list[Any]:
    """Return the options that kinds of tasks declare; typer makes them from a function with such parameters."""
    from flows.init.propose import options

    hints: dict[str, Any] = {}
    for name, (kind, option) in options().items():
        info = typer.Option(
            f"--{name}/--no-{name}" if option.switch else f"--{name}",
            metavar=None if option.switch else option.metavar,
            help=f"{kind.capitalize().replace('-', ' ')}: {option.help[0].lower()}{option.help[1:]}",
            show_default=False,
        )
        of = bool if option.switch else list[str] if option.many else str
        hints[name.replace("-", "_")] = Annotated[of | None, info]  # type: ignore[valid-type]

    def nothing() -> None: ...

    nothing.__annotations__ = hints
    nothing.__signature__ = Signature(  # type: ignore[attr-defined]
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()
    )
    made = typer.Typer(add_completion=False)
    made.command()(nothing)
    found = get_command(made).params
    for one in found:
        one.expose_value, one.callback = False, _keep
    return found


def _keep(ctx: Any, option: Any, value: Any) -> None:
    name = option.opts[0].removeprefix("--")
    ctx.meta.setdefault(_KINDS, {})[name] = None if value in ((), []) else value


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
    model: Annotated[
        str | None, typer.Option(help="A file, a folder, ORG/NAME on the Hugging Face hub, or a URL.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder with one folder per class, a .jsonl, .parquet or .csv file, or ORG/NAME on the hub."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What the model does: the name of an installed task; guessed from the model.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the audit; guessed from the data.")] = None,
    repair: Annotated[
        bool | None, flag("--repair/--no-repair", "Whether to add a repair and its re-evaluation.", show_default=False)
    ] = None,
    key_env: Annotated[
        str | None, value("NAME", "Environment variable with the API key of a model behind a URL.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set on the hub.")] = None,
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

    answers = {
        "model": model,
        "data": data,
        "kind": kind,
        "name": name,
        "repair": repair,
        "key-env": key_env,
        "split": split,
    }
    options = Options(answers | ctx.meta[_KINDS], copy=copy, budget=budget, probes=probes, yes=yes)
    if bare:
        init_bare(folder, options, console)
        return
    try:
        init_audit(folder, options, console, asks=sys.stdin.isatty() and console.is_terminal)
    except KeyboardInterrupt:
        errors.print("stopped; the same command resumes from here")
        raise typer.Exit(130) from None
