"""Split the search of a large audit among workers."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from flows.commands import app, console, open_workspace


@app.command(
    rich_help_panel="Audit",
    epilog="Examples:  [cyan]faded shard mnist 4[/]   [cyan]faded shard mnist 8 --gpus 1[/]"
    "   [cyan]faded shard mnist 1[/]",
)
def shard(
    audit: Annotated[str, typer.Argument(metavar="AUDIT", help="Name of an audit in params.yaml.")],
    shares: Annotated[
        int, typer.Argument(metavar="N", min=1, max=10_000, help="Number of independent searches; 1 does not split it.")
    ],
    gpus: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--gpus",
            min=0,
            help="GPUs that each share, and the audit's other stages, request: compute.gpus.",
            show_default="unchanged",
        ),
    ] = None,
) -> None:
    """Split the search of an audit among N workers: items, budget and seeds. Runs nothing.

    Writes discover.shards of the audit in params.yaml, and leaves every other byte as it is. The total budget stays
    the same.
    """
    from flows.places.shard import shard_audit

    params, [name] = open_workspace([audit], False)
    shard_audit(params, name, shares, gpus, console)
