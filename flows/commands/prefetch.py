"""Download models and data sets from the Hugging Face hub before audits run, which they do offline."""

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
    os.environ["HF_HUB_OFFLINE"] = "0"  # only in this process, and before importing a library that reads it once
    from stages.tasks.load import task_class, task_context

    params, names = open_workspace(audits, all_)
    for name in names:
        audit = params.audit(name)
        # The machine that downloads need not have the GPU or backend of the one that audits.
        anywhere = {"device": "cpu", "backend": "eager", "dtype": "auto"}
        here = audit.model_copy(update={"compute": audit.compute.model_copy(update=anywhere)})
        lines = task_class(name, audit).prefetch(task_context(name, here))
        lines = lines or ["nothing to download: everything it needs is on this machine"]
        for line in lines:
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
