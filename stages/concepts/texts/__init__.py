"""Text concepts: seeded changes of an article, with levels of increasing strength.

They are applied in the order in which a text is produced: the author (order of the sentences, negation, tense, number,
synonyms, order of the words), the editor (words left out or repeated), the keyboard (misspellings, typos, letters), the
machine (punctuation, capitals, spaces). At the neutral level of all concepts, every character is preserved.

Random draws depend only on the seed, the item, the concept and the repeat, and each belongs to a place in the article.
A stronger level therefore touches everything that a weaker one does and more, and a word gets the same typo whatever
other concepts do around it.

To add your own concept, put a `TextConcept` into the `catalogue` of a subclass of the summarization task, see
docs/own-task.md. `reword`, `leave_out` and `edit_letters` build its `apply` from a rule for one token.
"""

from stages.concepts.texts.concepts import CATALOGUE, TextConcept, TextTransforms, check_text_concepts, text_space
from stages.concepts.texts.document import ArticleDraws, Token, sentences
from stages.concepts.texts.letters import edit_letters
from stages.concepts.texts.words import leave_out, reword
