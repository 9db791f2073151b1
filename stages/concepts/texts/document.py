"""An article as tokens in sentences: parsed once, changed by concepts, and joined back exactly.

Random draws depend only on (seed, item, concept, repeat) and on the place in the article.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from random import Random
from typing import TypeVar

from stages.concepts.texts.lexicon import is_stop_word, tag, word_set

T = TypeVar("T")
_TOKEN = re.compile(
    r"""
    (?P<word>
      (?:[^\W\d_]\.){2,}                                          # U.S.
      | [^\W_]+ (?: ['\u2019-][^\W_]+ | (?<=\d)[.,:/](?=\d)[^\W_]+ )*  # don't, south-west, 1,000, 4:00pm
        (?: (?<=s)['\u2019](?=\s) )?                                   # the workers' rights
    )
    | \.{2,} | \S
    """,
    re.VERBOSE,
)
_ABBREVIATIONS = word_set("mr mrs ms dr prof sen rep gov gen col lt sgt capt st mt vs jr sr inc ltd co")
_ENDS = frozenset({".", "!", "?", "…", "..", "..."})
_CLOSING = frozenset("\"'”\u2019»)]}")
_HANGING = frozenset(",;:")
_PAIRS = {"(": ")", "[": "]", '"': '"', "“": "”"}
_JOINTS = frozenset({"-", "\u2013", "—", "/", "…", "..", "..."})


@dataclass(frozen=True, slots=True)
class Token:
    """A word, a number or a punctuation mark.

    Args:
        space: white space after it; "" if the next token follows directly.
        start: where it began in the article, in characters. It selects the token's random draws, so that a word gets
            the same draws whatever other concepts do around it; an inserted token shares them with its neighbour.
        tag: part of speech in the Penn Treebank's tag set; "" for a mark.
    """

    text: str
    space: str
    start: int
    tag: str = ""
    sentence: int = 0
    stop: bool = False

    @property
    def lower(self) -> str:
        """The word as lexicons list it."""
        return self.text.lower()

    @property
    def is_word(self) -> bool:
        """Whether it is a word: neither a mark nor a number ("six", "1,000", "72nd")."""
        return self.tag not in ("", "CD") and not self.text[0].isdigit()

    @property
    def is_plain(self) -> bool:
        """Whether it is a word of lower-case letters a-z alone: not a name, a contraction or hyphenated."""
        return self.is_word and self.text.isascii() and self.text.isalpha() and self.text.islower()


@dataclass(frozen=True)
class Document:
    """The white space before the first token, and the tokens."""

    lead: str
    tokens: tuple[Token, ...]

    def join(self, tokens: Sequence[Token]) -> str:
        """Join tokens into a text; the document's own tokens give the article bit for bit."""
        return self.lead + "".join(token.text + token.space for token in tokens)


@lru_cache(maxsize=1024)
def parse(article: str) -> Document:
    """Split an article into tokens with parts of speech and sentence numbers."""
    tokens: list[Token] = []
    for number, sentence in enumerate(_split(_scan(article))):
        for token, found in zip(sentence, tag([token.text for token in sentence]), strict=True):
            stop = bool(token.tag) and is_stop_word(token.lower, found)
            tokens.append(replace(token, tag=found if token.tag else "", sentence=number, stop=stop))
    return Document(article[: tokens[0].start] if tokens else article, tuple(tokens))


def sentences(text: str) -> list[str]:
    """Return the sentences of a text in order, without surrounding white space. Loads no library."""
    return [text[s[0].start : s[-1].start + len(s[-1].text)] for s in _split(_scan(text))]


def _scan(text: str) -> list[Token]:
    """Split a text into tokens; the tag of every word is "X" until it is looked up."""
    pieces = list(_TOKEN.finditer(text))
    ends = [*(piece.start() for piece in pieces[1:]), len(text)]
    return [
        Token(piece[0], text[piece.end() : end], piece.start(), tag="X" if piece["word"] else "")
        for piece, end in zip(pieces, ends, strict=False)  # without pieces there is still one end
    ]


def _split(tokens: Sequence[Token]) -> list[list[Token]]:
    """Split at . ! ? and a closing quote after it, if space and no lower-case letter follow; and at blank lines."""
    cut: list[list[Token]] = []
    begin, ended = 0, False
    for i, token in enumerate(tokens):
        ended = (ended and token.text in _CLOSING) or (token.text in _ENDS and not _abbreviates(tokens[:i]))
        next_is_lower = i + 1 < len(tokens) and tokens[i + 1].text[0].islower()
        if i + 1 == len(tokens) or (ended and token.space and not next_is_lower) or token.space.count("\n") > 1:
            cut.append(list(tokens[begin : i + 1]))
            begin, ended = i + 1, False
    return cut


def _abbreviates(before: Sequence[Token]) -> bool:
    """Whether a full stop after these tokens belongs to the last of them: "Mr.", "J."."""
    if not before or before[-1].space:
        return False
    word = before[-1]
    return word.lower in _ABBREVIATIONS or (len(word.text) == 1 and word.text.isupper())


def by_sentence(tokens: Sequence[Token]) -> list[list[Token]]:
    """Group the tokens by sentence, in their present order."""
    return [list(group) for _, group in groupby(tokens, key=lambda token: token.sentence)]


def remove(tokens: Sequence[Token], gone: Set[int]) -> list[Token]:
    """Remove the tokens at these indices and close up white space, so that none is doubled or precedes a comma."""
    kept: list[Token] = []
    for i, token in enumerate(tokens):
        if i not in gone:
            kept.append(token)
        elif kept:
            kept[-1] = replace(kept[-1], space=_gap(kept[-1], token))
    return kept


def _gap(before: Token, gone: Token) -> str:
    """The white space that remains between the neighbours of a removed token."""
    gaps = (before.space, gone.space)
    if gone.tag and not all(gaps):
        return ""  # a mark next to the word is now next to the word's neighbour
    if not any(gaps) and gone.text in _JOINTS:
        return " "
    return max(gaps, key=lambda gap: (gap.count("\n"), len(gap)))


def remove_words(tokens: Sequence[Token], gone: Set[int]) -> list[Token]:
    """Remove words as `remove` does, then the marks that lose their meaning.

    No comma remains after a comma, before a full stop or at the start of a sentence, and no empty brackets or quotes. A
    sentence without any word left is removed as a whole.
    """
    touched = {tokens[i].sentence for i in gone}
    left = remove(tokens, gone)
    with_words = {token.sentence for token in left if token.tag}
    lost = {i for i, token in enumerate(left) if token.sentence in touched - with_words}
    last = -1  # index of the previous token that is kept
    for i, token in enumerate(left):
        if token.sentence in touched & with_words:
            before = left[last] if last >= 0 and left[last].sentence == token.sentence else None
            if token.text in _HANGING and (before is None or before.text in _HANGING or before.text in _PAIRS):
                lost.add(i)
            elif before is not None and before.text in _HANGING and token.text in _ENDS:
                lost.add(last)
            elif before is not None and not before.space and _PAIRS.get(before.text) == token.text:
                left[last] = replace(before, space=token.space, tag="X")  # close up the pair as if it were a word
                lost |= {last, i}
        if i not in lost:
            last = i
    return remove(left, lost)


class ArticleDraws:
    """The draws of one concept on one article: two numbers for each of its characters.

    A place is a character of the original article. Its first number is its turn: of the eligible words (or letters),
    those whose turns come first are touched, so a stronger level touches everything that a weaker one does. Its second
    number chooses among options. Places are fixed, so other concepts change neither number.
    """

    def __init__(self, seed: int, item: str, concept: str, repeat: int, length: int) -> None:
        # Python hashes a string seed with SHA-512 and keeps this stream the same across processes and versions.
        rng = Random(repr((int(seed), str(item), concept, int(repeat))))
        self._size = length + 1
        self._turns = [rng.random() for _ in range(self._size)]
        self._choices = [rng.random() for _ in range(self._size)]

    def order(self, places: Sequence[int]) -> list[int]:
        return sorted(range(len(places)), key=lambda i: self._turns[places[i] % self._size])

    def some(self, places: Sequence[int], share: float) -> set[int]:
        """Return the indices of the `round(share * len(places))` places whose turns come first."""
        return set(self.order(places)[: round(share * len(places))])

    def choose(self, options: Sequence[T], place: int) -> T:
        return options[int(self.uniform(place) * len(options))]

    def uniform(self, place: int) -> float:
        """Return a place's second number, in [0, 1)."""
        return self._choices[place % self._size]
