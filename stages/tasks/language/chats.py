"""Chat models behind chat completions, and the loaders of all chat models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.language.form import ARTICLE, GenerationConfig, ModelForm, read_folder, save_form
from stages.tasks.language.generate import Chats, Turn
from stages.tasks.language.models import ChatSource, PackageModel, TransformersModel
from stages.tasks.openai_chat import ChatConfig, ChatEndpoint

# A served model is identified by its answers to these: three questions that are in no data set.
KNOWN = (
    "The ferry to Harrow Bay leaves at ten past nine. When does the ferry leave?",
    "Name the larger of 4,071 and 4,107.",
    "Which of these is a fruit: spanner, quince, harbour?",
)


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
    "package": PackageModel,
    "transformers": TransformersModel,
    "openai": OpenAIChat,
}


class ServedChat:
    """A chat model behind chat completions, of which only the server knows its size and the length of its context.

    Args:
        content: content hash of the folder it was read from.
    """

    parameters = room = None

    def __init__(self, endpoint: ChatEndpoint, form: ModelForm, content: str) -> None:
        self.endpoint, self.form, self.hash = endpoint, form, content

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
