"""Find out what computes fastest here."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands import Audit, Preset, app, console, errors, open_workspace


@app.command(
    rich_help_panel="Audit",
    epilog="Examples:  [cyan]faded tune imagenet[/]   [cyan]faded tune imagenet --write[/]"
    "   [cyan]faded tune imagenet --allow-bfloat16[/]",
)
def tune(
    audit: Audit = None,
    preset: Preset = None,
    memory: Annotated[
        float, typer.Option("--memory", min=0.01, max=1, help="Share of the machine's memory, or the GPU's, to use.")
    ] = 0.5,
    allow_bfloat16: Annotated[
        bool, typer.Option("--allow-bfloat16", help="Recommend bfloat16 too, which changes answers.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Write what is recommended to params.yaml.")] = False,
) -> None:
    """Measure which backend, dtype and batch size run the audit's model fastest on this machine.

    The model that `prepare` left is asked real probes (prepare runs first if it is stale). All choices are measured in
    turns, in one run. Only compute.backend, dtype and batch_size are ever written, and only with --write.
    """
    from flows.tune.choices import Settings
    from flows.tune.run import tune_audit
    from stages.errors import stop_code

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    try:
        tune_audit(params, name, Settings(memory=memory, allow_bfloat16=allow_bfloat16), write, console)
    except KeyboardInterrupt as stop:
        errors.print("stopped; nothing was written")
        raise typer.Exit(stop_code(stop)) from None
