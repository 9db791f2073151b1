"""Show and measure how often changes occur in use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from flows.commands import Audit, Preset, app, console, open_workspace


@app.command(
    rich_help_panel="Audit",
    epilog="Examples:  [cyan]faded usage mnist[/]   [cyan]faded usage mnist --from ~/inbox/may[/]"
    "   [cyan]faded usage questions --from asked.csv --column text --write[/]",
)
def usage(
    audit: Audit = None,
    from_: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--from",
            metavar="PATH",
            help="Production inputs: a folder of pictures; texts, questions or prompts in a .txt (one a line), .csv,"
            " .json, .jsonl or .parquet file; or a table of rows.",
        ),
    ] = None,
    column: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--column", metavar="NAME", help="Column or field with the texts, if the file has several."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", help="Write the measured shares to params.yaml.")] = False,
    preset: Preset = None,
) -> None:
    """Show how often changes are assumed to occur in use, or measure it on your production inputs.

    Every rate of an audit is a rate in use. How many inputs are unchanged, and how common each level of each concept
    is, says usage: in params.yaml; what it does not say is assumed.

    With --from, levels that leave a trace are measured on 20 production inputs or more, each share with a 95%
    interval: light, contrast, blur and noise of pictures, capitals and unknown words of texts, the words of prompts.
    Other concepts keep what is stated or assumed. The model is not queried; prepare runs first if it is stale. Writes
    nothing but usage: of the audit, and only with --write.
    """
    from flows.choosing.usage import show_or_measure

    here = Path.cwd()
    params, [name] = open_workspace([audit] if audit else None, False, preset)
    show_or_measure(params, name, None if from_ is None else here / from_.expanduser(), column, write, console)
