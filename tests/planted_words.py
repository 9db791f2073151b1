"""Questions, and a model that fails on hidden words or attributes, which no concept covers."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from stages.concepts import Concept, ConceptSpace
from stages.mining.facts import facts, replaced, synonyms_by_word
from stages.mining.mine import Answered, MinableTexts, WordProbe


def _words(said: str) -> list[str]:
    return said.split()


SPACE = ConceptSpace(
    (Concept("tone", ("plain", "rude"), ordered=False, neutral="plain"), Concept("typos", (0.0, 0.1, 0.2), neutral=0.0))
)
BEGINS = ("Why did", "When did", "How did", "Did", "Can you say whether", "Where did")
SUBJECTS = _words("doctor teacher farmer lawyer author woman boy sailor merchant soldier physician guard")
VERBS = _words("begin buy choose help repair need wish assist start study select purchase hurry answer cure harm")
ADJECTIVES = _words(
    "big sick angry rich sad quick strange large ill wealthy odd huge tiny brave calm silent weary famous"
)
NOUNS = _words(
    "house trip garden story ship street city journey road boat town forest coat error mistake idea reply gift"
)
ENDS = ("?", " in 1990?", " if it rained?", " in London?", " today?", ", not the other?", " and why?", ' "again"?')
ATTRIBUTES = ("has a number", "has a negation", "has a name", "has a condition", "has a quotation", "has a time")


def questions(n: int, seed: int) -> list[str]:
    """Make `n` different questions."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        begin, subject, verb, end = (str(rng.choice(words)) for words in (BEGINS, SUBJECTS, VERBS, ENDS))
        (one, other), (thing, place) = rng.choice(ADJECTIVES, 2, replace=False), rng.choice(NOUNS, 2, replace=False)
        found[f"{begin} the {one} {subject} {verb} a {other} {thing} near the {place}{end}"] = None
    return list(found)


def texts(n: int, seed: int) -> MinableTexts:
    """Make items of `n` different questions, each in its own group."""
    asked = questions(n, seed)
    ids = [f"q{number}" for number in range(n)]
    options = [synonyms_by_word(text) for text in asked]
    return MinableTexts(ids, asked, asked, ["It is known."] * n, ids, options, facts)


class Planted:
    """Fails if one of the hidden sets of facts holds, and otherwise at random, the same for the same probe.

    Args:
        texts: the items.
        hidden: sets of facts; "tone is rude" is a fact about a level.
        noise: failure rate if none holds.
    """

    def __init__(self, texts: MinableTexts, hidden: Sequence[frozenset[str]], noise: float = 0.03) -> None:
        self.texts, self.hidden, self.noise = texts, hidden, noise
        self.asked = 0

    def __call__(self, asks: Sequence[WordProbe]) -> list[Answered]:
        self.asked += len(asks)
        return [self.answer(ask) for ask in asks]

    def answer(self, ask: WordProbe) -> Answered:
        text = replaced(self.texts.texts[ask.item], dict(ask.words))
        holds = facts(text)
        if ask.cell[0] == 1:
            holds |= {"tone is rude"}
        chance = int(sha256(repr(ask).encode()).hexdigest()[:8], 16) / 2**32
        failed = any(one <= holds for one in self.hidden) or chance < self.noise
        return Answered(failed, text, "Nobody knows." if failed else "It is known.")


def hide(texts: MinableTexts, seed: int, *, put_in: int, said: int, attributes: int) -> list[frozenset[str]]:
    """Choose what the model fails on: words that only a lexicon offers, words in items, and attributes.

    Words from the lexicon must fit at least 16 items; words in items must occur in 16 items to an eighth of all.
    """
    rng = np.random.default_rng(seed)
    said_by = Counter(fact for text in texts.texts for fact in facts(text))
    by_lexicon = Counter(other for options in texts.options for other in {o for all_ in options.values() for o in all_})
    new = sorted(w for w, n in by_lexicon.items() if n >= 16 and not said_by[f"says {w}"])
    own = sorted(f for f, n in said_by.items() if f.startswith("says ") and 16 <= n <= len(texts.ids) / 8)
    chosen = [f"says {word}" for word in rng.choice(new, put_in, replace=False)]
    chosen += rng.choice(own, said, replace=False).tolist()
    chosen += rng.choice(ATTRIBUTES, attributes, replace=False).tolist()
    return [frozenset({str(one)}) for one in chosen]
