"""What a kind of task tells the commands that help to choose an audit's settings.

A task names its classes: `init` (see `stages.tasks.init`) for `faded init`, `mining` for `faded mine`, `proposing` for
`faded propose`, and `usage` (see `stages.usage.measures`) for `faded usage --from`. Each is "module:Class", and a
module that begins with a dot is relative to that of the task. These are names rather than imports, so that no stage
depends on code that only helps to choose.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import ValidationError

from stages.concepts import Level
from stages.concepts.catalogue import Change
from stages.core.errors import UsageError, did_you_mean
from stages.params import AuditConfig, validation_lines
from stages.tasks.base import Task
from stages.tasks.contract import TaskContext

ITEMS = "items.parquet"


def part_of(task: type[Any], attribute: str) -> Any:
    """Import the class that a task, or one of its bases, names in a class attribute; None if there is none."""
    owner = next((cls for cls in task.__mro__ if attribute in vars(cls)), None)
    if owner is None:
        return None
    module, _, name = vars(owner)[attribute].partition(":")
    return getattr(import_module(module, sys.modules[owner.__module__].__package__), name)


class MinedTexts(ABC):
    """What `faded mine` has to know about the texts of a kind's items.

    Attributes:
        column: the column of the items with their texts.
        fields: the columns of the items that a data file of such items has, besides id and split.
        templates: whether texts are templates of prompts. Any word will do then, as the prompt itself defines the
            expected answer; words of other texts are only replaced by synonyms.
        before_concepts: whether words are replaced by an additional text concept, applied before all others, because
            the answer is judged by the unchanged text. Otherwise changed texts are additional items.
    """

    column: ClassVar[str]
    fields: ClassVar[Sequence[str]]
    templates: ClassVar[bool] = False
    before_concepts: ClassVar[bool] = False

    @abstractmethod
    def given(self, task: Any, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return the inputs of the model in n probes as readable text; cells are (n, concepts)."""

    @abstractmethod
    def expected(self, items: pd.DataFrame) -> list[str]:
        """Describe the expected answer to each of n items."""

    def may_add_levels(self, task: Any) -> bool:
        """Whether concepts may get further levels, which are words like those in params.yaml."""
        return False

    def source(self, items: pd.DataFrame) -> Mapping[str, str]:
        """Return keys of `prepare.data`, besides that of the file, for a data file of these items."""
        return {}


@dataclass(frozen=True)
class Draft:
    """An audit with the proposals so far.

    Args:
        config: the `prepare:` block.
        new: by concept, the levels that were proposed.
    """

    concepts: Mapping[str, list[Level]]
    config: Mapping[str, Any]
    new: Mapping[str, list[Level]] = field(default_factory=dict)

    def plus(self, concept: str, levels: Sequence[Level], new: Sequence[Level], **config: Any) -> "Draft":
        """Return the draft with other levels of a concept, some of them new, and with other keys of `prepare:`."""
        return Draft(
            {**self.concepts, concept: list(levels)},
            {**self.config, **config},
            {**self.new, concept: [*self.new.get(concept, ()), *new]},
        )


class Vocabulary:
    """Concepts that may be proposed for an audit: those of the task's catalogue that it does not use yet."""

    def __init__(self, task: type[Task], context: TaskContext, audit: AuditConfig) -> None:
        self.task, self.context, self.audit = task, context, audit

    @property
    def known(self) -> Mapping[str, Change]:
        """Return all concepts of the catalogue that have levels, by name."""
        return {name: known for name, known in self.task.catalogue.items() if isinstance(known, Change)}

    @property
    def start(self) -> Draft:
        """Return the audit as it is."""
        return Draft(self.audit.concepts, self.audit.prepare)

    def lines(self) -> list[str]:
        """Describe what may be proposed, one line each, for the model that proposes."""
        return [change_in_words(known) for name, known in self.known.items() if name not in self.audit.concepts]

    def with_concept(self, draft: Draft, concept: str, levels: Sequence[Level] | Mapping[str, str]) -> Draft:
        """Return the draft with one more proposal: levels, or free texts by name.

        Raises a UsageError if that is not possible, with the reason.
        """
        if concept in draft.concepts:
            raise UsageError("the audit has this concept, or it was proposed before")
        if (known := self.known.get(concept)) is None:
            raise UsageError(f"unknown concept{did_you_mean(concept, self.known)}")
        if isinstance(levels, Mapping):
            raise UsageError("its levels are no free texts, expected a list")
        return draft.plus(concept, _from_neutral(known, levels), levels)

    def errors(self, draft: Draft) -> list[str]:
        """Return the errors of params.yaml with this draft; empty if it is valid."""
        blocks = {"concepts": dict(draft.concepts), "prepare": dict(draft.config)}
        try:
            AuditConfig.model_validate(self.audit.model_dump() | blocks)
        except ValidationError as error:
            return validation_lines(error, AuditConfig)
        return self.task.check(self.drafted(draft))

    def drafted(self, draft: Draft) -> TaskContext:
        """Return the configuration of the task with a draft."""
        return replace(self.context, config=draft.config, concepts=draft.concepts)

    def items(self, draft: Draft, prepared: Path, folder: Path) -> Path:
        """Return the prepared folder for a draft: `prepared` itself, or a changed copy made in `folder`."""
        return prepared

    def require_fit(self, task: Any) -> None:
        """Check that a loaded task can handle all levels of a draft. Raises a UsageError if something does not fit."""

    def pictures(self, task: Any, item_ids: Sequence[str]) -> list[bytes]:
        """Return unchanged items as PNG; empty if they are not pictures."""
        return []


def change_in_words(known: Change) -> str:
    """Describe a concept of a catalogue and its levels, for the model that proposes."""
    kinds = f"one of {', '.join(known.choices)}" if known.choices else f"numbers from {known.low:g} to {known.high:g}"
    return f"{known.name}: {known.doc}; levels are {kinds}, {known.neutral} changes nothing"


def _from_neutral(known: Change, levels: Sequence[Level]) -> list[Level]:
    """Return levels in the order that params.yaml expects, including the one that changes nothing."""
    neutral = known.neutral
    numbers = [level for level in levels if isinstance(level, int | float)]
    if known.choices or isinstance(neutral, str) or len(numbers) < len(levels):
        return list(dict.fromkeys([neutral, *levels]))
    ordered = sorted({float(neutral), *numbers})
    weakest_last = abs(ordered[0] - neutral) > abs(ordered[-1] - neutral)
    return [*(reversed(ordered) if weakest_last else ordered)]


def with_items(items: pd.DataFrame, prepared: Path, folder: Path) -> Path:
    """Return `folder` as a prepared folder with other items; everything else in it links to `prepared`."""
    folder.mkdir(exist_ok=True)
    for path in prepared.resolve().iterdir():
        if path.name != ITEMS and not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(path)
    items.to_parquet(folder / ITEMS, index=False)
    return folder
