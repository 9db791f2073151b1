"""Repair without training: undo changes of a text before the summarizer reads it.

A normalisation uses only what a text itself shows, so that it can run before any model in production. It leaves a text
alone that does not show its change.
"""

import importlib.util
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from string import ascii_lowercase

from stages.core.errors import UsageError

MOSTLY = 0.6  # share of words with odd capitals above which the whole text counts as affected
LETTERS = 40  # fewer letters say nothing about a text's case
ENDINGS = ("s", "es", "ed", "d", "ing", "ly", "er", "ers")  # endings of forms that word lists lack

_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
# Not numbers ("Flight 20 20 times"), nor words that English sometimes doubles ("those he had had"), nor the first part
# of a double name ("Boutros Boutros-Ghali").
_REPEATED = re.compile(r"\b(?!(?:had|her|that)\s)([^\W\d_]+(?:['\u2019][^\W\d_]+)*)(?:\s+\1\b(?!-))+", re.IGNORECASE)
_STRETCHED = re.compile(r"([^\W\d_])\1{2,}")
_GLUED = re.compile(
    r"(?P<address>\b(?:\w+://|www\.)\S+|\b(?:[a-z0-9-]+\.)+[a-z]{2,}:\w+)"  # example.com:port
    r"|(?<=[a-z]{2}[.!?])(?=[A-Z][a-z])|(?<=[a-z]{2}[,;:])(?=[^\W\d_])"
)
_FOREIGN = re.compile(r"[^\x00-\x7f]")
_NOT_ALIKE = ("<super>", "<sub>", "<fraction>")  # compatible in Unicode, but 10\u00b2 is not 102 and 1\u00bd not 11/2
_PLAIN_WORD = re.compile(r"(?<![\w'\u2019-])[a-z]{2,}(?![\w'\u2019])")
_SENTENCE_START = re.compile(r"(?:^|[.!?]\W*\s)\W*\w")


def restore_case(text: str) -> str:
    """Restore the usual capitals of a text that is almost entirely in capitals, in lower case or in random case.

    Words that textblob's lexicon lists only with capitals (Sydney, Australian) are written as listed, all others in
    lower case, except the first of a sentence.
    """
    if not _lost_its_case(text):
        return text
    names = _names()
    lowered = _WORD.sub(lambda found: _cased(found[0].lower(), names), text)
    return _SENTENCE_START.sub(lambda found: found[0][:-1] + found[0][-1].upper(), lowered)


def _lost_its_case(text: str) -> bool:
    words = _WORD.findall(text)
    letters = sum(map(len, words))
    if letters < LETTERS or not any(c.upper() != c.lower() for c in text):
        return False
    # Capitals after the first letter: all words of a text in capitals have them, and most words of one in random case.
    odd = sum(len(word) > 1 and any(c.isupper() for c in word[1:]) for word in words)
    countable = sum(len(word) > 1 for word in words)
    return not any(c.isupper() for c in text) or odd > MOSTLY * countable


def _cased(word: str, names: Mapping[str, str]) -> str:
    stem, mark, ending = word.partition("'" if "'" in word else "\u2019")
    return names.get(stem, "I" if stem == "i" else stem) + mark + ending


@cache
def _names() -> dict[str, str]:
    """Words that are always written with capitals: lower case -> as written."""
    names: dict[str, str] = {}
    common: set[str] = set()
    for word, _ in _table("en-lexicon.txt"):
        if word.islower():
            common.add(word)
        elif word.isalpha():
            names[word.lower()] = word  # keeps the later of "BUSH" and "Bush": the lexicon sorts capitals first
    return {lower: word for lower, word in names.items() if lower not in common}


def spelling(text: str) -> str:
    """Replace lower-case words that are in no word list by the most frequent word one edit away, if there is one.

    An edit removes, adds, replaces or swaps letters (Norvig, "How to write a spelling corrector", 2007; the word counts
    are his, as shipped with textblob). Names are left alone: a list cannot distinguish a rare one from a misspelt one.
    """
    return _PLAIN_WORD.sub(lambda found: _corrected(found[0]), text)


@lru_cache(maxsize=65536)
def _corrected(word: str) -> str:
    counts = _counts()
    stems = [word.removesuffix(ending) for ending in ENDINGS]
    if word in counts or any(len(stem) > 3 and stem in counts for stem in stems):
        return word
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    edits = {a + b[1:] for a, b in cuts if b} | {a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1}
    edits |= {a + letter + rest for a, b in cuts for letter in ascii_lowercase for rest in {b, b[1:]}}
    return max((edit for edit in edits if edit in counts), key=lambda edit: (counts[edit], edit), default=word)


@cache
def _counts() -> dict[str, int]:
    """Word counts in a corpus; 0 for words that only the lexicon lists."""
    listed = {word: 0 for word, _ in _table("en-lexicon.txt") if word.islower()}
    return listed | {word: int(count) for word, count in _table("en-spelling.txt")}


def _table(name: str) -> Iterator[tuple[str, str]]:
    """Yield the entries of a word list that ships with textblob: the word and the rest of its line."""
    spec = importlib.util.find_spec("textblob")
    if spec is None or spec.origin is None:
        raise UsageError("restructure.settings.normalise needs the library textblob: pip install 'faded[text]'")
    for line in (Path(spec.origin).parent / "en" / name).read_text(encoding="utf-8").splitlines():
        word, _, rest = line.partition(" ")
        if rest and not line.startswith(";;;"):  # a comment
            yield word, rest


def repeated_words(text: str) -> str:
    """Write a word that is repeated in a row only once; numbers, and words that English doubles, are left alone."""
    return _REPEATED.sub(r"\1", text)


def repeated_characters(text: str) -> str:
    """Shorten three or more equal letters in a row to two; no English word has three."""
    return _STRETCHED.sub(r"\1\1", text)


def spacing(text: str) -> str:
    """Put one space between words, and after a sentence or comma that lost it, in place of any white space."""
    return " ".join(_GLUED.sub(lambda found: found["address"] or " ", text).split())


def characters(text: str) -> str:
    """Replace look-alikes of ASCII letters, digits and marks, and ligatures, by what they look like.

    They are the characters that Unicode calls compatible (NFKC), except raised and lowered characters and fractions.
    Typographic marks, such as curly quotes, are not look-alikes and stay.
    """
    return _FOREIGN.sub(lambda found: _ascii_alike(found[0]), text)


@cache
def _ascii_alike(character: str) -> str:
    alike = unicodedata.normalize("NFKC", character)
    usable = alike.isascii() and (len(alike) == 1 or alike.isalpha())
    return alike if usable and not unicodedata.decomposition(character).startswith(_NOT_ALIKE) else character


NORMALISATIONS: Mapping[str, Callable[[str], str]] = {
    "characters": characters,
    "spacing": spacing,
    "repeated_characters": repeated_characters,
    "repeated_words": repeated_words,
    "letter_case": restore_case,
    "spelling": spelling,  # after letter_case, because it leaves capitals alone
}


def normaliser(names: Sequence[str]) -> Callable[[str], str]:
    """Chain normalisations in the order of NORMALISATIONS. Raises a UsageError when a name is unknown."""
    if unknown := [name for name in names if name not in NORMALISATIONS]:
        raise UsageError(f"normalise: {', '.join(unknown)} is unknown, expected some of {', '.join(NORMALISATIONS)}")
    chosen = [change for name, change in NORMALISATIONS.items() if name in names]

    def normalise(text: str) -> str:
        for change in chosen:
            text = change(text)
        return text

    return normalise
