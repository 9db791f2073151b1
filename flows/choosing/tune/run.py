"""The command `faded tune`: measure, show, and write on request."""

from __future__ import annotations

from rich.console import Console

from flows.choosing.ready import PARAMS, bring_up_to_date, healed_audit
from flows.choosing.tune.choices import Settings
from flows.choosing.tune.measure import tune
from flows.choosing.tune.views import show_tuning
from flows.graph import read_graph
from flows.processes import stopping_on_signals
from flows.workspace import exclusive
from flows.workspace.edit_params import with_compute
from flows.workspace.yaml_edit import edit_file
from stages.errors import UsageError
from stages.files import stage_dir
from stages.network import is_served
from stages.params import AuditConfig, Params, load_params
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
            bring_up_to_date(read_graph(), f"prepare@{name}", console)
            tuning = tune(name, audit, settings, lambda line: console.print(line, highlight=False, markup=False))
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
    if load_params(PARAMS).audit(name) != audit:
        raise UsageError(
            f"nothing written: audits.{name} was changed in {PARAMS} meanwhile; run the same command again"
        )
    edit_file(PARAMS, lambda text: with_compute(text, name, changed), console)
    console.print(f"written to {PARAMS}; see what is now stale with `faded plan {name}`", highlight=False)
