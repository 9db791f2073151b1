"""`faded usage`: show the usage that an audit assumes or states, and measure it on production inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from flows.edit_params import with_usage
from flows.graph import read_graph
from flows.processes import stopping_on_signals
from flows.screen import PARAMS, bring_up_to_date, healed_audit
from flows.workspace import exclusive
from flows.yaml_edit import edit_file
from stages.concepts import ConceptSpace, Level
from stages.concepts.usage import Usage
from stages.errors import UsageError
from stages.files import stage_dir
from stages.params import AuditConfig, Params, load_params

if TYPE_CHECKING:
    from stages.tasks.base import Task
    from stages.usage.estimate import Shares

_FINEST = 1e-4  # shares are written with four decimals, and none as 0, which would remove the level from the audit


@dataclass(frozen=True)
class InForce:
    """The usage of an audit.

    Args:
        audit: its name.
        space: the grid.
        usage: how often its cells occur.
        said: whether it is assumed, stated or measured.
    """

    audit: str
    space: ConceptSpace
    usage: Usage
    said: str

    @property
    def changes(self) -> list[float]:
        """Share of inputs with 0, 1, 2, ... concepts changed."""
        return np.trim_zeros(np.round(self.usage.by_changes(), 12), "b").tolist()

    def share(self, concept: str, level: int) -> float:
        """Share of inputs with a level, by number, of a concept."""
        return self.usage.share({self.space.names.index(concept): [level]})


@dataclass(frozen=True)
class MeasuredUsage:
    """How common levels are in production inputs.

    Args:
        in_force: the usage so far.
        concepts: those that could be measured.
        inputs: number of inputs.
        source: where they are from.
        left_out: what could not be read, and why.
    """

    in_force: InForce
    concepts: list[Shares]
    inputs: int
    source: str
    left_out: list[str]


def show_or_measure(
    params: Params, name: str, source: Path | None, column: str | None, write: bool, console: Console
) -> None:
    """Print the usage of an audit, or measure it on production inputs and on request write it to params.yaml.

    Raises:
        UsageError: if the inputs cannot be read, nothing can be measured, or the result cannot be written.
        FadedError: if the model under test cannot be prepared.
    """
    from flows.views import show_measured_usage, show_usage

    if source is None and (write or column is not None):
        raise UsageError(f"{'--write' if write else '--column'} needs --from PATH, the production inputs to measure")
    if source is not None and not source.exists():
        raise UsageError(f"--from {source}: there is no such file or folder")
    with exclusive():
        audit = healed_audit(params, name, console)
        with stopping_on_signals():
            from stages.tasks.load import load_alone, task_class
            from stages.usage.readers import reader_of

            reader = None if source is None else reader_of(task_class(name, audit), name)  # before prepare
            bring_up_to_date(read_graph(), f"prepare@{name}", console)
            task = load_alone(name, audit, stage_dir(name, "prepare"))
            in_force = _in_force(name, audit, task)
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


def _in_force(name: str, audit: AuditConfig, task: Task) -> InForce:
    space, usage = task.concepts, task.concepts.usage
    if usage is None or isinstance(audit.usage, str):
        flat, nothing = [np.full(size, 1 / size) for size in space.sizes], np.zeros((0, len(space)), dtype=np.int64)
        usage = Usage(tuple(flat), space.neutral_levels, None, nothing, np.zeros(0))
        return InForce(name, space, usage, "uniform: every cell of the grid is equally common")
    if (measured := audit.usage.measured) is not None:
        said = f"measured on {measured.inputs:,} inputs, {measured.source}"
    else:
        said = "stated in params.yaml" if audit.usage.stated else "assumed, as params.yaml states nothing"
    return InForce(name, space, usage, said)


def _write(name: str, audit: AuditConfig, measured: MeasuredUsage, console: Console) -> None:
    if load_params(PARAMS).audit(name) != audit:
        raise UsageError(
            f"nothing written: audits.{name} was changed in {PARAMS} meanwhile; run the same command again"
        )
    levels = {one.concept: _levels(audit, measured.in_force.space, one) for one in measured.concepts}
    about: dict[str, Level] = {"inputs": measured.inputs, "source": measured.source}
    edit_file(PARAMS, lambda text: with_usage(text, name, levels, about), console)
    console.print(f"written to {PARAMS}; see what is now stale with `faded plan {name}`", highlight=False)


def _levels(audit: AuditConfig, space: ConceptSpace, one: Shares) -> dict[Level, float]:
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
