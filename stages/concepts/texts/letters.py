"""Concepts of the keyboard and the machine: letters, punctuation, capitals and spaces."""

import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache

from stages.concepts.texts.document import ArticleDraws, Token, remove
from stages.concepts.texts.words import Apply

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # each row of keys is half a key to the right of the one above
_SYMBOLS = frozenset("%&@#*/\\§†‡")  # punctuation in Unicode, but read as words
_LONGEST = 40  # letters; longer words are addresses or noise, which nobody types letter by letter

CASES = ("as_is", "lower", "title", "upper", "random")


def edit_letters(edit: Callable[[str, ArticleDraws, int], str]) -> Apply:
    """Make a concept that edits a share of the letters of all words, by letter, chance and place."""

    def apply(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
        letters = [
            (i, k, token.start + k)
            for i, token in enumerate(tokens)
            if token.is_word
            for k, letter in enumerate(token.text)
            if letter.isalpha()
        ]
        written = [list(token.text) for token in tokens]
        for chosen in chance.some([place for _, _, place in letters], share):
            i, k, place = letters[chosen]
            written[i][k] = edit(written[i][k], chance, place)
        return _rewritten(tokens, ["".join(text) for text in written])

    return apply


def _rewritten(tokens: Sequence[Token], texts: Sequence[str]) -> list[Token]:
    """Give the tokens these texts; tokens without text are removed."""
    pairs = zip(tokens, texts, strict=True)
    changed = [token if token.text == text else replace(token, text=text) for token, text in pairs]
    return remove(changed, {i for i, text in enumerate(texts) if not text})


def delete(letter: str, chance: ArticleDraws, place: int) -> str:
    """Leave the letter out."""
    return ""


def insert(letter: str, chance: ArticleDraws, place: int) -> str:
    """Add a random letter after it."""
    added = chance.choose(string.ascii_lowercase, place)
    return letter + (added.upper() if letter.isupper() else added)


def repeat(letter: str, chance: ArticleDraws, place: int) -> str:
    """Type it twice."""
    return letter * 2


def swap_characters(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Swap a share of the pairs of different letters that are adjacent in a word, from left to right."""
    pairs = [
        (i, k, token.start + k)
        for i, token in enumerate(tokens)
        if token.is_word
        for k, (left, right) in enumerate(zip(token.text, token.text[1:], strict=False))
        if left.isalpha() and right.isalpha() and left != right
    ]
    written = [list(token.text) for token in tokens]
    for chosen in sorted(chance.some([place for _, _, place in pairs], share)):
        i, k, _ = pairs[chosen]
        written[i][k : k + 2] = written[i][k + 1], written[i][k]
    return _rewritten(tokens, ["".join(text) for text in written])


def _neighbours() -> dict[str, str]:
    """The keys that touch a key on a QWERTY keyboard."""
    at = {key: (column + row / 2, row) for row, keys in enumerate(_ROWS) for column, key in enumerate(keys)}
    return {
        key: "".join(other for other, (v, s) in at.items() if other != key and abs(v - u) <= 1 and abs(s - r) <= 1)
        for key, (u, r) in at.items()
    }


_NEIGHBOURS = _neighbours()


@lru_cache(maxsize=8192)
def _slips(text: str) -> tuple[str, ...]:
    return tuple(
        text[:k] + (other.upper() if letter.isupper() else other) + text[k + 1 :]
        for k, letter in enumerate(text)
        for other in _NEIGHBOURS.get(letter.lower(), "")
    )


def slips(token: Token) -> Sequence[str]:
    """All ways to hit a key next to the right one, once in a word of three to forty letters."""
    return _slips(token.text) if 3 <= len(token.text) <= _LONGEST else ()


def remove_punctuation(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Leave out a share of the marks between words; apostrophes, hyphens and points inside words and numbers stay."""
    marks = [i for i, token in enumerate(tokens) if not token.tag and _is_punctuation(token.text)]
    chosen = chance.some([tokens[i].start for i in marks], share)
    return remove(tokens, {marks[k] for k in chosen})


def _is_punctuation(mark: str) -> bool:
    return unicodedata.category(mark[0]).startswith("P") and mark not in _SYMBOLS


def letter_case(tokens: Sequence[Token], case: str, chance: ArticleDraws) -> list[Token]:
    """Write all words in lower case, With A Capital Each, in UPPER CASE, or with a random case for each letter."""
    return _rewritten(tokens, [_cased(token, case, chance) for token in tokens])


def _cased(token: Token, case: str, chance: ArticleDraws) -> str:
    text = token.text
    if case == "lower":
        return text.lower()
    if case == "upper":
        return text.upper()
    if case == "title":
        return text[0].upper() + text[1:]  # AEDT stays as it is
    return "".join(chance.choose((c.lower(), c.upper()), token.start + k) for k, c in enumerate(text))


def lost_spaces(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Lose a share of the spaces; line breaks stay."""
    spaces = [i for i, token in enumerate(tokens[:-1]) if token.space and "\n" not in token.space]
    lost = {spaces[k] for k in chance.some([tokens[i].start for i in spaces], share)}
    return [replace(token, space="") if i in lost else token for i, token in enumerate(tokens)]
