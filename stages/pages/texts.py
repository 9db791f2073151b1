"""Texts on a page: changes are marked, and long texts are folded."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

HEAD = 500  # characters of a text shown before it is folded
LEAD = 60  # characters of an excerpt before its first change
MAX_TOKENS = 2_000  # maximum number of tokens of a text that are compared
MAX_WORD = 40  # maximum number of extra characters to avoid cutting within a word
BESIDE = 0.35  # share of removed or added words above which two texts side by side are easier to read than marks
MANY_CASES = 0.25  # share of words in another case above which marking each of them is useless

_TOKEN = re.compile(r"(\w+(?:['’-]\w+)*|[^\w\s])(\s*)")

Kind = Literal["same", "case", "cut", "new"]


class Piece(NamedTuple):
    """A piece of text: unchanged, in another letter case, removed, or added."""

    kind: Kind
    text: str


class FoldedText(NamedTuple):
    """A text in two parts, one shown at once and one on request; `left_out` characters are not in the page."""

    head: list[Piece]
    tail: list[Piece]
    left_out: int = 0

    @property
    def blank(self) -> bool:
        """Whether there is no text to read."""
        return not any(piece.text.strip() for piece in self.head)

    @property
    def hidden(self) -> int:
        """Number of characters shown on request."""
        return sum(len(piece.text) for piece in self.tail)


class MarkedText(NamedTuple):
    """A changed text with its changes marked. `beside`: so much changed that the original should be shown beside it."""

    pieces: list[Piece]
    note: str = ""
    beside: bool = False


def mark_changes(original: str, changed: str) -> MarkedText:
    """Compare two texts word by word, ignoring letter case."""
    old, new = (_TOKEN.findall(text) for text in (original, changed))
    if original == changed or not (old and new):
        return MarkedText([Piece("same", changed)], "unchanged" if original == changed else "")
    long = max(len(old), len(new)) > MAX_TOKENS
    before, after = ([word.casefold() for word, _ in tokens[:MAX_TOKENS]] for tokens in (old, new))
    blocks = list(SequenceMatcher(None, before, after, autojunk=False).get_opcodes())
    if long and len(blocks) > 1 and blocks[-1][0] != "equal":
        blocks.pop()  # the end of the compared part need not be a change
    same = [pair for block in blocks if block[0] == "equal" for pair in _pairs(block)]
    touched = 1 - 2 * len(same) / sum(i2 - i1 + j2 - j1 for _, i1, i2, j1, j2 in blocks)
    if touched > BESIDE:
        return MarkedText([Piece("same", changed)], "too much changed to mark", beside=True)
    words = [pair for pair in same if new[pair[1]][0][0].isalnum()]
    cased = sum(old[i][0] != new[j][0] for i, j in words)
    many = cased > MANY_CASES * len(words)
    note = f"letter case differs in {cased:,} of {len(words):,} words" if many else ""
    if not touched and not cased:
        note = "only white space differs"
    rest = Piece("same", "".join(map("".join, new[blocks[-1][-1] :])))
    return MarkedText(_merged([*_pieces(old, new, blocks, not many), rest]), note)


def fold(pieces: Iterable[Piece], limit: int) -> FoldedText:
    """Cut a text at the end of a word, first for the fold, then for good after `limit` characters."""
    pieces = list(pieces)
    if sum(len(piece.text) for piece in pieces) <= 1.2 * min(HEAD, limit):
        return FoldedText(pieces, [])
    head, tail = _split(pieces, min(HEAD, limit))
    kept, dropped = _split(tail, max(0, limit - HEAD))
    return FoldedText(head, kept, sum(len(piece.text) for piece in dropped))


def folded(text: str, limit: int) -> FoldedText:
    """Return a text without marks, folded."""
    return fold([Piece("same", text)], limit)


def excerpt(pieces: Sequence[Piece], limit: int) -> FoldedText:
    """Return a text around its first change, with about `LEAD` characters before it; without marks its beginning."""
    first = next((n for n, piece in enumerate(pieces) if piece.kind != "same"), 0)
    before = "".join(piece.text for piece in pieces[:first])
    if len(before) > 2 * LEAD:
        before = "… " + before[-LEAD:].partition(" ")[2]
    head, tail = _split(_merged([Piece("same", before), *pieces[first:]]), limit)
    return FoldedText(head, [], sum(len(piece.text) for piece in tail))


Block = tuple[str, int, int, int, int]
Token = tuple[str, str]  # a word or mark, and the space after it


def _pairs(block: Block) -> Iterator[tuple[int, int]]:
    _, i1, i2, j1, j2 = block
    return zip(range(i1, i2), range(j1, j2), strict=True)


def _pieces(old: Sequence[Token], new: Sequence[Token], blocks: Sequence[Block], case: bool) -> Iterator[Piece]:
    """Yield the changed text, with removed words in their old places; spaces are not marked."""
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        tag, i1, i2, j1, j2 = block
        if tag == "equal":
            cut_next = following is not None and following[2] > following[1]
            for i, j in _pairs(block):
                yield Piece("case" if case and old[i][0] != new[j][0] else "same", new[j][0])
                # Before a removed word keep its original space: "word,", not "word ,".
                yield Piece("same", old[i][1] if cut_next and i == i2 - 1 else new[j][1])
            continue
        if i2 > i1:
            yield Piece("cut", "".join(map("".join, old[i1:i2])).rstrip())
            yield Piece("same", old[i2 - 1][1] or (" " if j2 > j1 else ""))
        if j2 > j1:
            yield Piece("new", "".join(map("".join, new[j1:j2])).rstrip())
            yield Piece("same", new[j2 - 1][1])


def _merged(pieces: Iterable[Piece]) -> list[Piece]:
    merged: list[Piece] = []
    for piece in pieces:
        if not piece.text:
            continue
        if merged and merged[-1].kind == piece.kind:
            merged[-1] = Piece(piece.kind, merged[-1].text + piece.text)
        else:
            merged.append(piece)
    return merged


def _split(pieces: Sequence[Piece], at: int) -> tuple[list[Piece], list[Piece]]:
    """Cut after `at` characters, or at the end of the word there (up to a limit: not all scripts have spaces)."""
    head: list[Piece] = []
    for n, (kind, text) in enumerate(pieces):
        if len(text) <= at:
            head.append(Piece(kind, text))
            at -= len(text)
            continue
        cut = at + min(MAX_WORD, len(re.split(r"\s", text[at:], maxsplit=1)[0]))
        return _merged([*head, Piece(kind, text[:cut])]), _merged([Piece(kind, text[cut:]), *pieces[n + 1 :]])
    return head, []
