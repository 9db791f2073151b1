"""The file stored with a summarizer's weights: how the summarizer is queried, and where it comes from.

It is faded.json in the model folder; `prepare.generation` in params.yaml is its generation part.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from stages.core.errors import UsageError
from stages.core.files import content_hash, read_json, write_json
from stages.params import Strict, checked

FORM = "faded.json"
ADAPTER = "adapter_config.json"
CONFIG = "config.json"  # written by transformers beside the weights
ARTICLE = "{article}"
# The generation settings that are sent to a model behind HTTP, by the key of its block.
SENT: Mapping[str, frozenset[str]] = {
    "endpoint": frozenset({"max_new_tokens"}),
    "openai": frozenset({"max_new_tokens", "prompt", "system"}),
}

Kind = Literal["causal", "seq2seq", "endpoint"]


class GenerationConfig(Strict):
    """How a summary is generated.

    Of the model's own generation settings only the ids of special tokens are used, so that settings of a hub repository
    (such as sampling) cannot change the answers unnoticed.
    """

    prompt: str = Field(
        "Summarize this news article in one short sentence.\n\n{article}",
        description="decoder-only models: what the user says; {article} stands for the article",
    )
    system: str = Field(
        "You are a concise, accurate news summarizer.",
        description="decoder-only models: the system message; empty sends none",
    )
    chat: bool = Field(True, description="decoder-only models: false sends the prompt as it is, without chat template")
    prefix: str = Field("", description='encoder-decoder models: put before the article, e.g. "summarize: " for T5')
    context: int = Field(
        512, ge=16, le=1_000_000, description="tokens of the article that are kept; whole sentences from the front"
    )
    max_new_tokens: int = Field(
        64,
        ge=1,
        le=1_000_000,
        description="tokens of a summary at most; one that reaches them before a sentence ends counts as cut",
    )
    min_new_tokens: int = Field(0, ge=0, le=1_000_000, description="tokens of a summary at least")
    num_beams: int = Field(1, ge=1, le=1_000_000, description="1 is greedy search, more is beam search")
    length_penalty: float = Field(1.0, description="beam search: above 0 favours long summaries, below 0 short ones")
    no_repeat_ngram_size: int = Field(
        0, ge=0, le=1_000_000, description="n-grams of this many tokens occur once; 0 allows repetition"
    )
    repetition_penalty: float = Field(1.0, gt=0, description="above 1 discourages tokens that have occurred")
    rows: int = Field(
        16,
        ge=1,
        le=1_000_000,
        description="summaries generated at once: compute.batch_size probes, sorted by length, are split so",
    )

    @model_validator(mode="after")
    def _article_in_prompt(self) -> Self:
        if self.prompt.count(ARTICLE) != 1:
            raise ValueError(f"prompt: expected {ARTICLE} exactly once, found {self.prompt!r}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {self.max_new_tokens}")
        return self


class ModelForm(Strict):
    """faded.json: everything needed to query the model as in its audit."""

    kind: Kind
    generation: GenerationConfig
    origin: str = Field(description="where the weights come from, for people")
    revision: str = Field("", description="commit of the hub, or hash of the files the weights were read from")
    parameters: int | None = Field(ge=1, description="none where nobody sees the weights")
    normalise: tuple[str, ...] = Field(
        (), strict=False, description="changes made to every article before it is summarized"
    )
    base: str | None = Field(None, description="repairs: content hash of the model folder they belong to")


def save_form(form: ModelForm, folder: Path) -> None:
    """Write faded.json; the same form gives the same bytes."""
    write_json(folder / FORM, form.model_dump(mode="json"))


def load_form(folder: Path) -> ModelForm:
    """Read faded.json. Raises a UsageError when it is missing, unreadable or has unexpected content."""
    path = folder / FORM
    raw = read_json(path)
    raw.pop("schema", None)
    return checked(ModelForm, raw, str(path))


def model_hash(folder: Path) -> str:
    """Content hash of a model folder, whatever the folder is called; a repair names its base by it."""
    return content_hash(sorted(folder.iterdir()))


def read_folder(folder: Path, base: Path | None) -> tuple[ModelForm, Path, str]:
    """Read the form of a model folder, or of a repair, and check that a repair has the base it was made for.

    Raises a UsageError when a file is missing or damaged, or the repair was made for another model.

    Args:
        base: the model folder a repair belongs to.

    Returns:
        The form, the folder of the weights, and the content hash of both folders.
    """
    form = load_form(folder)
    if form.base is None:
        if (folder / ADAPTER).exists():
            raise UsageError(f"{folder} holds an adapter, and its {FORM} does not say for which model")
        return form, folder, model_hash(folder)
    if base is None:
        raise UsageError(f"{folder} is a repair of the model {form.base}: it needs that model's folder, none was given")
    content = model_hash(base)
    if form.base != content:
        raise UsageError(f"{folder} is a repair of the model {form.base}; {base} holds {content}")
    weights = folder if (folder / CONFIG).exists() else base
    return form, weights, content_hash(sorted(folder.iterdir()), content)
