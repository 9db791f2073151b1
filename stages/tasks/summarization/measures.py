"""Automatic measures of a summary: sentence embeddings, shared words, claims, and unusable outputs.

Similarity of embeddings shows whether a summary is about the article, but hardly notices a swapped name or a wrong
number, so what the article does not support is measured separately (see `support`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from stages.concepts.texts import sentences
from stages.files import local_file
from stages.tasks.source import collect
from stages.tasks.sources import package_folder
from stages.tasks.summarization import support
from stages.tasks.summarization.encoders import EncoderSource, TransformersEncoder, read_encoder

WHERE = "prepare.embedder"
WINDOW = 256  # tokens MiniLM was trained to embed at once
LEAD = 50  # words from the front that count as an article's lead


class EmbedderSource(EncoderSource):
    """Base of the loaders of sentence encoders."""

    where = WHERE

    def load(self, inputs: Path, device: str) -> Embedder:
        """Load the encoder; the models of one process share it and its embeddings."""
        return _shared(self.whole(self.folder(inputs)[0]), device)


class PackageEmbedder(EmbedderSource):
    """{package: NAME, subfolder: FOLDER}: an encoder that ships in an installed package."""

    package: str = Field(pattern=r"^\w+$")
    subfolder: str = Field("model", description="where in the package it lies")

    def folder(self, inputs: Path) -> tuple[Path, str]:
        return package_folder(inputs, self.package, WHERE) / self.subfolder, f"the package {self.package}"


class TransformersEmbedder(TransformersEncoder, EmbedderSource):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or an encoder of the hub."""

    def errors(self, inputs: Path) -> list[str]:
        """See EncoderSource. Sentence encoders of the hub have an organisation; any other name is a folder's."""
        if "/" in self.transformers:
            return super().errors(inputs)
        return collect(lambda: self.whole(local_file(inputs, self.transformers, f"{WHERE}.transformers")))


EMBEDDER_LOADERS: Mapping[str, type[EmbedderSource]] = {
    "package": PackageEmbedder,
    "transformers": TransformersEmbedder,
}


class Embedder:
    """A sentence encoder: mean of the last hidden states, normalised (Reimers and Gurevych 2019, section 3).

    Texts longer than the encoder's window are embedded window by window, and the mean is over all their tokens. Each
    text is embedded once, and alone: in a batch its last bits would depend on the other texts, and a probe whose
    discrepancy equals the threshold would fail in one batch and pass in another.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModel

        self._tokenizer, model = read_encoder(folder, AutoModel, WHERE, unused=("pooler.",))
        self._model, self._device = model.to(device), device
        self._window = min(WINDOW, self._tokenizer.model_max_length, model.config.max_position_embeddings)
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embed n texts: (n, d) float32 of length 1; a text without any word is 0, similar to nothing."""
        return np.stack([self._vector(text) for text in texts])

    def cosine(self, one: str, other: str) -> float:
        """Cosine similarity of two texts, in [-1, 1]."""
        return float(np.clip(self._vector(one) @ self._vector(other), -1, 1))

    def _vector(self, text: str) -> np.ndarray:
        if text not in self._known:
            self._known[text] = self._embed(text)
        return self._known[text]

    @torch.inference_mode()
    def _embed(self, text: str) -> np.ndarray:
        total = torch.zeros(self._model.config.hidden_size, device=self._device)
        if not re.search(r"\w", text):
            return total.cpu().numpy()
        windows = self._tokenizer(text, truncation=True, max_length=self._window, return_overflowing_tokens=True)
        for ids in windows["input_ids"]:
            total += self._model(input_ids=torch.tensor([ids], device=self._device)).last_hidden_state[0].sum(0)
        return (total / total.norm()).cpu().numpy()


@cache
def _shared(folder: Path, device: str) -> Embedder:
    return Embedder(folder, device)


# Unusable summaries


def degenerate(summary: str, unfinished: bool = False) -> str:
    """Return why nobody could use an output as a summary; "" if it can be used.

    Args:
        summary: the output.
        unfinished: whether the limit on tokens ended it. This counts only if no sentence was finished before: a text
            that is cut after a whole sentence can still be read.

    Returns:
        "" or "empty", "too short", "refuses", "repeats itself", "cut before the end of a sentence".
    """
    text = summary.strip().lower().replace("\u2019", "'")  # the typographic apostrophe
    words = re.findall(r"\w+(?:'\w+)*", text)
    if not words:
        return "empty"
    if len(words) < 3:
        return "too short"
    if _REFUSAL.match(text):
        return "refuses"
    runs = list(zip(words, words[1:], words[2:], strict=False))
    stutters = any(len(set(words[i : i + 4])) == 1 for i in range(len(words) - 3))
    if stutters or len(set(runs)) < DISTINCT * len(runs):
        return "repeats itself"
    if unfinished and len(sentences(summary)) == 1 and not _SENTENCE_END.search(summary):
        return "cut before the end of a sentence"
    return ""


DISTINCT = 0.7  # share of different runs of three words: 317 of 320 news summaries have at least .79, 3 at most .56
_SENTENCE_END = re.compile(r"[.!?…]\W*$")
_REFUSAL = re.compile(
    r"(i'm sorry|i am sorry|sorry,|i apologi[sz]e|as an ai\b|(i'm|i am) an ai\b"
    r"|i (cannot|can't|do not have|don't have|am unable to|am not able to)\b)"
)


# Measures of one summary


def rouge_l(summary: str, other: str) -> float:
    """ROUGE-L F1 of two texts, in [0, 1] (Lin 2004, section 3; with Porter's stemmer)."""
    return float(_rouge().score(other, summary)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def bleu(summary: str, reference: str) -> float:
    """BLEU of one sentence with exponential smoothing (sacreBLEU's default), in [0, 1]."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(summary, [reference]).score) / 100


def copied_from_lead(summary: str, article: str) -> float:
    """Share of the summary's runs of three words that occur in the article's first `LEAD` words; nan if it has none."""
    runs, lead = _runs(summary), _runs(" ".join(article.split()[:LEAD]))
    return float(np.mean([run in lead for run in runs])) if runs else np.nan


def _runs(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return list(zip(words, words[1:], words[2:], strict=False))


def unsupported_names(summary: str, article: str) -> float:
    """Share of the summary's names and numbers that are not in the article; nan if it has none.

    Names are words with a capital that do not begin a sentence; a summary without lower-case letters has none.
    """
    if not any(c.islower() for c in summary):
        return np.nan
    inside = {word.lower() for word in _words(article)}
    found = [
        word
        for sentence in re.split(r"(?<=[.!?])\s+", summary)
        for place, word in enumerate(_words(sentence))
        if any(c.isdigit() for c in word) or (place > 0 and word[0].isupper())
    ]
    return float(np.mean([word.lower() not in inside for word in found])) if found else np.nan


def _words(text: str) -> list[str]:
    """Words and numbers as written ("10,000", "4:00pm"); an apostrophe ends a word."""
    return re.findall(r"[^\W_]+(?:[.,:-][^\W_]+)*", text)


# Discrepancies

Unsupported = Callable[[str, str], float]


@dataclass(frozen=True)
class Case:
    """One answer with everything it can be judged by.

    Args:
        article: the original article.
        clean: its summary by the model under test.
        summary: the summary to judge.
        reference: what a person wrote; "" for none.
        unsupported: (summary, article) -> how likely it is that the former says what the latter does not, in [0, 1].
    """

    article: str
    clean: str
    summary: str
    reference: str = ""
    unsupported: Unsupported = support.unsupported


def _faithfulness_loss(case: Case, embedder: Embedder) -> float:
    return embedder.cosine(case.clean, case.article) - embedder.cosine(case.summary, case.article)


def _unfaithfulness(case: Case, embedder: Embedder) -> float:
    return 1 - embedder.cosine(case.summary, case.article)


def _instability(case: Case, embedder: Embedder) -> float:
    return 1 - embedder.cosine(case.clean, case.summary)


def _instability_rouge(case: Case, _: Embedder) -> float:
    return 1 - rouge_l(case.summary, case.clean)


def _instability_bleu(case: Case, _: Embedder) -> float:
    return 1 - bleu(case.summary, case.clean)


def _unsupported(case: Case, _: Embedder) -> float:
    return case.unsupported(case.summary, case.article)


def _reference_loss(case: Case, _: Embedder) -> float:
    return rouge_l(case.clean, case.reference) - rouge_l(case.summary, case.reference)


DISCREPANCIES: Mapping[str, Callable[[Case, Embedder], float]] = {
    "faithfulness_loss": _faithfulness_loss,
    "unfaithfulness": _unfaithfulness,
    "instability": _instability,
    "instability_rouge": _instability_rouge,
    "instability_bleu": _instability_bleu,
    "reference_loss": _reference_loss,
    "unsupported": _unsupported,
}
NEEDS_REFERENCE = frozenset({"reference_loss"})
ABSOLUTE = "unsupported"
"""The measure that compares a summary with the article alone; its threshold does not depend on the model under test."""


def discrepancy(case: Case, weights: Mapping[str, float], embedder: Embedder) -> float:
    """Weighted mean of discrepancies, each clipped to [-1, 1]; the caller handles degenerate summaries."""
    values = {name: float(np.clip(DISCREPANCIES[name](case, embedder), -1, 1)) for name in weights}
    return weighted(values, weights)


def weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean of the `values` that `weights` name."""
    return sum(weight * values[name] for name, weight in weights.items()) / sum(weights.values())
