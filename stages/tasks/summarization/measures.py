"""Automatic measures of a summary: similarity of sentence embeddings, shared words, claims, and unusable outputs.

Similarity of embeddings shows whether a summary is about the article, but hardly notices a swapped name or a wrong
number, so what the article does not support is measured separately (see `support`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from stages.concepts.texts import sentences
from stages.tasks.language.encoders import Embedder
from stages.tasks.summarization import support

LEAD = 50  # words from the front that count as an article's lead


# Unusable summaries


def degenerate(summary: str, unfinished: bool = False) -> str:
    """Return why nobody could use an output as a summary; "" if it can be used.

    Args:
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
class SummaryCase:
    """One answer with everything it can be judged by.

    Args:
        article: the original article.
        clean: its summary by the model under test.
        reference: what a person wrote; "" for none.
        unsupported: (summary, article) -> how likely it is that the former says what the latter does not, in [0, 1].
    """

    article: str
    clean: str
    summary: str
    reference: str = ""
    unsupported: Unsupported = support.unsupported


DISCREPANCIES: Mapping[str, Callable[[SummaryCase, Embedder], float]] = {
    "faithfulness_loss": lambda case, e: e.cosine(case.clean, case.article) - e.cosine(case.summary, case.article),
    "unfaithfulness": lambda case, e: 1 - e.cosine(case.summary, case.article),
    "instability": lambda case, e: 1 - e.cosine(case.clean, case.summary),
    "instability_rouge": lambda case, _: 1 - rouge_l(case.summary, case.clean),
    "instability_bleu": lambda case, _: 1 - bleu(case.summary, case.clean),
    "reference_loss": lambda case, _: rouge_l(case.clean, case.reference) - rouge_l(case.summary, case.reference),
    "unsupported": lambda case, _: case.unsupported(case.summary, case.article),
}
NEEDS_REFERENCE = frozenset({"reference_loss"})
ABSOLUTE = "unsupported"
"""The measure that compares a summary with the article alone; its threshold does not depend on the model under test."""


def discrepancy(case: SummaryCase, weights: Mapping[str, float], embedder: Embedder) -> float:
    """Weighted mean of discrepancies, each clipped to [-1, 1]; the caller handles degenerate summaries."""
    values = {name: float(np.clip(DISCREPANCIES[name](case, embedder), -1, 1)) for name in weights}
    return weighted(values, weights)


def weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Weighted mean of the `values` that `weights` name."""
    return sum(weight * values[name] for name, weight in weights.items()) / sum(weights.values())
