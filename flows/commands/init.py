"""Begin: an audit of one's own model and data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from flows.commands import app, console, errors


@app.command(
    rich_help_panel="Audit",
    epilog="Examples:  [cyan]faded init[/]   [cyan]faded init --model resnet18.pth --data pets --yes[/]"
    "   [cyan]faded init --model facebook/bart-large-cnn --data news.jsonl --no-repair[/]",
)
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[FOLDER]", help="In a git repository; the current one by default.")
    ] = Path(),
    model: Annotated[
        Optional[str],  # noqa: UP045  # typer reads this at run time
        typer.Option("--model", help="A file, a folder, ORG/NAME of the Hugging Face hub, or a URL."),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--data", help="A folder of each class, a .jsonl or .parquet file, or ORG/NAME of the hub."),
    ] = None,
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--kind", help="image-classification, summarization or text-to-image; guessed from the model."),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Of the audit; guessed from the data."),
    ] = None,
    repair: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--repair/--no-repair", help="Whether a repair and its comparison follow.", show_default=False),
    ] = None,
    architecture: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--architecture", help="Of a file of weights: a name of timm or torchvision; guessed from them."),
    ] = None,
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--label",
            metavar="LABEL=CLASS",
            help="A label of the data and the model's class; repeatable, never guessed.",
        ),
    ] = None,
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--classes", metavar="NAME,NAME", help="Of a model whose files do not name them, in order."),
    ] = None,
    reorder: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--reorder/--no-reorder",
            help="Whether classes take the order of the model's answers, where that is another.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--size", help="Side of the pictures, for a model whose files do not say."),
    ] = None,
    normalise: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--normalise", help="Of pixels from 0 to 1: imagenet, half or none; its library's by default."),
    ] = None,
    outputs: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--outputs", help="Of an ONNX network: its scores are logits or probabilities; guessed."),
    ] = None,
    key_env: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--key-env", metavar="NAME", help="Environment variable with the key of a model behind a URL."),
    ] = None,
    templates: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--templates", help="Text-to-image: a file of prompts with a {slot} for every word that changes."),
    ] = None,
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--words", metavar="SLOT=WORD,WORD", help="Text-to-image: what may fill a slot; repeatable."),
    ] = None,
    judge: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--judge", help="Text-to-image: folder of a judge, or a CLIP model of the hub."),
    ] = None,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--split", help="Of a data set of the hub."),
    ] = None,
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--text", help="Column with the articles."),
    ] = None,
    budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--budget", min=1, help="Unique probes of the search.", show_default="about 10 minutes of them"),
    ] = None,
    probes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--probes",
            min=100,
            help="Unique probes of the calibration.",
            show_default="400, or more for very many levels",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy model and data into the audit's inputs, link nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take what is guessed, ask nothing.")] = False,
    bare: Annotated[
        bool, typer.Option("--bare", help="A workspace without an audit, which you write by hand; ask nothing.")
    ] = False,
) -> None:
    """Make an audit of your own: look at a model and data, propose concepts, calibrate, and write params.yaml.

    Every question is an option, too. Levels are drawn in or out until 15 to 30% of the probes fail, if any levels do
    that. What was stopped goes on with the same command; other pipelines in the repository stay as they are.
    """
    from flows.init.run import Options, init_audit, init_bare

    answers = {
        "model": model,
        "data": data,
        "kind": kind,
        "name": name,
        "repair": repair,
        "architecture": architecture,
        "classes": classes,
        "reorder": reorder,
        "size": size,
        "normalise": normalise,
        "outputs": outputs,
        "key-env": key_env,
        "templates": templates,
        "judge": judge,
        "split": split,
        "text": text,
    }
    options = Options(answers, label or [], words or [], copy=copy, budget=budget, probes=probes, yes=yes)
    if bare:
        init_bare(folder, options, console)
        return
    try:
        init_audit(folder, options, console, asks=sys.stdin.isatty() and console.is_terminal)
    except KeyboardInterrupt:
        errors.print("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
