"""Concepts of whole words and sentences: order, omission, repetition and replacement."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from stages.concepts.texts import lexicon
from stages.concepts.texts.document import ArticleDraws, Token, by_sentence, remove_words

Apply = Callable[[Sequence[Token], Any, ArticleDraws], list[Token]]
"""(tokens of an article, level, chance) -> its tokens after the change."""


def reword(options: Callable[[Token], Sequence[str]]) -> Apply:
    """Make a concept that rewrites a share of the words that have `options`, a token's alternatives."""

    def apply(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
        eligible = [(i, forms) for i, token in enumerate(tokens) if token.is_word and (forms := options(token))]
        changed = list(tokens)
        for chosen in chance.some([tokens[i].start for i, _ in eligible], share):
            i, forms = eligible[chosen]
            changed[i] = replace(tokens[i], text=chance.choose(forms, tokens[i].start))
        return changed

    return apply


def leave_out(eligible: Callable[[Token], bool]) -> Apply:
    """Make a concept that leaves out a share of the words for which `eligible` is true."""

    def apply(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
        indices = [i for i, token in enumerate(tokens) if token.is_word and eligible(token)]
        chosen = chance.some([tokens[i].start for i in indices], share)
        return remove_words(tokens, {indices[k] for k in chosen})

    return apply


def tagged(*tags: str) -> Callable[[Token], bool]:
    """Return a test for tokens whose part of speech begins with one of these: `tagged("NN")` accepts any noun."""
    return lambda token: token.tag.startswith(tags)


def synonyms(token: Token) -> Sequence[str]:
    """Synonyms of a plain word, in its inflection."""
    return lexicon.inflected_synonyms(token.text, token.tag) if token.is_plain else ()


def misspellings(token: Token) -> Sequence[str]:
    """Known misspellings of a plain word of four letters or more."""
    return lexicon.known_misspellings(token.text) if token.is_plain and len(token.text) >= 4 else ()


def repeat_words(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Write a share of the words twice."""
    words = [i for i, token in enumerate(tokens) if token.is_word]
    twice = {words[k] for k in chance.some([tokens[i].start for i in words], share)}
    repeated: list[Token] = []
    for i, token in enumerate(tokens):
        repeated += [replace(token, space=" "), token] if i in twice else [token]
    return repeated


def word_order(tokens: Sequence[Token], reach: float, chance: ArticleDraws) -> list[Token]:
    """Move words by at most `reach` places within their sentence; marks and numbers stay in place.

    Word i is sorted by i + u (reach + 1), u uniform in [0, 1): the noise of Lample et al., "Unsupervised Machine
    Translation Using Monolingual Corpora Only", 2018, section 2.3. Two words that change their order at one reach do so
    at every larger one.
    """
    moved: list[Token] = []
    for sentence in by_sentence(tokens):
        slots = [i for i, token in enumerate(sentence) if token.is_word]
        keys = [k + chance.uniform(sentence[i].start) * (reach + 1) for k, i in enumerate(slots)]
        order = sorted(range(len(slots)), key=keys.__getitem__)
        shuffled = list(sentence)
        for slot, k in zip(slots, order, strict=True):
            shuffled[slot] = replace(sentence[slots[k]], space=sentence[slot].space)
        moved += shuffled
    return moved


def shuffle_sentences(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Permute a share of the sentences, at least two, so that each of them moves."""
    groups = by_sentence(tokens)
    if len(groups) < 2:
        return list(tokens)
    moving = chance.order([group[0].start for group in groups])[: max(2, round(share * len(groups)))]
    shuffled = list(groups)
    for slot, source in zip(moving, [*moving[1:], moving[0]], strict=True):
        *body, end = groups[source]
        shuffled[slot] = [*body, replace(end, space=groups[slot][-1].space)]
    return [token for group in shuffled for token in group]
