"""Labelled pairs of articles and summaries, made from any articles and the same on every machine.

Right summaries are sentences of an article, unchanged, shortened, merged or reworded; wrong ones are right ones with
one error added. The measure `unsupported` was evaluated on 500 of them (benchmarks/summary_errors.py), and
judges are calibrated on them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from random import Random

from stages.concepts.texts import ArticleDraws, Token, reword, sentences
from stages.concepts.texts.document import by_sentence, parse, remove_words
from stages.concepts.texts.grammar import negate, tense
from stages.concepts.texts.lexicon import NEGATIONS
from stages.concepts.texts.words import synonyms
from stages.core.errors import UsageError
from stages.tasks.judging.calibration import About, LabelledAnswer
from stages.tasks.judging.verdicts import AnswerToJudge, Parts
from stages.tasks.language.articles import Article

_NUMERALS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
SEED = 20240722
RUBRIC = (
    "The answer is a summary of the article. It is acceptable if the article supports all that it says, and"
    " unacceptable if it has a name, a number or a claim that the article does not support, turns one into its"
    " opposite, or is no summary."
)


@dataclass(frozen=True)
class LabelledSummary:
    """An article with a summary: its kind, whether it is wrong, and whether `support.CHANCE` was chosen on it."""

    id: str
    article: str
    summary: str
    kind: str
    wrong: bool
    chosen_on: bool


# Wrong summaries: right ones with one error, a name, number or negation changed (as in Kryscinski et al. 2020)

Place = tuple[int, int]


def joined(tokens: Sequence[Token]) -> str:
    """Join the tokens into a text."""
    return "".join(token.text + token.space for token in tokens).strip()


def _names(tokens: Sequence[Token]) -> list[Place]:
    """Return where names of one or several words begin and end."""
    found: list[Place] = []
    for i, token in enumerate(tokens):
        if not (token.tag.startswith("NNP") and token.text[0].isupper()):
            continue
        before = tokens[i - 1] if i else token
        if found and found[-1][1] == i and before.sentence == token.sentence and before.space:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return found


def _words(tokens: Sequence[Token], name: Place) -> list[str]:
    return [token.text for token in tokens[slice(*name)]]


def _put(tokens: Sequence[Token], place: Place, words: Sequence[str]) -> list[Token]:
    first, end = place
    return [*tokens[:first], replace(tokens[first], text=" ".join(words), space=tokens[end - 1].space), *tokens[end:]]


def _renamed(tokens: Sequence[Token], named: Sequence[list[str]], rng: Random) -> str | None:
    here = {token.text for token in tokens}
    fitting = [words for words in named if here.isdisjoint(words)]
    places = _names(tokens)
    return joined(_put(tokens, rng.choice(places), rng.choice(fitting))) if places and fitting else None


def name_of_the_article(tokens: Sequence[Token], article: Article, _: Article, rng: Random) -> str | None:
    """Replace a name by one from elsewhere in the article."""
    whole = parse(article.text).tokens
    return _renamed(tokens, [_words(whole, name) for name in _names(whole)], rng)


def foreign_name(tokens: Sequence[Token], article: Article, other: Article, rng: Random) -> str | None:
    """Replace a name by one that is not in the article."""
    whole, held = parse(other.text).tokens, {token.text for token in parse(article.text).tokens}
    return _renamed(tokens, [words for name in _names(whole) if held.isdisjoint(words := _words(whole, name))], rng)


def replace_number(tokens: Sequence[Token], article: Article, _: Article, rng: Random) -> str | None:
    """Replace a number by another of the article, or by a made-up one."""
    places = [i for i, token in enumerate(tokens) if _is_number(token)]
    if not places:
        return None
    here = {token.text for token in tokens}
    old = tokens[i := rng.choice(places)].text
    spelt = old.isalpha()
    others = {t.text for t in parse(article.text).tokens if _is_number(t) and t.text.isalpha() == spelt} - here
    if others and rng.random() < 0.5:
        new = rng.choice(sorted(others))
    elif spelt:
        new = rng.choice([numeral for numeral in _NUMERALS if numeral != old.lower()])
    else:
        value = int(old.replace(",", ""))
        new = str(value + rng.choice((-5, -2, 2, 5)) if 1900 < value < 2100 else rng.choice((value * 2, value * 3)))
    return None if new == old else joined(_put(tokens, (i, i + 1), [new]))


def _is_number(token: Token) -> bool:
    return bool(token.tag) and (token.text.replace(",", "").isdecimal() or token.lower in _NUMERALS)


def negation(tokens: Sequence[Token], article: Article, _: Article, rng: Random) -> str | None:
    """Turn one sentence into its opposite."""
    parts = by_sentence(tokens)
    k = rng.randrange(len(parts))
    parts[k] = negate(parts[k], 1, ArticleDraws(0, article.id, "", 0, len(article.text)))
    turned = joined([token for part in parts for token in part])
    return None if turned == joined(tokens) else turned


def invented(tokens: Sequence[Token], _: Article, other: Article, rng: Random) -> str:
    """Return a sentence of another article, alone or after the right summary."""
    sentence = rng.choice(sentences(other.text))
    return rng.choice(("", f"{joined(tokens)} ")) + sentence


def roles(tokens: Sequence[Token], _: Article, __: Article, rng: Random) -> str | None:
    """Swap two names of a sentence, except in an enumeration, whose order means nothing."""
    places = _names(tokens)
    fitting = [
        (one, other)
        for k, one in enumerate(places)
        for other in places[k + 1 :]
        if tokens[one[0]].sentence == tokens[other[0]].sentence
        and set(_words(tokens, one)).isdisjoint(_words(tokens, other))
        and any(t.is_word and t.lower not in ("and", "or") for t in tokens[one[1] : other[0]])
    ]
    if not fitting:
        return None
    one, other = rng.choice(fitting)
    return joined(_put(_put(tokens, other, _words(tokens, one)), one, _words(tokens, other)))


Error = Callable[[Sequence[Token], Article, Article, Random], str | None]
WRONG: Mapping[str, Error] = {
    "name the article lacks": foreign_name,
    "another name of the article": name_of_the_article,
    "number": replace_number,
    "negation": negation,
    "invented sentence": invented,
    "roles swapped": roles,
}
"""Each puts an error into the tokens of a right summary of an article, or returns None if it cannot."""

SWAPS = tuple(kind for kind in WRONG if kind != "invented sentence")  # leave the rest of the summary unchanged


def falsified(summary: str, article: Article, other: Article, rng: Random) -> str | None:
    """Put one error of a random kind into a summary; None if no kind is possible.

    Args:
        summary: a right summary.
        other: another article, for names that the first one lacks.
    """
    tokens = parse(summary).tokens
    kinds = rng.sample(SWAPS, len(SWAPS))
    return next((wrong for kind in kinds if (wrong := WRONG[kind](tokens, article, other, rng))), None)


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
    return joined(remove_words(tokens, set(rng.sample(idle, len(idle) // 2))))


def reworded(article: Article, rng: Random) -> str:
    """One of the first two sentences with a synonym for every word that has any, and in the other tense."""
    text = rng.choice(sentences(article.text)[:2])
    chance = ArticleDraws(rng.randrange(10**6), article.id, "", 0, len(text))
    return joined(tense(reword(synonyms)(parse(text).tokens, 1, chance), 1, chance))


def merged(article: Article, rng: Random) -> str:
    """Two shortened sentences, merged into one."""
    found = sentences(article.text)
    first, second = sorted(rng.sample(range(len(found)), 2)) if len(found) > 1 else (0, 0)
    tokens = parse(_without_idle(found[second], rng)).tokens
    begin = tokens[0].text if tokens[0].tag.startswith("NNP") else tokens[0].text.lower()
    return f"{_without_idle(found[first], rng).rstrip('.')}, while {begin}{tokens[0].space}{joined(tokens[1:])}"


RIGHT = {
    "lead sentence": lead,
    "other sentences": extract,
    "shortened": shortened,
    "reworded": reworded,
    "two sentences merged": merged,
}


def make_pairs(n: int, articles: Sequence[Article]) -> list[LabelledSummary]:
    """Make n pairs, a right and a wrong summary of each article in turn; both halves have all kinds equally often."""
    return list(islice(_pairs(articles), n))


def _pairs(articles: Sequence[Article]) -> Iterator[LabelledSummary]:
    rng = Random(SEED)
    order = list(enumerate(rng.sample(articles, len(articles))))
    right, made = [cycle(RIGHT), cycle(RIGHT)], [dict.fromkeys(WRONG, 0), dict.fromkeys(WRONG, 0)]  # of each half
    for place, article in cycle(order):
        other = order[(place + 1 + rng.randrange(len(order) - 1)) % len(order)][1]
        tokens = parse(rng.choice(list(RIGHT.values()))(article, rng)).tokens
        for kind in sorted(WRONG, key=made[place % 2].__getitem__):
            if wrong := WRONG[kind](tokens, article, other, rng):
                name = next(right[place % 2])
                yield LabelledSummary(article.id, article.text, RIGHT[name](article, rng), name, False, place % 2 == 0)
                yield LabelledSummary(article.id, article.text, wrong, kind, True, place % 2 == 0)
                made[place % 2][kind] += 1
                break


# For a judge


def about(article: str) -> Parts:
    """Return what a judge reads about a summary: its article."""
    return (("article", article),)


def known(articles: Sequence[Article]) -> About:
    """Return what finds an article by its id, with a right summary to compare others with."""
    texts = {one.id: one.text for one in articles}
    return lambda item: (about(texts[item]), sentences(texts[item])[0]) if item in texts else None


def made(articles: Sequence[Article], count: int) -> list[LabelledAnswer]:
    """Make so many summaries to calibrate a judge on. Raises a UsageError when there are too few articles."""
    if len(articles) < 2:
        raise UsageError(
            f"prepare.judge: summaries of {len(articles)} article cannot be falsified; name prepare.judge.labelled"
        )
    return [
        LabelledAnswer(
            one.id, AnswerToJudge(about(one.article), one.summary, sentences(one.article)[0]), not one.wrong, one.kind
        )
        for one in make_pairs(count, articles)
    ]
