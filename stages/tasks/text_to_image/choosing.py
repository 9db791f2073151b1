"""What `faded mine`, `faded propose` and `faded usage` have to know about prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.concepts import Level
from stages.concepts.prompts import UNSAID, read_templates
from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.tasks.choosing import ITEMS, Draft, MinedTexts, Vocabulary, with_items
from stages.tasks.text_to_image.items import misfits
from stages.usage import measures
from stages.usage.readers import TextReader

if TYPE_CHECKING:
    from stages.tasks.text_to_image.probes import PainterProbes

_MANY = 12  # maximum number of a slot's levels that are sent


class PromptTexts(MinedTexts):
    """Templates of prompts: other words in them, and more slot levels if the judge reads prompts."""

    column = "template"
    templates = True

    def given(self, task: PainterProbes, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return [orders[0].prompt for orders in task.orders(item_ids, cells)]

    def expected(self, items: pd.DataFrame) -> list[str]:
        return ["pictures of what the prompt says"] * len(items)

    def may_add_levels(self, task: PainterProbes) -> bool:
        return bool(getattr(getattr(task, "judge", None), "reads_prompts", False))


class PromptVocabulary(Vocabulary):
    """Further phrases for slots, and further slots at the end of every template."""

    def lines(self) -> list[str]:
        slots = [
            f"{slot}: a slot of the prompts, has {', '.join(map(repr, levels[:_MANY]))}; levels are further phrases"
            for slot, levels in self.audit.concepts.items()
        ]
        return [
            *slots,
            "any other name in lower case: a new slot; levels are phrases that end a prompt well after a comma, as in"
            ' "a photo of a dog, at night"',
        ]

    def with_concept(self, draft: Draft, concept: str, levels: Sequence[Level] | Mapping[str, str]) -> Draft:
        if isinstance(levels, Mapping) or not all(isinstance(level, str) for level in levels):
            raise UsageError("expected levels that are phrases")
        own = draft.concepts.get(concept, [UNSAID])
        if not (new := [level for level in dict.fromkeys(levels) if level not in own]):
            raise UsageError("the audit has these levels, or they were proposed before")
        if concept in draft.concepts:
            return draft.plus(concept, [*own, *new], new)
        templates = [_with_slot(template, concept) for template in self._templates(draft)]
        return draft.plus(concept, [*own, *new], new, templates=templates)

    def items(self, draft: Draft, prepared: Path, folder: Path) -> Path:
        """See Vocabulary: the items contain the templates."""
        before, after = self._templates(self.start), self._templates(draft)
        if before == after:
            return prepared
        items = read_table(prepared / ITEMS)
        items["template"] = items["template"].map(dict(zip(before, after, strict=True)))
        return with_items(items, prepared, folder)

    def require_fit(self, task: PainterProbes) -> None:
        """See Vocabulary: prompts must not be longer than the model can read."""
        templates = task.items.table["template"].tolist()
        if lines := misfits(task.concepts, templates, task.painter, task.judge):
            raise UsageError("\n".join(lines))

    def _templates(self, draft: Draft) -> list[str]:
        return read_templates(draft.config["templates"], self.context.inputs)


def _with_slot(template: str, slot: str) -> str:
    said = re.sub(r"[.!?]*$", "", template)
    return f"{said}, {{{slot}}}{template[len(said) :]}"


class PromptReader(TextReader):
    """Prompts of a text-to-image model: the words of its slots are counted."""

    fields = ("prompt", "text", "caption")
    task: PainterProbes

    def measured_by(self) -> Mapping[str, Sequence[str]]:
        return {name: (f"{name} first",) for name in self.task.concepts.names}

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        return self.measure([orders[0].prompt for orders in self.task.orders(ids, cells)])

    def measure(self, texts: Sequence[str]) -> pd.DataFrame:
        levels = {concept.name: [str(level) for level in concept.levels] for concept in self.task.concepts.concepts}
        return measures.of_prompts(texts, levels)
