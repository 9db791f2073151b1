"""A summarizer: articles in, summaries out, in batches that do not change the answers.

It uses greedy or beam search with transformers' `generate`. Articles are sorted by length, and identical prompts are
generated once, which saves padding and repetition.

A summary depends on its article alone, to the last bit of the scores of every step. On a CPU the sums of a row depend
on shapes, but not on the contents of other rows, nor on their number if there are at least two; a single row uses other
kernels, so it is duplicated. Prompts are padded to a multiple of STRIDE tokens, and share a batch only with prompts of
the same padded length. This holds for `stages.core.arithmetic`, in float32; MKL's own choice of kernels depends on the
number of rows, and so does that of GPUs, so nothing is guaranteed there.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from stages.concepts.texts.document import sentences
from stages.core.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.language.form import ARTICLE, ModelForm
from stages.tasks.language.normalise import normaliser

STRIDE = 32  # tokens
IGNORED = -100  # a label that the losses of torch and transformers ignore


class Turn(NamedTuple):
    """The input of a model: the system message ("" for none) and the user's message."""

    system: str
    said: str


class Chats(Protocol):
    """A chat model as a task sees it, with local weights or served; `hash` as for `Summarizes`."""

    hash: str

    @property
    def parameters(self) -> int | None:
        """Its size, if known."""

    @property
    def room(self) -> int | None:
        """Number of tokens that question and answer may have together; None if unknown or unlimited."""

    def tokens(self, turn: Turn) -> int:
        """Return how many tokens of the room a question and its longest answer take; 0 if unknown."""

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        """Return answers to n questions, without surrounding white space; each depends on its question alone."""


class Summarizes(Protocol):
    """A summarizer as the task sees it, with local weights or served.

    `form` describes how it is queried; `hash` identifies the model by the content of the folders it was read from.
    """

    form: ModelForm
    compute: Compute
    hash: str

    def inputs(self, article: str) -> object:
        """Return the model's input for an article: equal if it cannot distinguish two articles."""

    def summarize(self, articles: Sequence[str]) -> list[str]:
        """Return summaries of n articles, without surrounding white space; each depends on its article alone."""

    def unfinished(self, summary: str) -> bool:
        """Whether a summary was ended by the length limit and not by the model."""


class LanguageModel:
    """A language model and its generation settings.

    Raises a UsageError when the model cannot be queried as the form says: no chat template, or too small a context.

    Args:
        model: a transformers model with `generate`, on its device.
        content: content hash of the folders the model was read from.
        preprocess: applied to every article before it is summarized.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        form: ModelForm,
        compute: Compute,
        content: str,
        preprocess: Callable[[str], str] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.form = form
        self.compute = compute
        self.hash = content
        self.preprocess = preprocess
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._check_room()
        model.generation_config = _special_tokens(model, tokenizer)

    def _check_room(self) -> None:
        asked, causal = self.form.generation, self.form.kind == "causal"
        frame = len(self.encode(self.prompt("")))
        if room := _room(self.model.config, "decoder" if causal else "encoder"):
            # Decoder-only models count positions without the padding, encoders with it.
            most = room - frame - asked.max_new_tokens if causal else room // STRIDE * STRIDE - frame
            if asked.context > most:
                raise UsageError(
                    f"prepare.generation.context: {asked.context} tokens of the article and {frame} around them"
                    f"{f', with a summary of {asked.max_new_tokens},' if causal else ''} do not fit; the model has room"
                    f" for {room}: at most {max(most, 0)}"
                )
        said = None if causal else _room(self.model.config, "decoder")
        if said and asked.max_new_tokens >= said:  # one position is taken by the token that starts a summary
            raise UsageError(
                f"prepare.generation.max_new_tokens: {asked.max_new_tokens}; the decoder has room for {said}: at most"
                f" {said - 1}"
            )

    def prompt(self, article: str) -> str:
        """Return the prompt for an article that fits.

        Raises a UsageError when the model's chat template is missing or refuses these messages.
        """
        return render_prompt(self.tokenizer, self.form, article)

    @property
    def room(self) -> int | None:
        """Positions for prompt and answer of a decoder-only model; None if unlimited."""
        return _room(self.model.config, "decoder")

    def encode(self, prompt: str) -> list[int]:
        # A chat template writes the special tokens itself.
        own = self.form.kind == "causal" and self.form.generation.chat
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=not own)["input_ids"]
        return ids

    def fit(self, article: str) -> tuple[str, bool]:
        """Cut an article to `context` tokens, keeping as many whole sentences from the start as fit.

        If not even the first sentence fits, as much of it is kept as fits.

        Returns:
            The article, and whether it was cut.
        """
        context = self.form.generation.context
        if self._tokens(article) <= context:
            return article, False
        for ends in (list(_sentence_ends(article)), range(len(article) + 1)):
            kept = bisect.bisect_right(ends, context, key=lambda end: self._tokens(article[:end]))
            if kept:
                return article[: ends[kept - 1]].rstrip(), True
        return "", True

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def inputs(self, article: str) -> list[int]:
        """Return the token ids for an article, normalised, cut and put into the prompt."""
        text = self.preprocess(article) if self.preprocess else article
        return self.encode(self.prompt(self.fit(text)[0]))

    def summarize(
        self, articles: Sequence[str], *, samples: int = 1, temperature: float | None = None, seed: int = 0
    ) -> list[str]:
        """Summarize n articles.

        Args:
            articles: n articles; those longer than the context are cut, see `fit`.
            samples: summaries drawn per article.
            temperature: draw from softmax(logits / temperature); None takes the likeliest words.
            seed: seed of the draws, which do depend on the other articles of the call.

        Returns:
            n * samples summaries without surrounding white space, grouped by article.
        """
        if samples < 1 or (samples > 1 and temperature is None):
            raise ValueError(f"expected one sample, or several with a temperature; found {samples} and {temperature}")
        return self.complete([self.inputs(a) for a in articles], samples=samples, temperature=temperature, seed=seed)

    def complete(
        self, rows: Sequence[Sequence[int]], *, samples: int = 1, temperature: float | None = None, seed: int = 0
    ) -> list[str]:
        """Answer n prompts, given as token ids; see `summarize`."""
        prompts = [tuple(row) for row in rows]
        settings = _settings(self.form, samples, temperature)
        answers: dict[tuple[int, ...], list[str]] = {}
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            for batch in self._batches(prompts):
                texts = self._answer(batch, settings)
                answers.update((ids, texts[i * samples : (i + 1) * samples]) for i, ids in enumerate(batch))
        return [text for ids in prompts for text in answers[ids]]

    def _batches(self, prompts: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """Yield every distinct prompt once, with others of its padded length, short ones first."""
        asked = self.form.generation
        size = min(asked.rows, self.compute.batch_size)
        unique = sorted(set(prompts), key=lambda ids: (len(ids), ids))
        for _, alike in groupby(unique, key=lambda ids: _padded(len(ids))):
            rows = list(alike)
            yield from (rows[start : start + size] for start in range(0, len(rows), size))

    def _answer(self, batch: Sequence[Sequence[int]], settings: Any) -> list[str]:
        causal = self.form.kind == "causal"
        rows = batch if len(batch) > 1 else [*batch, *batch]
        width = _padded(max(map(len, rows)))
        ids, mask = _pad(rows, self.tokenizer.pad_token_id, width, left=causal)
        out = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            generation_config=settings,
        )
        texts = self.tokenizer.batch_decode(out[:, width:] if causal else out, skip_special_tokens=True)
        return [text.strip() for text in texts]

    # As a chat model

    @property
    def parameters(self) -> int | None:
        return self.form.parameters

    def tokens(self, turn: Turn) -> int:
        return len(self._turn_ids(turn)) + self.form.generation.max_new_tokens

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        return self.complete([self._turn_ids(turn) for turn in turns])

    def _turn_ids(self, turn: Turn) -> list[int]:
        chat = self.form.generation.chat
        return self.encode(render_chat(self.tokenizer, *turn) if chat else "\n\n".join(filter(None, turn)))

    # As a summarizer

    def unfinished(self, summary: str) -> bool:
        """See Summarizes; one token less than the limit counts too, as the last may have been white space."""
        return self._tokens(summary) >= self.form.generation.max_new_tokens - 1

    def training_batch(self, articles: Sequence[str], summaries: Sequence[str]) -> dict[str, Tensor]:
        """Return the inputs of a training step, on the model's device, padded on the right.

        Returns:
            input_ids and attention_mask, (n, tokens) int64, and labels: (n, tokens) for decoder-only models, where
            prompt and padding are -100, (n, tokens of the summary) for encoder-decoder models. A summary ends with the
            end-of-sequence token, so that the model learns to stop.
        """
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        prompts = [self.inputs(article) for article in articles]
        causal = self.form.kind == "causal"
        said = self.tokenizer(text_target=list(summaries), add_special_tokens=not causal)["input_ids"]
        targets = [ids if ids[-1:] == [end] else [*ids, end] for ids in said]
        if causal:
            rows = [[*p, *t] for p, t in zip(prompts, targets, strict=True)]
            labels = [[IGNORED] * len(p) + t for p, t in zip(prompts, targets, strict=True)]
        else:
            rows, labels = prompts, targets
        ids, mask = _pad(rows, pad)
        tensors = {"input_ids": ids, "attention_mask": mask, "labels": _pad(labels, IGNORED)[0]}
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}


def with_weights(summarizer: Summarizes) -> LanguageModel:
    """Return the summarizer if its weights can be trained. Raises a UsageError when it has no local weights."""
    if not isinstance(summarizer, LanguageModel):
        raise UsageError(
            f"restructure.method: training needs weights, and {summarizer.form.origin} shows none; use normalise"
        )
    return summarizer


def greedy(form: ModelForm) -> dict[str, Any]:
    """Return the arguments of `generate` of transformers for the likeliest words."""
    asked = form.generation
    return {
        "do_sample": False,
        "num_beams": asked.num_beams,
        "early_stopping": asked.num_beams > 1,
        "length_penalty": asked.length_penalty,
        "max_new_tokens": asked.max_new_tokens,
        "min_new_tokens": asked.min_new_tokens or None,
        "no_repeat_ngram_size": asked.no_repeat_ngram_size,
        "repetition_penalty": asked.repetition_penalty,
    }


def with_normalisations(form: ModelForm) -> Callable[[str], str] | None:
    """Return what is applied to every article before the model reads it; None if nothing is."""
    return normaliser(form.normalise) if form.normalise else None


def render_prompt(tokenizer: Any, form: ModelForm, article: str) -> str:
    """Put an article into the prompt.

    Raises a UsageError when the model's chat template is missing or refuses these messages.
    """
    asked = form.generation
    if form.kind == "seq2seq":
        return asked.prefix + article
    said = asked.prompt.replace(ARTICLE, article)
    return render_chat(tokenizer, asked.system, said) if asked.chat else said


def render_chat(tokenizer: Any, system: str, said: str) -> str:
    """Put the user's message, and the system message unless it is empty, into the chat template.

    Raises a UsageError when the model's chat template is missing or refuses these messages.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "prepare.model: the tokenizer has no chat template, so it is unknown how the model expects to be asked;"
            " take the -instruct or -chat variant, or set prepare.generation.chat: false to send the prompt as it is"
        )
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": said})
    try:
        # Reasoning models would spend the tokens of the summary on thinking; other templates ignore the flag.
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except TemplateError as error:
        raise UsageError(
            f"prepare.model: its chat template refuses the prompt: {error}; if it knows no system message, set"
            ' system: ""'
        ) from None
    return text


def _sentence_ends(text: str) -> Iterator[int]:
    at = 0
    for sentence in sentences(text):
        at = text.index(sentence, at) + len(sentence)
        yield at


def _pad(rows: Sequence[Sequence[int]], value: int, width: int = 0, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to (n, tokens) int64 of at least `width`, and return the mask of what is not padding."""
    width = max(width, *map(len, rows))
    ids = torch.full((len(rows), width), value)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(len(row))
        ids[i, at] = torch.tensor(row, dtype=torch.int64)
        mask[i, at] = 1
    return ids, mask


def _room(config: Any, part: Literal["encoder", "decoder"]) -> int | None:
    """Positions of a part of a model; None if they are relative and unlimited, as in T5."""
    own = getattr(config, part, None)  # if each part has its own config, as in EncoderDecoderConfig
    text = (config if own is None else own).get_text_config()
    room: int | None = getattr(text, f"max_{part}_position_embeddings", None)  # LED
    return room or getattr(text, "max_position_embeddings", None)


def _padded(length: int) -> int:
    return max(1, -(-length // STRIDE)) * STRIDE


def _settings(form: ModelForm, samples: int, temperature: float | None) -> Any:
    """Return the GenerationConfig of transformers for one call; ids of special tokens come from the model's own."""
    from transformers import GenerationConfig

    settings = greedy(form)
    if temperature is not None:
        settings |= {"do_sample": True, "temperature": temperature, "num_beams": 1, "early_stopping": False}
        settings["top_k"] = 0  # otherwise transformers draws from the 50 likeliest
    return GenerationConfig(num_return_sequences=samples, **settings)


def _special_tokens(model: Any, tokenizer: Any) -> Any:
    """Reduce the model's GenerationConfig to special tokens: `generate` takes from it what a call leaves open."""
    from transformers import GenerationConfig

    own = model.generation_config
    ids = ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
    special = {name: getattr(own, name, None) for name in ids}
    if special["eos_token_id"] is None:
        special["eos_token_id"] = tokenizer.eos_token_id
    return GenerationConfig(**special, pad_token_id=tokenizer.pad_token_id)
