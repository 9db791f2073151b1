"""Fetch what audits take from the Hugging Face hub, for machines that have no network when they audit."""

from __future__ import annotations

import os

from flows.commands import All, Audits, app, console, open_workspace


@app.command(
    rich_help_panel="Audit",
    epilog="Examples:  [cyan]faded prefetch news[/]   [cyan]HF_TOKEN=... faded prefetch --all[/]",
)
def prefetch(audits: Audits = None, all_: All = False) -> None:
    """Download the models and data sets that audits name on the Hugging Face hub into the local cache.

    No other command downloads anything: audits read the cache. Shows the commit and size of each download, and how to
    pin that commit in params.yaml. What is already in the cache is not downloaded again.
    """
    os.environ["HF_HUB_OFFLINE"] = "0"  # of this process alone, and before a library is imported that reads it once
    from stages.tasks.load import task_class, task_context

    params, names = open_workspace(audits, all_)
    for name in names:
        audit = params.audit(name)
        # A machine that fetches need not have the GPU of one that audits, nor what computes there.
        anywhere = {"device": "cpu", "backend": "eager", "dtype": "auto"}
        here = audit.model_copy(update={"compute": audit.compute.model_copy(update=anywhere)})
        lines = task_class(name, audit).prefetch(task_context(name, here))
        lines = lines or ["nothing to download: everything it needs is on this machine"]
        for line in lines:
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
