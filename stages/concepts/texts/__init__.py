"""Text concepts: what people can change about an article, seeded, with levels of growing strength.

They are applied in the order in which a text comes about: the author (order of the sentences, negation, tense,
number, synonyms, order of the words), the editor (what is left out or comes twice), the keyboard (misspellings, typos,
letters), the machine (punctuation, capitals, spaces). At the neutral level of all concepts every character stays.

Random draws follow from the seed, the item, the concept and the repeat alone, and each belongs to a place in the
article: a stronger level touches what a weaker one does and more, and a word meets the same typo whatever other
concepts do around it.

A concept of your own is a `TextConcept` in the `catalogue` of a subclass of the summarization task, see
docs/own-concept.md. `reword`, `leave_out` and `edit_letters` make its `apply` from one rule on a token.
"""

from stages.concepts.texts.chance import Chance
from stages.concepts.texts.concepts import CATALOGUE, TextConcept, TextTransforms, check_text_concepts, text_space
from stages.concepts.texts.document import Token, sentences
from stages.concepts.texts.letters import edit_letters
from stages.concepts.texts.words import Apply, leave_out, reword

__all__ = [
    "CATALOGUE",
    "Apply",
    "Chance",
    "TextConcept",
    "TextTransforms",
    "Token",
    "check_text_concepts",
    "edit_letters",
    "leave_out",
    "reword",
    "sentences",
    "text_space",
]
