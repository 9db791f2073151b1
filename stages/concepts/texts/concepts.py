"""The catalogue of text concepts, the grid they span, and how its cells are applied to articles."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.concepts.catalogue import Change, check_levels, span, steps_of
from stages.concepts.space import ConceptSpace
from stages.concepts.texts import grammar, letters, words
from stages.concepts.texts.document import ArticleDraws, Token, parse
from stages.concepts.texts.lexicon import missing_libraries
from stages.concepts.texts.words import Apply, leave_out, reword, tagged


@dataclass(frozen=True)
class TextConcept(Change):
    """One way to change an article; without a range or choices its levels are shares from 0 to 1.

    Args:
        apply: (tokens, level, chance) -> changed tokens; not called at the neutral level.
    """

    apply: Apply = field(kw_only=True)


CATALOGUE: Mapping[str, TextConcept] = {
    concept.name: concept
    for concept in (
        # The author: what is said, in which order and words.
        TextConcept("shuffle_sentences", "share of sentences that change places", apply=words.shuffle_sentences),
        TextConcept("negate", "share of sentences turned into their opposite", apply=grammar.negate),
        TextConcept("tense", "share of verbs put from past to present or back", apply=grammar.tense),
        TextConcept("number", "share of nouns put from singular to plural or back", apply=reword(grammar.other_number)),
        TextConcept("synonyms", "share of words with a synonym that it replaces", apply=reword(words.synonyms)),
        TextConcept(
            "word_order", "how far words move within a sentence", 0, 100, unit=" words", apply=words.word_order
        ),
        # The editor: words left out or repeated.
        TextConcept("drop_stop_words", "share of function words left out", apply=leave_out(lambda token: token.stop)),
        TextConcept("drop_adjectives", "share of adjectives left out", apply=leave_out(tagged("JJ"))),
        TextConcept("drop_verbs", "share of verbs left out", apply=leave_out(tagged("VB", "MD"))),
        TextConcept("drop_nouns", "share of nouns and names left out", apply=leave_out(tagged("NN"))),
        TextConcept("delete_words", "share of words left out", apply=leave_out(tagged(""))),
        TextConcept("repeat_words", "share of words written twice", apply=words.repeat_words),
        # The keyboard.
        TextConcept("misspellings", "share of words misspelt as people do", apply=reword(words.misspellings)),
        TextConcept("typos", "share of words with a wrong key hit", apply=reword(letters.slips)),
        TextConcept("swap_characters", "share of neighbouring letters swapped", apply=letters.swap_characters),
        TextConcept("delete_characters", "share of letters left out", apply=letters.edit_letters(letters.delete)),
        TextConcept(
            "insert_characters", "share of letters with one put behind", apply=letters.edit_letters(letters.insert)
        ),
        TextConcept("repeat_characters", "share of letters typed twice", apply=letters.edit_letters(letters.repeat)),
        # The machine that stores and sends the text.
        TextConcept("remove_punctuation", "share of marks left out", apply=letters.remove_punctuation),
        TextConcept("letter_case", "capitals", neutral="as_is", choices=letters.CASES, apply=letters.letter_case),
        TextConcept("lost_spaces", "share of spaces lost", apply=letters.lost_spaces),
    )
}
"""All built-in concepts, in the order in which they are applied."""


def check_text_concepts(
    levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, TextConcept] = CATALOGUE
) -> list[str]:
    """List what is wrong with the `concepts:` of an audit, one line per error."""
    missing = missing_libraries()
    lines = [f"concepts: the library {name} is not installed: pip install 'faded[text]'" for name in missing]
    return lines + check_levels(levels, catalogue)


def text_space(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, TextConcept] = CATALOGUE) -> ConceptSpace:
    """Build the grid of an audit's `concepts:` that `check_text_concepts` accepted."""
    return span(levels, catalogue)


class TextTransforms:
    """Applies cells of a concept space to articles.

    Args:
        space: the concepts and their levels; made by `text_space`.
        seed: the audit's seed; all random draws depend only on it, the item, the concept and the repeat.
        catalogue: how concepts are applied, in this order.
    """

    def __init__(self, space: ConceptSpace, seed: int, catalogue: Mapping[str, TextConcept] = CATALOGUE) -> None:
        self._seed, self._steps = seed, steps_of(space, catalogue)

    def __call__(self, article: str, item: str, cell: np.ndarray, repeat: int = 0) -> str:
        """Change one article.

        Args:
            article: the original text.
            cell: (concepts,) level indices.
            repeat: the probe's repeat; other repeats touch other words.

        Returns:
            The changed text; at the neutral cell the article, bit for bit.
        """
        chosen = [(concept, levels[int(cell[column])]) for concept, column, levels in self._steps]
        steps = [(concept, level) for concept, level in chosen if level != concept.neutral]
        if not steps:
            return article
        document = parse(article)
        tokens: Sequence[Token] = document.tokens
        for concept, level in steps:
            chance = ArticleDraws(self._seed, item, concept.name, repeat, len(article))
            tokens = concept.apply(tokens, level, chance)
        return document.join(tokens)
