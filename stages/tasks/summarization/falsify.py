"""Right summaries made wrong by one error, as in Kryscinski et al. (2020): a name, number or negation is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random

from stages.concepts.texts import Chance, Token, sentences
from stages.concepts.texts.document import by_sentence, parse
from stages.concepts.texts.grammar import negate
from stages.tasks.summarization.data import Article

NUMERALS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")

Place = tuple[int, int]


def written(tokens: Sequence[Token]) -> str:
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
    return written(_put(tokens, rng.choice(places), rng.choice(fitting))) if places and fitting else None


def name_of_the_article(tokens: Sequence[Token], article: Article, _: Article, rng: Random) -> str | None:
    """Replace a name by one from elsewhere in the article."""
    whole = parse(article.text).tokens
    return _renamed(tokens, [_words(whole, name) for name in _names(whole)], rng)


def foreign_name(tokens: Sequence[Token], article: Article, other: Article, rng: Random) -> str | None:
    """Replace a name by one that is not in the article."""
    whole, held = parse(other.text).tokens, {token.text for token in parse(article.text).tokens}
    return _renamed(tokens, [words for name in _names(whole) if held.isdisjoint(words := _words(whole, name))], rng)


def number(tokens: Sequence[Token], article: Article, _: Article, rng: Random) -> str | None:
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
        new = rng.choice([numeral for numeral in NUMERALS if numeral != old.lower()])
    else:
        value = int(old.replace(",", ""))
        new = str(value + rng.choice((-5, -2, 2, 5)) if 1900 < value < 2100 else rng.choice((value * 2, value * 3)))
    return None if new == old else written(_put(tokens, (i, i + 1), [new]))


def _is_number(token: Token) -> bool:
    return bool(token.tag) and (token.text.replace(",", "").isdecimal() or token.lower in NUMERALS)


def negation(tokens: Sequence[Token], article: Article, _: Article, rng: Random) -> str | None:
    """Turn one sentence into its opposite."""
    parts = by_sentence(tokens)
    k = rng.randrange(len(parts))
    parts[k] = negate(parts[k], 1, Chance(0, article.id, "", 0, len(article.text)))
    turned = written([token for part in parts for token in part])
    return None if turned == written(tokens) else turned


def invented(tokens: Sequence[Token], _: Article, other: Article, rng: Random) -> str:
    """Return a sentence of another article, alone or after the right summary."""
    sentence = rng.choice(sentences(other.text))
    return rng.choice(("", f"{written(tokens)} ")) + sentence


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
    return written(_put(_put(tokens, other, _words(tokens, one)), one, _words(tokens, other)))


Error = Callable[[Sequence[Token], Article, Article, Random], str | None]
WRONG: Mapping[str, Error] = {
    "name the article lacks": foreign_name,
    "another name of the article": name_of_the_article,
    "number": number,
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
        article: its article.
        other: another article, for names that the first one lacks.
        rng: draws the kind and the place.
    """
    tokens = parse(summary).tokens
    kinds = rng.sample(SWAPS, len(SWAPS))
    return next((wrong for kind in kinds if (wrong := WRONG[kind](tokens, article, other, rng))), None)
