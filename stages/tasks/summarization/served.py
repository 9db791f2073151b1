"""Summarizers behind HTTP, and the loaders of all summarizers. To add a loader, add its key to MODEL_LOADERS.

    {"text": ARTICLE, "max_new_tokens": 64, ...settings}  ->  {"summary": SUMMARY}

Such a service chooses the prompt; one behind chat completions (`openai_chat`) is prompted as `prepare.generation`
defines. The weights of neither are accessible: they can be searched, and repaired by changing articles before they are
sent.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from stages.core.errors import UsageError
from stages.tasks.account import Account
from stages.tasks.contract import Compute
from stages.tasks.endpoint import Endpoint, EndpointConfig
from stages.tasks.known_answers import check_answers, keep_answers
from stages.tasks.language.chats import OpenAIChat
from stages.tasks.language.form import ARTICLE, SENT, GenerationConfig, ModelForm, read_folder, save_form
from stages.tasks.language.generate import Turn, with_normalisations
from stages.tasks.language.models import PackageModel, SummarizerSource, TransformersModel
from stages.tasks.openai_chat import ChatEndpoint

# The model is identified by its answers to these: three articles that are in no data set.
KNOWN = (
    "The town council of Harrow Bay voted on Tuesday to close the old ferry pier. Repairs would have cost two million"
    " dollars, the mayor said. Fishermen who use the pier had asked for another year.",
    "A storm cut the power of 4,000 homes in the north on Friday night. Crews restored most lines by noon. Nobody was"
    " hurt, but two schools stay closed until Monday.",
    "Researchers have found a beetle on an island where it was thought to have died out in 1931. They counted eleven of"
    " them under one fallen tree. The tree will stay where it is.",
)


class RemoteModel(SummarizerSource):
    """Base of the loaders of models behind HTTP: no files are local, and no weights can be trained."""

    def errors(self, inputs: Path) -> list[str]:
        return []

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        if settings.get("method") == "normalise":
            return []
        return [
            f"restructure.method: {settings.get('method')} trains weights, and models behind HTTP have none to train;"
            f" use method normalise, which changes the model's input, or remove {audit} from repairs:"
        ]


class EndpointSummarizer(RemoteModel, EndpointConfig):
    """{endpoint: URL, key_env: VARIABLE, settings: {...}}: a summarizer behind HTTP."""

    settings: dict[str, Any] = Field({}, description="sent with every article as they are, {temperature: 0} say")

    @field_validator("settings")
    @classmethod
    def _leave_the_article_alone(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({"text", *SENT["endpoint"]} & settings.keys()):
            raise ValueError(f"{', '.join(taken)} is set by Faded (max_new_tokens is prepare.generation's)")
        return settings

    def write(self, inputs: Path, out_dir: Path, generation: GenerationConfig, dtype: str, account: Account) -> None:
        endpoint = Endpoint(self)
        form = ModelForm(kind="endpoint", generation=generation, origin=endpoint.name, parameters=None)
        model = RemoteSummarizer(endpoint, form, Compute(), "", settings=self.settings)
        model.summarize(KNOWN)  # check that answers are summaries before any is stored
        keep_answers(endpoint, [model.inputs(article) for article in KNOWN], out_dir)
        save_form(form, out_dir)

    def origin(self, inputs: Path) -> str:
        return self.told

    def load(
        self, folder: Path, compute: Compute, base: Path | None = None, account: Account | None = None
    ) -> "RemoteSummarizer":
        """See SummarizerSource.

        Raises a UsageError, also if the model answers differently than when it was prepared; an InfrastructureError if
        it cannot be reached.
        """
        form, prepared, content = read_folder(folder, base)
        endpoint = Endpoint(self)
        check_answers(endpoint, prepared)
        return RemoteSummarizer(endpoint, form, compute, content, with_normalisations(form), self.settings)


class OpenAISummarizer(RemoteModel, OpenAIChat):
    """{openai: BASE_URL, model: NAME, key_env: VARIABLE, ...}: a chat model behind OpenAI's API."""

    known_are: ClassVar[str] = "articles"

    def known(self, generation: GenerationConfig) -> list[Turn]:
        return [prompt_for(article, generation) for article in KNOWN]

    def load(
        self, folder: Path, compute: Compute, base: Path | None = None, account: Account | None = None
    ) -> "RemoteSummarizer":
        """See SummarizerSource.

        Raises a UsageError, also if the model answers differently than when it was prepared, or max_cost is reached; an
        InfrastructureError if it cannot be reached.
        """
        endpoint, form, content = self.opened(folder, base, account)
        return ChatSummarizer(endpoint, form, compute, content, with_normalisations(form))


MODEL_LOADERS: Mapping[str, type[SummarizerSource]] = {
    "package": PackageModel,
    "transformers": TransformersModel,
    "endpoint": EndpointSummarizer,
    "openai": OpenAISummarizer,
}


class RemoteSummarizer:
    """See `generate.Summarizes`.

    Args:
        compute: batch size of the task; the endpoint has its own.
        content: content hash of the folders it was read from.
        preprocess: applied to every article before it is sent.
        settings: sent with every article.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        form: ModelForm,
        compute: Compute,
        content: str,
        preprocess: Callable[[str], str] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.endpoint, self.form, self.compute, self.hash = endpoint, form, compute, content
        self.preprocess, self.settings = preprocess, settings or {}

    def text(self, article: str) -> str:
        return self.preprocess(article) if self.preprocess else article

    def inputs(self, article: str) -> dict[str, Any]:
        sent = self.form.generation.model_dump(include=set(SENT["endpoint"]))
        return {**self.settings, "text": self.text(article), **sent}

    def summarize(self, articles: Sequence[str]) -> list[str]:
        """See Summarizes; repeated articles are sent once.

        Raises a UsageError if an answer is not a summary, and an InfrastructureError if the model cannot be reached.
        """
        unique = {article: self.inputs(article) for article in articles}
        answers = self.ask(list(unique.values()))
        found = dict(zip(unique, map(self.summary, answers), strict=True))
        return [found[article] for article in articles]

    def ask(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.endpoint.ask(inputs)

    def summary(self, answer: dict[str, Any]) -> str:
        """Return the summary in an answer. Raises a UsageError if there is none."""
        summary = answer.get("summary")
        if not isinstance(summary, str):
            keys = self.endpoint.quoted(", ".join(answer)) or "none"
            raise UsageError(f'{self.endpoint.name}: expected {{"summary": TEXT}}, found the keys {keys}')
        return summary.encode(errors="replace").decode().strip()  # unpaired surrogates cannot be encoded

    def unfinished(self, summary: str) -> bool:
        """See Summarizes; unknown here."""
        return False


class ChatSummarizer(RemoteSummarizer):
    """A summarizer behind chat completions, which takes one article per request; recorded answers are reused."""

    endpoint: ChatEndpoint

    def inputs(self, article: str) -> dict[str, Any]:
        generation = self.form.generation
        return self.endpoint.request(*prompt_for(self.text(article), generation), generation.max_new_tokens)

    def ask(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.endpoint.answers(inputs)

    def summary(self, answer: dict[str, Any]) -> str:
        return self.endpoint.text_of(answer, self.form.revision)

    def unfinished(self, summary: str) -> bool:
        """See Summarizes: by the finish reason that the server reported."""
        return self.endpoint.account.was_cut(summary)


def prompt_for(article: str, generation: GenerationConfig) -> Turn:
    """Put an article into the messages of a chat."""
    return Turn(generation.system, generation.prompt.replace(ARTICLE, article))
