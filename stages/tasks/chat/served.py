"""A chat model behind chat completions (`openai_chat`), with the interface of one with local weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stages.tasks.account import Account
from stages.tasks.chat.models import Chats, ChatSource, Turn
from stages.tasks.contract import Compute
from stages.tasks.openai_chat import ChatConfig, ChatEndpoint
from stages.tasks.summarization.form import Form, GenerationConfig, read_folder, save_form

# The model is identified by its answers to these: three questions that are in no data set.
KNOWN = (
    "The ferry to Harrow Bay leaves at ten past nine. When does the ferry leave?",
    "Name the larger of 4,071 and 4,107.",
    "Which of these is a fruit: spanner, quince, harbour?",
)


class OpenAIChat(ChatSource, ChatConfig):
    """{openai: BASE_URL, model: NAME, key_env: VARIABLE, ...}: a chat model behind OpenAI's API."""

    def errors(self, inputs: Path) -> list[str]:
        return []

    def origin(self, inputs: Path) -> str:
        return self.told

    def build(
        self,
        inputs: Path,
        out_dir: Path,
        generation: GenerationConfig,
        dtype: str = "float32",
        account: Account | None = None,
    ) -> None:
        """See LanguageModelSource.

        Raises:
            UsageError: also if all of its answers to plain questions are empty, or max_cost is reached.
            InfrastructureError: if the model cannot be reached.
        """
        endpoint = ChatEndpoint(self, account or Account())
        requests = [endpoint.request(generation.system, asked, generation.max_new_tokens) for asked in KNOWN]
        revision = endpoint.prepare(requests, out_dir, "questions")
        form = Form(kind="endpoint", generation=generation, origin=self.told, revision=revision, parameters=None)
        save_form(form, out_dir)

    def chat(self, folder: Path, compute: Compute, account: Account | None = None) -> Chats:
        """See ChatSource.

        Raises:
            UsageError: also if the model answers differently than when it was prepared, or max_cost is reached.
            InfrastructureError: if it cannot be reached.
        """
        form, prepared, content = read_folder(folder, None)
        endpoint = ChatEndpoint(self, account or Account())
        endpoint.check(prepared)
        return ServedChat(endpoint, form, content)


class ServedChat:
    """See `models.Chats`; only the server knows the length of its context, so `room` is None.

    Args:
        endpoint: the model.
        form: generation settings and origin.
        content: content hash of the folder it was read from.
    """

    def __init__(self, endpoint: ChatEndpoint, form: Form, content: str) -> None:
        self.endpoint, self.form, self.hash = endpoint, form, content
        self.parameters: int | None = None
        self.room: int | None = None

    def tokens(self, turn: Turn) -> int:
        return 0

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        """See Chats; recorded answers are reused."""
        most = self.form.generation.max_new_tokens
        answers = self.endpoint.answers([self.endpoint.request(turn.system, turn.said, most) for turn in turns])
        return [self.endpoint.text_of(answer, self.form.revision) for answer in answers]
