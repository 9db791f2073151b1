"""Where a chat model comes from, and how it is asked. To add a way, add its key to the task's loaders.

Models whose weights are here are read, kept and asked as those of summaries are: the same folders, the same batches
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
    """What a model is asked: the system message, "" for none, and what the user says."""

    system: str
    said: str


class Chats(Protocol):
    """A chat model as the task asks it, whether its weights are here or not.

    `hash` says which model it is, `parameters` how large, where that is known. `room` is how many tokens question and
    answer may have together; None where nobody says.
    """

    hash: str
    parameters: int | None
    room: int | None

    def tokens(self, turn: Turn) -> int:
        """How many tokens of the room a question takes, with the answer it may have; 0 where nobody says."""
        ...

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        """Answers to n questions, without white space around them; each depends on its question alone."""
        ...


class ChatSource(LanguageModelSource):
    """Base of the loaders of chat models, which are built as `generation_of` says."""

    @abstractmethod
    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """Read a model folder that `build` wrote; the account is the same as for `build`.

        Raises:
            UsageError: when a file is missing or damaged, or it is no chat model.
        """


class _Here(WeightsModel, ChatSource):
    """A model whose weights are here."""

    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """See ChatSource."""
        return LocalChat(self.load(folder, compute))


class PackageChat(_Here, PackageModel):
    """{package: NAME, file: X.gguf}: a GGUF file that ships in an installed package."""


class TransformersChat(_Here, TransformersModel):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""


class LocalChat:
    """A decoder-only model of transformers as a chat model.

    Args:
        model: as it was loaded.

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
        """See Chats."""
        return len(self._ids(turn)) + self._model.form.generation.max_new_tokens

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        """See Chats."""
        return self._model.complete([self._ids(turn) for turn in turns])


def generation_of(system: str, *, chat: bool, max_new_tokens: int, rows: int) -> GenerationConfig:
    """How answers are generated, as a model folder keeps it; the task itself fills its prompt and sees to the room."""
    return GenerationConfig(
        prompt=ARTICLE, system=system, chat=chat, context=16, max_new_tokens=max_new_tokens, rows=rows
    )
