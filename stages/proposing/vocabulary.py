"""Concepts that may be proposed for an audit, by kind of task, and how a proposal changes the audit."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from pydantic import ValidationError

from stages.concepts import Level
from stages.concepts.catalogue import Change
from stages.concepts.prompts import UNSAID, read_templates
from stages.core.errors import UsageError, did_you_mean
from stages.core.files import read_table
from stages.params import AuditConfig, validation_lines
from stages.proposing.record import Proposal
from stages.tasks.base import LoadedTask, Task
from stages.tasks.chat import Chat
from stages.tasks.chat.concepts import catalogue_of
from stages.tasks.chat.config import ChatPrepare
from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.contract import TaskContext
from stages.tasks.text_to_image.items import misfits
from stages.tasks.text_to_image.probes import PainterProbes

_ITEMS = "items.parquet"
_LONGEST = 500  # characters of a field of an item; longer ones are cut
_NOT_TOLD = frozenset({"id", "split", "group", "target", "answer", "seed"})  # columns that are not sent
_MANY = 12  # maximum number of a slot's levels that are sent


@dataclass(frozen=True)
class Draft:
    """An audit with the proposals so far.

    Args:
        concepts: levels of all concepts.
        config: the `prepare:` block.
        new: by concept, the levels that were proposed.
    """

    concepts: Mapping[str, list[Level]]
    config: Mapping[str, Any]
    new: Mapping[str, list[Level]] = field(default_factory=dict)

    def plus(self, concept: str, levels: Sequence[Level], new: Sequence[Level], **config: Any) -> Draft:
        """Return the draft with other levels of a concept, some of them new, and with other keys of `prepare:`."""
        return Draft(
            {**self.concepts, concept: list(levels)},
            {**self.config, **config},
            {**self.new, concept: [*self.new.get(concept, ()), *new]},
        )


class Vocabulary:
    """Concepts of the task's catalogue that the audit does not use yet.

    Args:
        task: class of the task.
        context: its configuration.
        audit: the block of params.yaml.
    """

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

    def told(self) -> list[str]:
        """Describe what may be proposed, one line each, for the model that proposes."""
        return [_line(known) for name, known in self.known.items() if name not in self.audit.concepts]

    def taken(self, draft: Draft, one: Proposal) -> Draft:
        """Return the draft with one more proposal.

        Raises:
            UsageError: if that is not possible, with the reason.
        """
        if one.concept in draft.concepts:
            raise UsageError("the audit has this concept, or it was proposed before")
        if (known := self.known.get(one.concept)) is None:
            raise UsageError(f"unknown concept{did_you_mean(one.concept, self.known)}")
        if isinstance(one.levels, dict):
            raise UsageError("its levels are no free texts, expected a list")
        return draft.plus(one.concept, _from_neutral(known, one.levels), one.levels)

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

    def require_fit(self, task: LoadedTask) -> None:
        """Check that a loaded task can handle all levels of a draft.

        Raises:
            UsageError: if something does not fit.
        """


class Questions(Vocabulary):
    """For chat: the catalogue, and further system messages and injected texts."""

    _FREE: Mapping[str, tuple[str, str]] = {
        "system": ("systems", "other instructions that a deployment may have"),
        "injection": ("injections", "texts within the passage that mislead the model"),
    }

    @property
    def known(self) -> Mapping[str, Change]:
        return catalogue_of(ChatPrepare.model_validate(self.audit.prepare))

    def told(self) -> list[str]:
        closed = [_line(known) for name, known in self.known.items() if name not in {*self.audit.concepts, *self._FREE}]
        free = [
            f'{name}: {self.known[name].doc}; levels are texts of your own, {{"NAME": "TEXT"}}: {what}'
            for name, (_, what) in self._FREE.items()
        ]
        return [*closed, *free]

    def taken(self, draft: Draft, one: Proposal) -> Draft:
        if one.concept not in self._FREE or not isinstance(one.levels, dict):
            return super().taken(draft, one)
        key, known = self._FREE[one.concept][0], self.known[one.concept]
        there: Mapping[str, str] = draft.config.get(key, {})
        texts = {
            name: text
            for name, text in one.levels.items()
            if name not in {*known.choices, *there} and text not in there.values()
        }
        if not texts:
            raise UsageError("the audit has these levels, or they were proposed before")
        own = draft.concepts.get(one.concept, [known.neutral])
        return draft.plus(one.concept, [*own, *texts], list(texts), **{key: {**there, **texts}})


class Prompts(Vocabulary):
    """For text-to-image: further phrases for slots, and further slots at the end of every template."""

    def told(self) -> list[str]:
        slots = [
            f"{slot}: a slot of the prompts, has {', '.join(map(repr, levels[:_MANY]))}; levels are further phrases"
            for slot, levels in self.audit.concepts.items()
        ]
        return [
            *slots,
            "any other name in lower case: a new slot; levels are phrases that end a prompt well after a comma, as in"
            ' "a photo of a dog, at night"',
        ]

    def taken(self, draft: Draft, one: Proposal) -> Draft:
        if isinstance(one.levels, dict) or not all(isinstance(level, str) for level in one.levels):
            raise UsageError("expected levels that are phrases")
        own = draft.concepts.get(one.concept, [UNSAID])
        if not (new := [level for level in dict.fromkeys(one.levels) if level not in own]):
            raise UsageError("the audit has these levels, or they were proposed before")
        if one.concept in draft.concepts:
            return draft.plus(one.concept, [*own, *new], new)
        templates = [_with_slot(template, one.concept) for template in self._templates(draft)]
        return draft.plus(one.concept, [*own, *new], new, templates=templates)

    def items(self, draft: Draft, prepared: Path, folder: Path) -> Path:
        """See Vocabulary: the items contain the templates."""
        before, after = self._templates(self.start), self._templates(draft)
        if before == after:
            return prepared
        items = read_table(prepared / _ITEMS)
        items["template"] = items["template"].map(dict(zip(before, after, strict=True)))
        for path in prepared.resolve().iterdir():
            if path.name != _ITEMS and not (folder / path.name).is_symlink():
                (folder / path.name).symlink_to(path)
        items.to_parquet(folder / _ITEMS, index=False)
        return folder

    def require_fit(self, task: LoadedTask) -> None:
        """See Vocabulary: prompts must not be longer than the model can read."""
        painter = cast(PainterProbes, task)
        templates = painter.items.table["template"].tolist()
        if lines := misfits(painter.concepts, templates, painter.painter, painter.judge):
            raise UsageError("\n".join(lines))

    def _templates(self, draft: Draft) -> list[str]:
        return read_templates(draft.config["templates"], self.context.inputs)


_KINDS: Mapping[type[Task], type[Vocabulary]] = {Chat: Questions, PainterProbes: Prompts}


def vocabulary_of(task: type[Task], context: TaskContext, audit: AuditConfig) -> Vocabulary:
    """Return the vocabulary of an audit.

    Raises:
        UsageError: if its task declares no concepts.
    """
    kind = next((kind for base, kind in _KINDS.items() if issubclass(task, base)), Vocabulary)
    found = kind(task, context, audit)
    if kind is not Prompts and not found.known:
        raise UsageError(
            f"audits.{context.audit}.task: {task.__name__} has no catalogue of concepts, so none can be proposed;"
            " expected a classifier, summarization, chat or text-to-image, or a task with a catalogue"
        )
    return found


# Descriptions for the model that proposes


def about_audit(vocabulary: Vocabulary) -> list[str]:
    """Describe the audit in lines for the model that proposes."""
    audit = vocabulary.audit
    has = [
        f"{name}: {', '.join(f'{level:g}' if isinstance(level, int | float) else repr(level) for level in levels)}"
        for name, levels in audit.concepts.items()
    ]
    doc = (inspect.getdoc(vocabulary.task) or "").split("\n\n", maxsplit=1)[0]
    return [f"Model under test: {doc}", f"A failure is defined by: {audit.automatic}", "Concepts it has:", *has]


def drawn_items(prepared: Path, n: int, seed: int) -> pd.DataFrame:
    """Draw n items of the split `discover` and return their rows."""
    items = read_table(prepared / _ITEMS)
    own = items[items["split"] == "discover"]
    chosen = np.random.default_rng([seed, *b"propose"]).permutation(len(own))[:n]
    return own.iloc[np.sort(chosen)]


def item_lines(items: pd.DataFrame) -> list[str]:
    """Describe items, one line each; long texts are cut."""
    return [
        "; ".join(f"{column}: {told}" for column, value in row.items() if (told := _told(str(column), value)))
        for row in items.to_dict("records")
    ]


def pictures_of(task: LoadedTask, item_ids: Sequence[str]) -> list[bytes]:
    """Return unchanged items as PNG; empty if they are not pictures."""
    if not isinstance(task.automatic_task, ClassifierProbes):
        return []
    from PIL import Image

    found, probes = [], task.automatic_task
    for pixels in (probes.clean(probes.rows(item_ids)).permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
        found.append(file.getvalue())
    return found


def _told(column: str, value: Any) -> str:
    if column in _NOT_TOLD or isinstance(value, bytes):
        return ""
    if isinstance(value, list | np.ndarray):
        value = " or ".join(map(str, value)) if all(isinstance(one, str) for one in value) else ""
    text = " ".join(str(value).split())
    return text[:_LONGEST] + (" ..." if len(text) > _LONGEST else "")


def _line(known: Change) -> str:
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


def _with_slot(template: str, slot: str) -> str:
    said = re.sub(r"[.!?]*$", "", template)
    return f"{said}, {{{slot}}}{template[len(said) :]}"
