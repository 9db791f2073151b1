"""The command `faded tune`: measure, show, and write on request."""

from __future__ import annotations

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from flows.choosing.ready import healed_audit, run_prepare, write_params
from flows.choosing.tune.measure import Settings, Tuning, measure_choices
from flows.processes import stopping_on_signals
from flows.terminal import new_table, print_plain
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
    if is_served(audit.prepare.get("model")):  # perhaps paid for, and nothing about this machine
        raise UsageError(
            f"audits.{name} has a model behind HTTP, to which tune would send thousands of requests: set"
            " prepare.model.batch_size, concurrency and rate instead"
        )
    with exclusive():
        healed_audit(params, name, console)
        with stopping_on_signals():
            run_prepare(name, console)
            tuning = measure_choices(name, audit, settings, lambda line: print_plain(console, line))
        show_tuning(console, name, tuning, settings)
        best = tuning.best(settings.allow_bfloat16)
        if write:
            _write(name, audit, best.compute, console)


def _write(name: str, audit: AuditConfig, best: Compute, console: Console) -> None:
    keys = ("backend", "dtype", "batch_size")
    now = task_context(name, audit, stage_dir(name, "prepare")).compute
    if changed := {key: getattr(best, key) for key in keys if getattr(best, key) != getattr(now, key)}:
        write_params(name, audit, lambda text: with_compute(text, name, changed), console)
    else:
        console.print("nothing to write: it is already set")


def show_tuning(console: Console, name: str, tuning: Tuning, settings: Settings) -> None:
    """Print the table, and the conclusion."""
    now = tuning.choices[0]
    numbers = ("batch size", "probes/s", "ratio", "probes/CPU-s", "ratio", "memory", "off by", "changed")
    table = new_table("backend, dtype", *numbers, right=numbers)
    for choice in tuning.choices:
        table.add_row(
            escape(choice.name) + (" (now)" if choice is now else ""),
            str(choice.compute.batch_size),
            f"{choice.speed:.1f}",
            f"{choice.speed / now.speed:.2f}",
            f"{choice.cpu:.1f}",
            f"{choice.cpu / now.cpu:.2f}",
            decimal(choice.memory),
            f"{choice.far:.1g}",
            f"{choice.changed} of {tuning.compared}",
        )
    console.print(table)
    for kind, why in tuning.impossible.items():
        print_plain(console, f"not measured: {kind}: {why}")
    for choice in tuning.choices:
        if choice.tried:
            sizes = ", ".join(f"{n}: {speed:.1f}" for n, speed in choice.tried.items())
            print_plain(console, f"probes/s of {choice.name} by batch size: {sizes}")
    best = tuning.best(settings.allow_bfloat16)
    said = "stays as it is: nothing allowed is more than 5% faster"
    if best is not now:
        to = f"{{backend: {best.compute.backend}, dtype: {best.compute.dtype}, batch_size: {best.compute.batch_size}}}"
        said = f"{to} is {best.speed / now.speed:.1f} times as fast"
    print_plain(console, f"{name}: {said}")
    if best.compute.dtype != now.compute.dtype:
        print_plain(
            console,
            f"its dtype changes answers: {best.changed} of {tuning.compared} probes change between pass and fail",
        )
    if best.compute.backend == "openvino" and now.compute.backend != "openvino":
        print_plain(console, "others who run the audit need it too: pip install 'faded[openvino]'")
    faster = tuning.best(True)
    if faster.compute.dtype == "bfloat16" and faster is not best:
        print_plain(
            console,
            f"{faster.name} is {faster.speed / best.speed:.1f} times as fast as that, but changes answers:"
            f" {faster.changed} of {tuning.compared} probes change between pass and fail; see --allow-bfloat16",
        )
