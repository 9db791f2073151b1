"""English word data: parts of speech, inflections, stop words, synonyms and common misspellings.

All of it comes from tables that ship with packages: textblob (the tagger of pattern, BSD), lemminflect (MIT),
scikit-learn's stop words (BSD), codespell's dictionary (CC BY-SA 3.0, from Wikipedia; the program, under the GPL, is
not imported) and the table of synonyms beside this file (WordNet 3.0, its licence beside it). Each is read on first
use.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.core.errors import UsageError

LIBRARIES = {"textblob": "textblob", "lemminflect": "lemminflect", "codespell": "codespell_lib"}
"""Libraries of the extra `text` that are needed: name of the distribution -> its module."""


def word_set(text: str) -> frozenset[str]:
    """Split a text into a set of words."""
    return frozenset(text.split())


BE = word_set("am is are was were be been being")
HAVE = word_set("have has had having")
DO = word_set("do does did")
MODALS = word_set("can could may might must shall should will would ought")
NEGATIONS = word_set("no not nor none never neither nobody nothing nowhere cannot without")

_OPEN_CLASSES = ("NN", "JJ", "CD")
_KINDS = {"NN": "N", "VB": "V", "JJ": "A", "RB": "R"}
_LEMMA_KINDS = {"NN": "NOUN", "VB": "VERB", "JJ": "ADJ", "RB": "ADV"}


def missing_libraries() -> list[str]:
    """Return which of `LIBRARIES` are not installed, without importing any."""
    return [name for name, module in LIBRARIES.items() if find_spec(module) is None]


@lru_cache(maxsize=1)
def _tagger() -> Any:
    from textblob.en import parser

    return parser


def tag(words: Sequence[str]) -> list[str]:
    """Return Penn Treebank tags for the words and marks of one sentence. A contraction has the tag of its stem."""
    return [found for _, found in _tagger().find_tags([_stem(word) for word in words])]


def _stem(word: str) -> str:
    """The part of "doesn't" or "Sydney's" that the tagger can tag."""
    word = word.replace("\u2019", "'")
    if word.lower().endswith("n't") and len(word) > 3:
        return {"ca": "can", "wo": "will", "sha": "shall"}.get(word[:-3].lower(), word[:-3])
    return word.split("'")[0] or word


def is_stop_word(lower: str, tag: str) -> bool:
    """Whether a word is on scikit-learn's list and is a function word here, but not a negation.

    The list contains nouns and verbs that carry news ("fire", "found", "move"), see Nothman et al., "Stop Word Lists in
    Free Open-source Software Packages", 2018; "not" and similar words turn a sentence into its opposite.
    """
    content = tag.startswith(_OPEN_CLASSES) or (tag.startswith("VB") and lower not in BE | HAVE | DO)
    return lower in _stop_words() and not content and lower not in NEGATIONS


@lru_cache(maxsize=1)
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


@lru_cache(maxsize=65536)
def lemma(lower: str, tag: str) -> str | None:
    """Return the dictionary form of a word: "ran", VBD -> "run"; None if the tables lack it."""
    from lemminflect import getAllLemmas

    found = [form for forms in getAllLemmas(lower, upos=_LEMMA_KINDS.get(tag[:2])).values() for form in forms]
    return found[0] if found else None


@lru_cache(maxsize=65536)
def inflect(lemma: str, tag: str) -> str | None:
    """Return the form of a lemma for a tag: "run", VBD -> "ran"; None if the tables lack it."""
    from lemminflect import getAllInflections

    if tag in ("JJ", "RB", "VB", "VBP", "NN"):
        return lemma
    forms = getAllInflections(lemma, upos=_LEMMA_KINDS.get(tag[:2]))
    found = forms.get(tag) or forms.get(
        "VBD" if tag == "VBN" else "", ()
    )  # participles equal to the past are not listed
    return found[0] if found else None


def is_participle(lower: str) -> bool:
    """Whether a word can be a past participle: "shot", "taken"."""
    base = lemma(lower, "VBN")
    return base is not None and inflect(base, "VBN") == lower


@lru_cache(maxsize=65536)
def inflected_synonyms(lower: str, tag: str) -> tuple[str, ...]:
    """Return synonyms in the word's inflection. They start with a vowel if it does, so that "a" or "an" still fits."""
    base = lemma(lower, tag)
    known = _synonyms().get((base or lower, _KINDS.get(tag[:2], "")), ())
    forms = [form for word in known if (form := inflect(word, tag)) and form != lower]
    return tuple(form for form in forms if (form[0] in "aeiou") == (lower[0] in "aeiou"))


@lru_cache(maxsize=1)
def _synonyms() -> Mapping[tuple[str, str], tuple[str, ...]]:
    lines = (files(__package__) / "data" / "synonyms.tsv").read_text("ascii").splitlines()
    rows = (line.split("\t") for line in lines if not line.startswith("#"))
    return {(word, kind): tuple(known.split()) for word, kind, known in rows}


def known_misspellings(lower: str) -> tuple[str, ...]:
    """Return the known misspellings of a word in alphabetical order."""
    return _misspellings().get(lower, ())


@lru_cache(maxsize=1)
def _misspellings() -> Mapping[str, tuple[str, ...]]:
    package = find_spec(LIBRARIES["codespell"])
    if package is None or package.origin is None:
        raise UsageError("the concept misspellings needs the library codespell: pip install 'faded[text]'")
    text = (Path(package.origin).parent / "data" / "dictionary.txt").read_text("utf-8")
    known: dict[str, list[str]] = defaultdict(list)
    for line in text.splitlines():
        wrong, _, right = line.partition("->")
        if wrong.isalpha() and "," not in right:  # a misspelling of several words is ambiguous
            known[right.strip()].append(wrong)
    return {right: tuple(sorted(wrong)) for right, wrong in known.items()}
