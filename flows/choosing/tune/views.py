"""Output of `faded tune` in the terminal; nothing is computed here."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.choosing.tune.choices import Settings, Tuning
from flows.views import size
from stages.tasks.contract import Compute


def show_tuning(console: Console, name: str, tuning: Tuning, settings: Settings) -> None:
    """Print the table, and the conclusion."""
    now = tuning.choices[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "backend, dtype",
        "batch size",
        "probes/s",
        "ratio",
        "probes/CPU-s",
        "ratio",
        "memory",
        "off by",
        "changed",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for choice in tuning.choices:
        table.add_row(
            escape(choice.name) + (" (now)" if choice is now else ""),
            str(choice.compute.batch_size),
            f"{choice.speed:.1f}",
            f"{choice.speed / now.speed:.2f}",
            f"{choice.cpu:.1f}",
            f"{choice.cpu / now.cpu:.2f}",
            size(choice.memory),
            f"{choice.far:.1g}",
            f"{choice.changed} of {tuning.compared}",
        )
    console.print(table)
    for kind, why in tuning.impossible.items():
        console.print(f"not measured: {kind}: {why}", highlight=False, markup=False, soft_wrap=True)
    for choice in tuning.choices:
        if choice.tried:
            sizes = ", ".join(f"{n}: {speed:.1f}" for n, speed in choice.tried.items())
            console.print(
                f"probes/s of {choice.name} by batch size: {sizes}", highlight=False, markup=False, soft_wrap=True
            )
    best = tuning.best(settings.allow_bfloat16)
    if best is now:
        said = "stays as it is: nothing allowed is more than 5% faster"
    else:
        said = f"{_words(best.compute)} is {best.speed / now.speed:.1f} times as fast"
    console.print(f"{name}: {said}", highlight=False, markup=False, soft_wrap=True)
    if best.compute.dtype != now.compute.dtype:
        console.print(
            f"its dtype changes answers: {best.changed} of {tuning.compared} probes change between pass and fail",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if best.compute.backend == "openvino" and now.compute.backend != "openvino":
        console.print(
            "others who run the audit need it too: pip install 'faded[openvino]'", highlight=False, markup=False
        )
    faster = tuning.best(True)
    if faster.compute.dtype == "bfloat16" and faster is not best:
        console.print(
            f"{faster.name} is {faster.speed / best.speed:.1f} times as fast as that, but changes answers:"
            f" {faster.changed} of {tuning.compared} probes change between pass and fail; see --allow-bfloat16",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _words(compute: Compute) -> str:
    return f"{{backend: {compute.backend}, dtype: {compute.dtype}, batch_size: {compute.batch_size}}}"
