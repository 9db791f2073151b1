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
        Path, typer.Argument(metavar="[FOLDER]", help="Folder in a git repository; the current one by default.")
    ] = Path(),
    model: Annotated[
        Optional[str],  # noqa: UP045  # typer reads this at run time
        typer.Option("--model", help="A file, a folder, ORG/NAME on the Hugging Face hub, or a URL."),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--data", help="A folder with one folder per class, a .jsonl or .parquet file, or ORG/NAME on the hub."
        ),
    ] = None,
    kind: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--kind", help="image-classification, summarization or text-to-image; guessed from the model."),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--name", help="Name of the audit; guessed from the data."),
    ] = None,
    repair: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--repair/--no-repair", help="Whether to add a repair and its re-evaluation.", show_default=False),
    ] = None,
    architecture: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--architecture", help="timm or torchvision name for a weights file; guessed from the weights."),
    ] = None,
    label: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--label",
            metavar="LABEL=CLASS",
            help="Map a label of the data to a class of the model; repeatable, never guessed.",
        ),
    ] = None,
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--classes", metavar="NAME,NAME", help="Class names in order, if the model's files do not name them."
        ),
    ] = None,
    reorder: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--reorder/--no-reorder",
            help="Whether to reorder the classes to match the model's answers, if they differ.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--size", help="Side length of the images, if the model's files do not say."),
    ] = None,
    normalise: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--normalise",
            help="How pixels in [0, 1] are normalised: imagenet, half or none; as in the model's library by default.",
        ),
    ] = None,
    outputs: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--outputs", help="Whether an ONNX network returns logits or probabilities; guessed."),
    ] = None,
    key_env: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--key-env", metavar="NAME", help="Environment variable with the API key of a model behind a URL."
        ),
    ] = None,
    templates: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--templates", help="Text-to-image: a file of prompts with a {slot} for every word that changes."),
    ] = None,
    words: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--words", metavar="SLOT=WORD,WORD", help="Text-to-image: words that can fill a slot; repeatable."
        ),
    ] = None,
    judge: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--judge", help="Text-to-image: folder of a judge, or a CLIP model on the hub."),
    ] = None,
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--split", help="Split of a data set on the hub."),
    ] = None,
    text: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--text", help="Column with the articles."),
    ] = None,
    budget: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--budget", min=1, help="Unique probes for the search.", show_default="about 10 minutes' worth"),
    ] = None,
    probes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--probes",
            min=100,
            help="Unique probes for the calibration.",
            show_default="400, or more for very many levels",
        ),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy model and data into the audit's inputs instead of linking them.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Accept all guesses and ask nothing.")] = False,
    bare: Annotated[
        bool, typer.Option("--bare", help="Create a workspace without an audit, which you write by hand.")
    ] = False,
) -> None:
    """Set up an audit of your own: inspect a model and data, propose concepts, calibrate levels, and write params.yaml.

    Every question is also an option. Levels are adjusted until 15 to 30% of the probes fail, if any levels do
    that. The same command resumes an interrupted set-up. Other pipelines in the repository stay as they are.
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
        errors.print("stopped; the same command resumes from here")
        raise typer.Exit(130) from None
