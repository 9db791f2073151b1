"""Learn from people's ratings what counts as a failure."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from flows.commands import Audit, Preset, app, console, open_workspace


class RatedTarget(StrEnum):
    """What people rate of an answer."""

    quality = "quality"
    bias = "bias"


@app.command(
    rich_help_panel="Decide", epilog="Examples:  [cyan]faded ratings news[/]   [cyan]faded ratings news --write[/]"
)
def ratings(
    audit: Audit = None,
    preset: Preset = None,
    target: Annotated[RatedTarget, typer.Option("--target", help="Which of the two ratings.")] = RatedTarget.quality,
    write: Annotated[
        bool, typer.Option("--write", help="Write ratings.json and put it in force in params.yaml.")
    ] = False,
) -> None:
    """Say what people's ratings of examples make of the automatic measure: which probes they would call failures.

    With --write the next search looks for those. It is refused where ratings are too few, or do not go with the
    automatic measure.
    """
    from flows.ratings import show_ratings, write_ratings

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    learnt = show_ratings(params, name, "bias" if target is RatedTarget.bias else "quality", console)
    if write:
        write_ratings(name, learnt, console)
