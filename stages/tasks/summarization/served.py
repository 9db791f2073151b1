"""A summarizer behind chat completions (`openai_chat`), prompted as `prepare.generation` defines.

As with any model behind HTTP, its weights are not accessible. It can be searched, and repaired by changing articles
before they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.openai_chat import ChatConfig, ChatEndpoint
from stages.tasks.summarization.form import ARTICLE, Form, GenerationConfig, read_folder, save_form
from stages.tasks.summarization.generate import with_normalisations
from stages.tasks.summarization.remote import KNOWN, RemoteModel, RemoteSummarizer


class OpenAIModel(RemoteModel, ChatConfig):
    """{openai: BASE_URL, model: NAME, key_env: VARIABLE, ...}: a chat model behind OpenAI's API."""

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
            UsageError: also if all of its answers to plain articles are empty, or max_cost is reached.
            InfrastructureError: if the model cannot be reached.
        """
        endpoint = ChatEndpoint(self, account or Account())
        form = Form(kind="endpoint", generation=generation, origin=self.told, parameters=None)
        asked = ChatSummarizer(endpoint, form, Compute(), "")
        revision = endpoint.prepare([asked.inputs(article) for article in KNOWN], out_dir, "articles")
        save_form(form.model_copy(update={"revision": revision}), out_dir)

    def origin(self, inputs: Path) -> str:
        return self.told

    def load(
        self, folder: Path, compute: Compute, base: Path | None = None, account: Account | None = None
    ) -> RemoteSummarizer:
        """See ModelSource.

        Raises:
            UsageError: also if the model answers differently than when it was prepared, or max_cost is reached.
            InfrastructureError: if it cannot be reached.
        """
        form, prepared, content = read_folder(folder, base)
        endpoint = ChatEndpoint(self, account or Account())
        endpoint.check(prepared)
        return ChatSummarizer(endpoint, form, compute, content, with_normalisations(form))


class ChatSummarizer(RemoteSummarizer):
    """See `generate.Summarizes`.

    Args:
        endpoint: the model.
        form: generation settings and origin.
        compute: batch size of the task; the endpoint sends one article per request.
        content: content hash of the folders it was read from.
        preprocess: applied to every article before it is sent.
    """

    endpoint: ChatEndpoint

    def __init__(
        self,
        endpoint: ChatEndpoint,
        form: Form,
        compute: Compute,
        content: str,
        preprocess: Callable[[str], str] | None = None,
    ) -> None:
        super().__init__(endpoint, {}, form, compute, content, preprocess)

    def inputs(self, article: str) -> dict[str, Any]:
        """See Summarizes: the posted object."""
        text, asked = self.preprocess(article) if self.preprocess else article, self.form.generation
        return self.endpoint.request(asked.system, asked.prompt.replace(ARTICLE, text), asked.max_new_tokens)

    def ask(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """See RemoteSummarizer; recorded answers are reused."""
        return self.endpoint.answers(inputs)

    def summary(self, answer: dict[str, Any]) -> str:
        """See RemoteSummarizer.

        Raises:
            UsageError: if the model reports another name than when it was prepared.
        """
        return self.endpoint.text_of(answer, self.form.revision)

    def unfinished(self, summary: str) -> bool:
        """See Summarizes: by the finish reason that the server reported."""
        return self.endpoint.account.was_cut(summary)
