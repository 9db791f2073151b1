"""People decide."""

from __future__ import annotations

from flows.commands import Audit, Preset, app, console, open_workspace


@app.command(epilog="Example:  [cyan]faded review mnist[/]")
def review(audit: Audit = None, preset: Preset = None) -> None:
    """Ask which failure modes to repair, and write the decision file on which the repair depends.

    The decision is bound to the landscape that is shown; it is written to data/AUDIT/decisions, which belongs in git.
    """
    from flows.review.terminal import review_landscape

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    review_landscape(params, name, console)
