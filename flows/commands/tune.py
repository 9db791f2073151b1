"""Find the fastest backend, dtype and batch size on this machine."""

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
        float, typer.Option("--memory", min=0.01, max=1, help="Fraction of the machine's (or GPU's) memory to use.")
    ] = 0.5,
    allow_bfloat16: Annotated[
        bool, typer.Option("--allow-bfloat16", help="Also consider bfloat16, which changes answers.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Write the recommendation to params.yaml.")] = False,
) -> None:
    """Measure which backend, dtype and batch size run the audit's model fastest on this machine.

    Runs real probes on the prepared model (prepare runs first if it is stale). All choices are measured in turn, in
    one run. Writes nothing but compute.backend, dtype and batch_size, and only with --write.
    """
    from flows.choosing.tune.choices import Settings
    from flows.choosing.tune.run import tune_audit
    from stages.errors import stop_code

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    try:
        tune_audit(params, name, Settings(memory=memory, allow_bfloat16=allow_bfloat16), write, console)
    except KeyboardInterrupt as stop:
        errors.print("stopped; nothing was written")
        raise typer.Exit(stop_code(stop)) from None
