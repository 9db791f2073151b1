"""Choose an audit's settings: concepts, usage, explorer and compute; and download what it names."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import All, Audit, Audits, Preset, command, console, errors, flag, open_workspace, say, value
from stages.core.errors import stop_code


def _at_most(default: str, least: int | None = None) -> Any:
    told = "Maximum number of unique probes."
    return typer.Option("--probes", min=least, metavar="N", help=told, show_default=default)


@command("faded screen mnist", "faded screen mnist --probes 1000")
def screen(
    audit: Audit = None,
    probes: Annotated[int | None, _at_most("as many as take a minute, 500 to 4000", 20)] = None,
) -> None:
    """Probe each concept of an audit alone: how often the model fails at each level, for whom, and what has no effect.

    Prints a table, saves it as a page, .faded/screen/AUDIT.html, and changes nothing in params.yaml. Run it again after
    a kill, and earlier answers are reused.
    """
    from flows.choosing.screen import screen_audit

    params, [name] = open_workspace([audit] if audit else None, False)
    screen_audit(params, name, probes, console)


@command(
    "faded usage mnist",
    "faded usage mnist --from ~/inbox/may",
    "faded usage questions --from asked.csv --column text --write",
)
def usage(
    audit: Audit = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PATH",
            help="Production inputs: a folder of pictures; texts, questions or prompts in a .txt (one a line), .csv,"
            " .json, .jsonl or .parquet file; or a table of rows.",
        ),
    ] = None,
    column: Annotated[str | None, value("NAME", "Column or field with the texts, if the file has several.")] = None,
    write: Annotated[bool, flag("--write", "Write the measured shares to params.yaml.")] = False,
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


@command("faded mine questions", "faded mine questions --probes 2000")
def mine(
    audit: Audit = None,
    probes: Annotated[int | None, _at_most("1000")] = None,
) -> None:
    """Find words, text attributes and small combinations of them at which a model fails, and which no concept covers.

    For chat, summarization and text-to-image. Writes a record and a page, .faded/mine/AUDIT.json and AUDIT.html. Run
    the same command again, or after a kill, and earlier answers are reused.
    """
    from flows.choosing.mine import mine_audit

    params, [name] = open_workspace([audit] if audit else None, False)
    mine_audit(params, name, probes, console)


@command("faded propose mnist", "faded propose mnist --probes 800 --write")
def propose(
    audit: Audit = None,
    probes: Annotated[int | None, _at_most("400, or more for many levels", 20)] = None,
    write: Annotated[bool, flag("--write", "Write what enters to params.yaml.")] = False,
) -> None:
    """Ask a language model, `proposer:` in params.yaml, for concepts that the audit lacks, and screen what it says.

    A concept enters if a short screening finds an effect, and is marked as proposed. Sends some items to that model.
    Run it again, or after a kill, and earlier answers of both models are reused.
    """
    from flows.choosing.propose import propose_concepts

    params, [name] = open_workspace([audit] if audit else None, False)
    propose_concepts(params, name, probes, write, console)


@command("faded tune imagenet", "faded tune imagenet --write", "faded tune imagenet --allow-bfloat16")
def tune(
    audit: Audit = None,
    preset: Preset = None,
    memory: Annotated[
        float, value("NUMBER", "Fraction of the machine's (or GPU's) memory to use.", min=0.01, max=1)
    ] = 0.5,
    allow_bfloat16: Annotated[bool, flag("--allow-bfloat16", "Also consider bfloat16, which changes answers.")] = False,
    write: Annotated[bool, flag("--write", "Write the recommendation to params.yaml.")] = False,
) -> None:
    """Measure which backend, dtype and batch size run the audit's model fastest on this machine.

    Runs real probes on the prepared model (prepare runs first if it is stale). All choices are measured in turn, in
    one run. Writes nothing but compute.backend, dtype and batch_size, and only with --write.
    """
    from flows.choosing.tune import Settings, tune_audit

    params, [name] = open_workspace([audit] if audit else None, False, preset)
    try:
        tune_audit(params, name, Settings(memory=memory, allow_bfloat16=allow_bfloat16), write, console)
    except KeyboardInterrupt as stop:
        errors.print("stopped; nothing was written")
        raise typer.Exit(stop_code(stop)) from None


@command("faded shard mnist 4", "faded shard mnist 8 --gpus 1", "faded shard mnist 1")
def shard(
    audit: Annotated[str, typer.Argument(metavar="AUDIT", help="Name of an audit in params.yaml.")],
    shares: Annotated[
        int, typer.Argument(metavar="N", min=1, max=10_000, help="Number of independent searches; 1 does not split it.")
    ],
    gpus: Annotated[
        int | None,
        value(
            "N",
            "GPUs that each share, and the audit's other stages, request: compute.gpus.",
            min=0,
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


@command("faded prefetch news", "HF_TOKEN=... faded prefetch --all")
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
        lines = task_class(name, audit).prefetch(task_context(name, here)) or [
            "nothing to download: everything it needs is on this machine"
        ]
        say(*(f"{name}: {line}" for line in lines))
