"""What `faded mine`, `faded propose` and `faded usage` have to know about chats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.concepts import Level
from stages.concepts.catalogue import Change
from stages.core.errors import UsageError
from stages.tasks.chat.concepts import catalogue_of
from stages.tasks.chat.config import ChatPrepare
from stages.tasks.chat.conversation import as_text, event_concepts
from stages.tasks.choosing import Draft, MinedTexts, Vocabulary, change_in_words
from stages.usage.measures import WordReader

if TYPE_CHECKING:
    from stages.tasks.chat.task import Chat


class QuestionTexts(MinedTexts):
    """Questions to a chat model: only synonyms, as the expected answer has to stay right."""

    column = "question"
    fields = ("question", "context", "answers", "pattern")

    def given(self, task: Chat, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return list(map(as_text, task.changed(item_ids, cells)))

    def expected(self, items: pd.DataFrame) -> list[str]:
        if "conversation" in items:
            raise UsageError("conversations are not mined: a changed question would lose what precedes it")
        rows = zip(items["answers"], items["pattern"], strict=True)
        return [f"a match of {pattern}" if pattern else " or ".join(answers) for answers, pattern in rows]


class ChatVocabulary(Vocabulary):
    """The catalogue, and further system messages and injected texts."""

    _FREE: Mapping[str, tuple[str, str]] = {
        "system": ("systems", "other instructions that a deployment may have"),
        "injection": ("injections", "texts within the passage that mislead the model"),
    }

    @property
    def known(self) -> Mapping[str, Change]:
        return catalogue_of(ChatPrepare.model_validate(self.audit.prepare))

    def lines(self) -> list[str]:
        used = {*self.audit.concepts, *self._FREE, *event_concepts(())}
        free = [
            f'{name}: {self.known[name].doc}; levels are texts of your own, {{"NAME": "TEXT"}}: {what}'
            for name, (_, what) in self._FREE.items()
        ]
        return [*(change_in_words(known) for name, known in self.known.items() if name not in used), *free]

    def with_concept(self, draft: Draft, concept: str, levels: Sequence[Level] | Mapping[str, str]) -> Draft:
        if concept not in self._FREE or not isinstance(levels, Mapping):
            return super().with_concept(draft, concept, levels)
        key, known = self._FREE[concept][0], self.known[concept]
        there: Mapping[str, str] = draft.config.get(key, {})
        taken = {*known.choices, *there}
        texts = {name: text for name, text in levels.items() if name not in taken and text not in there.values()}
        if not texts:
            raise UsageError("the audit has these levels, or they were proposed before")
        own = draft.concepts.get(concept, [known.neutral])
        return draft.plus(concept, [*own, *texts], list(texts), **{key: {**there, **texts}})


class QuestionReader(WordReader):
    """Questions to a chat model, as people write them."""

    of, fields = "question", ("question", "prompt", "text")
    task: Chat

    def changed(self, ids: Sequence[str], cells: np.ndarray) -> list[str]:
        return self.task.written(ids, cells)
