"""The command `faded tune`: measure, show, and write on request."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.choosing.ready import healed_audit, run_with_upstream, write_params
from flows.choosing.tune.measure import Settings, Tuning, measure_choices
from flows.graph import read_graph
from flows.processes import stopping_on_signals
from flows.views import bytes_in_words
from flows.workspace import exclusive
from flows.workspace.edit_params import with_compute
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.params import AuditConfig, Params
from stages.params.network import is_served
from stages.tasks.contract import Compute
from stages.tasks.load import task_context


def tune_audit(params: Params, name: str, settings: Settings, write: bool, console: Console) -> None:
    """Measure, show and on request write the fastest settings for the model of an audit.

    Raises:
        UsageError: if params.yaml is invalid or cannot be edited, or the model is behind HTTP.
        FadedError: if the model under test cannot be prepared.
    """
    audit = params.audit(name)
    _refuse_endpoint(name, audit)
    with exclusive():
        healed_audit(params, name, console)
        with stopping_on_signals():
            run_with_upstream(read_graph(), f"prepare@{name}", console)
            tuning = measure_choices(
                name, audit, settings, lambda line: console.print(line, highlight=False, markup=False)
            )
        show_tuning(console, name, tuning, settings)
        best = tuning.best(settings.allow_bfloat16)
        if write:
            _write(name, audit, best.compute, console)


def _refuse_endpoint(name: str, audit: AuditConfig) -> None:
    """Refuse a model behind HTTP: thousands of requests, perhaps paid for, would show nothing about this machine."""
    if is_served(audit.prepare.get("model")):
        raise UsageError(
            f"audits.{name} has a model behind HTTP, to which tune would send thousands of requests: set"
            " prepare.model.batch_size, concurrency and rate instead"
        )


def _write(name: str, audit: AuditConfig, best: Compute, console: Console) -> None:
    keys = ("backend", "dtype", "batch_size")
    now = task_context(name, audit, stage_dir(name, "prepare")).compute
    changed = {key: getattr(best, key) for key in keys if getattr(best, key) != getattr(now, key)}
    if not changed:
        console.print("nothing to write: it is already set", highlight=False)
        return
    write_params(name, audit, lambda text: with_compute(text, name, changed), console)


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
            bytes_in_words(choice.memory),
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
