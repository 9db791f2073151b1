"""Labelled pairs of articles and summaries, made from any articles and the same on every machine.

Right summaries are sentences of an article, unchanged, shortened, merged or reworded; wrong ones are right ones with
one error added (`falsify`). The measure `unsupported` was evaluated on 500 of them (benchmarks/summary_errors.py), and
judges are calibrated on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random

from stages.concepts.texts import Chance, reword, sentences
from stages.concepts.texts.document import parse, remove_words
from stages.concepts.texts.grammar import tense
from stages.concepts.texts.lexicon import NEGATIONS
from stages.concepts.texts.words import synonyms
from stages.errors import UsageError
from stages.files import local_file
from stages.tasks.judging import JudgeSettings, Labelled, Trial, read_labelled
from stages.tasks.summarization.data import Article
from stages.tasks.summarization.falsify import WRONG, written

SEED = 20240722
RUBRIC = (
    "The answer is a summary of the article. It is acceptable if the article supports all that it says, and"
    " unacceptable if it has a name, a number or a claim that the article does not support, turns one into its"
    " opposite, or is no summary."
)
_LABELLED = "prepare.judge.labelled"


@dataclass(frozen=True)
class Pair:
    """An article with a summary: its kind, whether it is wrong, and whether `support.CHANCE` was chosen on it."""

    id: str
    article: str
    summary: str
    kind: str
    wrong: bool
    chosen_on: bool


# Right summaries


def lead(article: Article, _: Random) -> str:
    """The first sentence."""
    return sentences(article.text)[0]


def extract(article: Article, rng: Random) -> str:
    """One sentence, or two in a row."""
    found = sentences(article.text)
    first = rng.randrange(len(found))
    return " ".join(found[first : first + rng.choice((1, 2))])


def shortened(article: Article, rng: Random) -> str:
    """One of the first two sentences without half of its adjectives and adverbs."""
    return _without_idle(rng.choice(sentences(article.text)[:2]), rng)


def _without_idle(text: str, rng: Random) -> str:
    tokens = parse(text).tokens
    idle = [
        i for i, t in enumerate(tokens) if t.is_word and t.tag.startswith(("JJ", "RB")) and t.lower not in NEGATIONS
    ]
    return written(remove_words(tokens, set(rng.sample(idle, len(idle) // 2))))


def reworded(article: Article, rng: Random) -> str:
    """One of the first two sentences with a synonym for every word that has any, and in the other tense."""
    text = rng.choice(sentences(article.text)[:2])
    chance = Chance(rng.randrange(10**6), article.id, "", 0, len(text))
    return written(tense(reword(synonyms)(parse(text).tokens, 1, chance), 1, chance))


def merged(article: Article, rng: Random) -> str:
    """Two shortened sentences, merged into one."""
    found = sentences(article.text)
    first, second = sorted(rng.sample(range(len(found)), 2)) if len(found) > 1 else (0, 0)
    tokens = parse(_without_idle(found[second], rng)).tokens
    begin = tokens[0].text if tokens[0].tag.startswith("NNP") else tokens[0].text.lower()
    return f"{_without_idle(found[first], rng).rstrip('.')}, while {begin}{tokens[0].space}{written(tokens[1:])}"


RIGHT = {
    "lead sentence": lead,
    "other sentences": extract,
    "shortened": shortened,
    "reworded": reworded,
    "two sentences merged": merged,
}


def make_pairs(n: int, articles: Sequence[Article]) -> list[Pair]:
    """Make n pairs, a right and a wrong summary of each article in turn; both halves have all kinds equally often."""
    return list(islice(_pairs(articles), n))


def _pairs(articles: Sequence[Article]) -> Iterator[Pair]:
    rng = Random(SEED)
    order = list(enumerate(rng.sample(articles, len(articles))))
    right, made = [cycle(RIGHT), cycle(RIGHT)], [dict.fromkeys(WRONG, 0), dict.fromkeys(WRONG, 0)]  # of each half
    for place, article in cycle(order):
        other = order[(place + 1 + rng.randrange(len(order) - 1)) % len(order)][1]
        tokens = parse(rng.choice(list(RIGHT.values()))(article, rng)).tokens
        for kind in sorted(WRONG, key=made[place % 2].__getitem__):
            if wrong := WRONG[kind](tokens, article, other, rng):
                name = next(right[place % 2])
                yield Pair(article.id, article.text, RIGHT[name](article, rng), name, False, place % 2 == 0)
                yield Pair(article.id, article.text, wrong, kind, True, place % 2 == 0)
                made[place % 2][kind] += 1
                break


# For a judge


def about(article: str) -> tuple[tuple[str, str], ...]:
    """Return what a judge reads about a summary: its article."""
    return (("article", article),)


def labelled_summaries(articles: Sequence[Article], inputs: Path, settings: JudgeSettings) -> list[Labelled]:
    """Return the summaries to calibrate a judge on: from the file that its settings name, or made from these articles.

    Raises:
        UsageError: when the file cannot be used, or there are too few articles.
    """
    if settings.labelled is not None:
        known = {one.id: (about(one.text), _plain(one.text)) for one in articles}
        return read_labelled(local_file(inputs, settings.labelled, _LABELLED), known.get, _LABELLED)
    if len(articles) < 2:
        raise UsageError(f"prepare.judge: summaries of {len(articles)} article cannot be falsified; name {_LABELLED}")
    return [
        Labelled(pair.id, Trial(about(pair.article), pair.summary, _plain(pair.article)), not pair.wrong, pair.kind)
        for pair in make_pairs(settings.answers, articles)
    ]


def _plain(article: str) -> str:
    """A right summary to compare others with."""
    return sentences(article)[0]
