"""Loaders of chat models, and how chat models are queried. To add a loader, add its key to the task's loaders.

Models with local weights are read, stored and queried as summarizers are: in the same folders, and in the same batches
that do not change an answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from stages.errors import UsageError
from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.summarization.form import ARTICLE, GenerationConfig
from stages.tasks.summarization.generate import Summarizer, render_chat
from stages.tasks.summarization.models import PackageModel, TransformersModel, WeightsModel
from stages.tasks.summarization.source import LanguageModelSource


class Turn(NamedTuple):
    """The input of a model: the system message ("" for none) and the user's message."""

    system: str
    said: str


class Chats(Protocol):
    """A chat model as the task sees it, with local weights or served.

    `hash` identifies the model, `parameters` is its size, if known. `room` is the number of tokens that question and
    answer may have together; None if unknown.
    """

    hash: str
    parameters: int | None
    room: int | None

    def tokens(self, turn: Turn) -> int:
        """Return how many tokens of the room a question and its longest answer take; 0 if unknown."""
        ...

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        """Return answers to n questions, without surrounding white space; each depends on its question alone."""
        ...


class ChatSource(LanguageModelSource):
    """Base of the loaders of chat models; `generation_of` gives the settings they are built with."""

    @abstractmethod
    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """Read a model folder that `build` wrote; the account is the same as for `build`.

        Raises:
            UsageError: when a file is missing or damaged, or it is not a chat model.
        """


class _Here(WeightsModel, ChatSource):
    """A model with local weights."""

    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        return LocalChat(self.load(folder, compute))


class PackageChat(_Here, PackageModel):
    """{package: NAME, file: X.gguf}: a GGUF file that ships in an installed package."""


class TransformersChat(_Here, TransformersModel):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""


class LocalChat:
    """A decoder-only model of transformers as a chat model.

    Args:
        model: the loaded model.

    Raises:
        UsageError: when it is an encoder-decoder model.
    """

    def __init__(self, model: Summarizer) -> None:
        if model.form.kind != "causal":
            raise UsageError(
                "prepare.model: found an encoder-decoder model, which takes no system message; expected a decoder-only"
                " chat model"
            )
        self._model, self.hash, self.parameters, self.room = model, model.hash, model.form.parameters, model.room

    def _ids(self, turn: Turn) -> list[int]:
        if self._model.form.generation.chat:
            return self._model.encode(render_chat(self._model.tokenizer, turn.system, turn.said))
        return self._model.encode("\n\n".join(filter(None, turn)))

    def tokens(self, turn: Turn) -> int:
        return len(self._ids(turn)) + self._model.form.generation.max_new_tokens

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        return self._model.complete([self._ids(turn) for turn in turns])


def generation_of(system: str, *, chat: bool, max_new_tokens: int, rows: int) -> GenerationConfig:
    """Return the generation settings of a model folder; the task itself fills its prompt and checks the room."""
    return GenerationConfig(
        prompt=ARTICLE, system=system, chat=chat, context=16, max_new_tokens=max_new_tokens, rows=rows
    )
