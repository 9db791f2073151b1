"""Chat models, with local weights or behind chat completions: their loaders, and how they are queried.

Models with local weights are stored and queried as summarizers are: in the same folders, and in the same batches that
do not change an answer.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from stages.errors import UsageError
from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.language.form import ARTICLE, GenerationConfig, ModelForm, read_folder, save_form
from stages.tasks.language.generate import Summarizer, render_chat
from stages.tasks.language.models import LanguageModelSource, PackageModel, TransformersModel, WeightsModel
from stages.tasks.openai_chat import ChatConfig, ChatEndpoint

# A served model is identified by its answers to these: three questions that are in no data set.
KNOWN = (
    "The ferry to Harrow Bay leaves at ten past nine. When does the ferry leave?",
    "Name the larger of 4,071 and 4,107.",
    "Which of these is a fruit: spanner, quince, harbour?",
)


class Turn(NamedTuple):
    """The input of a model: the system message ("" for none) and the user's message."""

    system: str
    said: str


class Chats(Protocol):
    """A chat model as a task sees it, with local weights or served.

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
            UsageError: when a file is missing or damaged, or it is not a chat model, or not the one that was prepared.
            InfrastructureError: when a served model cannot be reached.
        """


class _Here(WeightsModel, ChatSource):
    """A model with local weights."""

    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        return LocalChat(self.load(folder, compute))


class PackageChat(_Here, PackageModel):
    """{package: NAME, file: X.gguf}: a GGUF file that ships in an installed package."""


class TransformersChat(_Here, TransformersModel):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""


class OpenAIChat(ChatSource, ChatConfig):
    """{openai: BASE_URL, model: NAME, key_env: VARIABLE, ...}: a chat model behind OpenAI's API."""

    known_are: ClassVar[str] = "questions"
    """What `known` asks, in the plural, for messages."""

    def known(self, generation: GenerationConfig) -> list[Turn]:
        """Return the inputs whose answers identify the model."""
        return [Turn(generation.system, question) for question in KNOWN]

    def errors(self, inputs: Path) -> list[str]:
        return []

    def origin(self, inputs: Path) -> str:
        return self.told

    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        endpoint, turns = ChatEndpoint(self, account), self.known(generation)
        requests = [endpoint.request(turn.system, turn.said, generation.max_new_tokens) for turn in turns]
        revision = endpoint.prepare(requests, out_dir, self.known_are)
        form = ModelForm(kind="endpoint", generation=generation, origin=self.told, revision=revision, parameters=None)
        save_form(form, out_dir)

    def opened(self, folder: Path, base: Path | None, account: Account | None) -> tuple[ChatEndpoint, ModelForm, str]:
        """Return the endpoint, the form and the content hash of a folder, once the model is known to be the same."""
        form, prepared, content = read_folder(folder, base)
        endpoint = ChatEndpoint(self, account or Account())
        endpoint.check(prepared)
        return endpoint, form, content

    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """See ChatSource; recorded answers, which may be paid, are not requested again."""
        return ServedChat(*self.opened(folder, None, account))


CHAT_LOADERS: Mapping[str, type[ChatSource]] = {
    "package": PackageChat,
    "transformers": TransformersChat,
    "openai": OpenAIChat,
}


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


class ServedChat:
    """A chat model behind chat completions; only the server knows the length of its context, so `room` is None.

    Args:
        endpoint: the model.
        form: generation settings and origin.
        content: content hash of the folder it was read from.
    """

    def __init__(self, endpoint: ChatEndpoint, form: ModelForm, content: str) -> None:
        self.endpoint, self.form, self.hash = endpoint, form, content
        self.parameters: int | None = None
        self.room: int | None = None

    def tokens(self, turn: Turn) -> int:
        return 0

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        most = self.form.generation.max_new_tokens
        answers = self.endpoint.answers([self.endpoint.request(turn.system, turn.said, most) for turn in turns])
        return [self.endpoint.text_of(answer, self.form.revision) for answer in answers]


def generation_of(system: str, *, chat: bool = True, max_new_tokens: int, rows: int) -> GenerationConfig:
    """Return the generation settings of a model folder; the task itself fills its prompt and checks the room."""
    return GenerationConfig(
        prompt=ARTICLE, system=system, chat=chat, context=16, max_new_tokens=max_new_tokens, rows=rows
    )
