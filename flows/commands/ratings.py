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
    target: Annotated[
        RatedTarget, typer.Option("--target", help="Which of the two ratings to use.")
    ] = RatedTarget.quality,
    write: Annotated[bool, typer.Option("--write", help="Write ratings.json and enable it in params.yaml.")] = False,
) -> None:
    """Compare human ratings with the automatic score, and show which probes people would call failures.

    With --write the next search looks for those. It refuses if there are too few ratings, or if they do not correlate
    with the automatic measure.
    """
    from flows.ratings import show_ratings, write_ratings

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    learnt = show_ratings(params, name, "bias" if target is RatedTarget.bias else "quality", console)
    if write:
        write_ratings(name, learnt, console)
