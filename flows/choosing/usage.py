"""`faded usage`: show the usage that an audit assumes or states, and measure it on production inputs."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.choosing import healed_audit, run_prepare, write_params
from flows.views import show_measured_usage, show_usage
from flows.workspace.edit_params import with_usage
from stages.concepts import ConceptSpace, Level
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.params import AuditConfig, Params
from stages.params.usage import MeasuredConfig
from stages.tasks.choosing import part_of
from stages.tasks.load import load_alone, task_class
from stages.usage.estimate import MeasuredUsage, Shares, UsageInForce

if TYPE_CHECKING:
    from stages.tasks.base import Task
    from stages.usage.measures import Reader

_FINEST = 1e-4  # shares are written with four decimals, and none as 0, which would remove the level from the audit


def show_or_measure(
    params: Params, name: str, source: Path | None, column: str | None, write: bool, console: Console
) -> None:
    """Print the usage of an audit, or measure it on production inputs and on request write it to params.yaml.

    Raises a UsageError if the inputs cannot be read, nothing can be measured, or the result cannot be written; a
    FadedError if the model under test cannot be prepared.
    """
    if source is None and (write or column is not None):
        raise UsageError(f"{'--write' if write else '--column'} needs --from PATH, the production inputs to measure")
    if source is not None and not source.exists():
        raise UsageError(f"--from {source}: there is no such file or folder")
    with healed_audit(params, name, console) as audit:
        reader = None if source is None else _reader_of(task_class(name, audit), name)  # before prepare
        run_prepare(name, console)
        task = load_alone(name, audit, stage_dir(name, "prepare"))
        in_force = UsageInForce.of(name, task.concepts, audit.usage)
        if source is None or reader is None:
            show_usage(console, in_force)
            return
        with console.status(f"measuring {source.name} ..."):
            looks = reader(task, column)
            concepts, inputs = looks.estimate(source, audit.seed)
        measured = MeasuredUsage(in_force, concepts, inputs, source.resolve().name, looks.left_out)
        show_measured_usage(console, measured, written=write)
        if write:
            _write(name, audit, measured, console)


def _reader_of(task: "type[Task]", name: str) -> "type[Reader]":
    reader: type[Reader] | None = part_of(task, "usage")
    if reader is None:
        raise UsageError(
            f"audits.{name}.task: nothing is known of the inputs of {task.__name__}; state their usage yourself, under"
            f" audits.{name}.usage.levels (docs/usage.md)"
        )
    return reader


def _write(name: str, audit: AuditConfig, measured: MeasuredUsage, console: Console) -> None:
    levels = {
        one.concept: weights_to_write(audit, measured.in_force.space, one) for one in measured.concepts if one.known
    }
    if not levels:
        raise UsageError("nothing written: all shares are too uncertain; measure more inputs")
    worth = {one.concept: round(one.worth) for one in measured.concepts if one.known}
    about = MeasuredConfig(inputs=measured.inputs, source=measured.source, worth=worth)
    write_params(name, audit, lambda text: with_usage(text, name, levels, about), console)


def weights_to_write(audit: AuditConfig, space: ConceptSpace, one: Shares) -> dict[Level, float]:
    """Return the weights to write: measured shares less those of named combinations, which come on top."""
    at = space.names.index(one.concept)
    left = one.smoothed
    for combination in () if isinstance(audit.usage, str) else audit.usage.combinations:
        chosen = combination.levels.get(one.concept, space.concepts[at].neutral)
        if chosen is not None:
            left[space.concepts[at].levels.index(chosen)] -= combination.share
    return {
        level: round(float(max(share, _FINEST)), 4)
        for level, share in zip(audit.concepts[one.concept], left, strict=True)
    }
