"""Learn from human ratings what counts as a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands import Audit, Preset, app, console, open_workspace


@app.command(epilog="Examples:  [cyan]faded ratings news[/]   [cyan]faded ratings news --write[/]")
def ratings(
    audit: Audit = None,
    preset: Preset = None,
    target: Annotated[
        Literal["quality", "bias"], typer.Option("--target", help="Which of the two ratings to use.")
    ] = "quality",
    write: Annotated[bool, typer.Option("--write", help="Write ratings.json and enable it in params.yaml.")] = False,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="FILE", help="Write the ratings as labels that a judge is calibrated on."),
    ] = None,
    spot_check: Annotated[
        Path | None,
        typer.Option(
            "--spot-check",
            metavar="FILE",
            help="Draw probes at random for people to judge (CSV); once they have, correct the failure rate by it.",
        ),
    ] = None,
    draws: Annotated[int, typer.Option("--draws", min=20, help="With --spot-check: the number of draws.")] = 100,
) -> None:
    """Compare human ratings with the automatic score, and show which probes people would call failures.

    With --write the next search looks for those. It refuses if there are too few ratings, or if they do not correlate
    with the automatic measure. With --labels nothing but that file is written.

    With --spot-check FILE nothing else is done: it writes FILE if there is none. Otherwise it reads the verdicts in it,
    shows the corrected rate and, with --write, names FILE in params.yaml, so that reports show it, too.
    """
    from flows.people.ratings import show_ratings, write_labels, write_ratings

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    if spot_check is not None:
        from flows.people.ratings import draw_spot_check, show_spot_check

        if spot_check.exists():
            show_spot_check(params, name, spot_check, console, write=write)
        else:
            draw_spot_check(name, spot_check, draws, params.audit(name).seed, console)
        return
    if labels is not None:
        write_labels(params, name, target, labels, console)
        return
    learnt = show_ratings(params, name, target, console)
    if write:
        write_ratings(name, learnt, console)
