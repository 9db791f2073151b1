"""Examples of probes: images as data URIs, texts with marked changes and folded, small enough for a page by mail."""

import base64
import io
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from types import MappingProxyType
from typing import Literal, NamedTuple

from stages.records.tables import PairedProbe
from stages.tasks.contract import Exhibit, Sheet

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


IMAGE_BYTES = 800_000  # of all images of a report together, before base64
TEXT_CHARS = 500_000  # of all texts of a report together; each may be shown three times: marked, original, answers
MAX_TEXT = 6_000  # of one text
EXCERPT = 260  # characters of a text if there is little room
SMALL = 96  # maximum height in pixels of an image that is enlarged so that its pixels are visible
_PNG = b"\x89PNG\r\n\x1a\n"


class PicturedCell(NamedTuple):
    """A cell of the grid in words, its estimated failure rate with its interval, and a probe of it if there is one."""

    text: str
    rate: float
    low: float
    high: float
    exhibit: Exhibit | None = None


class PageImage(NamedTuple):
    """An image ready for the page.

    Args:
        src: data URI; empty if the image had to be left out.
        width: in pixels of the page.
        pixelated: whether it is so small that its pixels should be visible.
        label: what it shows, if there are several.
        wide: whether it is much wider than high: several pictures side by side.
    """

    src: str
    width: int
    pixelated: bool
    label: str = ""
    wide: bool = False


class ExhibitView(NamedTuple):
    """An exhibit ready for the page.

    Args:
        caption: the expected and the actual output.
        images: of the probe, and those that models drew.
        prompt: the model's prompt in pieces, each with the slot it fills or "".
        slots: the slots of the prompt with their numbers, for its legend; the same on the whole page.
        text: the changed text, with marks if the original is known.
        original: the text before the change, if it differs.
        note: what the marks do not show.
        beside: whether too much changed for marks, so that both texts are shown.
        answers: the model's answers, by question.
    """

    caption: str
    images: Sequence[PageImage] = ()
    prompt: Sequence[tuple[str, str]] = ()
    slots: Mapping[str, int] = MappingProxyType({})
    text: FoldedText | None = None
    original: FoldedText | None = None
    note: str = ""
    beside: bool = False
    answers: Sequence[tuple[str, FoldedText]] = ()

    @property
    def wide(self) -> bool:
        """Whether it needs more room than a captioned picture: a strip of pictures, or pictures of two models."""
        return len(self.images) > 1 or any(image.wide for image in self.images)


class Shrinker:
    """Fits exhibits into a page, sharing IMAGE_BYTES among all images and TEXT_CHARS among all texts.

    Bytes that small images do not need go to the others; a strip counts by its number of pictures.

    Args:
        exhibits: all exhibits of the page; their number determines the size of each image and text.
        more: images besides those of the exhibits.
    """

    def __init__(self, exhibits: Iterable[Exhibit], more: Iterable[bytes] = ()) -> None:
        exhibits = list(exhibits)
        images = [image for e in exhibits for image in (e.image, e.drawn) if image is not None]
        self._share = _fair_share([*images, *more])
        self._slots = list(dict.fromkeys(slot for e in exhibits for _, slot in e.words if slot))  # one colour each
        self._limit = min(MAX_TEXT, TEXT_CHARS // max(1, len(exhibits)))

    def show(
        self,
        exhibit: Exhibit,
        before: str | None = None,
        after: str | None = None,
        drawn: bytes | None = None,
        unchanged: Exhibit | None = None,
    ) -> ExhibitView:
        """Prepare one exhibit for the page.

        Args:
            before: the output before a repair.
            after: the output after it.
            drawn: the picture drawn by the model after it.
            unchanged: the unchanged item, whose image is placed beside that of the exhibit.
        """
        answers = dict(exhibit.answers)
        if before is not None and after is not None:
            # The exhibit is of the model before the repair, so its answer to the changed input is `before`.
            if answers and [*answers.values()][-1] == before:
                del answers[[*answers][-1]]
            answers |= {"before the repair": before, "after the repair": after}
        slots = {slot: 1 + self._slots.index(slot) for _, slot in exhibit.words if slot}
        shown = ExhibitView(
            exhibit.caption,
            answers=[(question, folded(answer, self._limit)) for question, answer in answers.items()],
            images=self._images(exhibit, drawn, unchanged.image if unchanged else None),
            prompt=exhibit.words,
            slots=slots,
        )
        pictured = exhibit.image is not None or exhibit.drawn is not None
        return shown if pictured or exhibit.words else self._text(shown, exhibit)

    def brief(self, exhibit: Exhibit, unchanged: Exhibit | None, after: PairedProbe | None = None) -> ExhibitView:
        """Prepare one exhibit for a card: the changed beside the unchanged image, or an excerpt of the changed text.

        Args:
            unchanged: its unchanged item, if known.
            after: outputs of both models.
        """
        named = [("unchanged", unchanged.image if unchanged else None), ("changed", exhibit.image)]
        if exhibit.drawn is not None:
            named = [("before the repair", exhibit.drawn), ("after the repair", after.drawn)] if after else []
            named = named or [("drawn by the model", exhibit.drawn)]
        answers = dict([*exhibit.answers.items()][-1:])
        if after:  # the caption contains the answer before, if it is short
            answers = ({"before the repair": after.before} if answers else {}) | {"after the repair": after.after}
        marked = mark_changes(exhibit.original or exhibit.text, exhibit.text) if exhibit.text else MarkedText([])
        return ExhibitView(
            exhibit.caption,
            images=[self.image(image, label) for label, image in named if image is not None],
            prompt=exhibit.words,
            slots={slot: 1 + self._slots.index(slot) for _, slot in exhibit.words if slot},
            text=excerpt(marked.pieces, EXCERPT) if marked.pieces else None,
            note=marked.note if exhibit.original else "",
            answers=[(question, excerpt([Piece("same", answer)], EXCERPT)) for question, answer in answers.items()],
        )

    def _images(self, exhibit: Exhibit, drawn: bytes | None, unchanged: bytes | None) -> list[PageImage]:
        """Return the unchanged and the changed image, and those drawn by models, with labels if there are several."""
        given = "given to the model" if unchanged is None else "changed"
        named = [("unchanged", unchanged), (given, exhibit.image)]
        named += (
            [("drawn by the model", exhibit.drawn)]
            if drawn is None
            else [("before the repair", exhibit.drawn), ("after the repair", drawn)]
        )
        there = [(label, image) for label, image in named if image is not None]
        return [self.image(image, label if len(there) > 1 else "") for label, image in there]

    def _text(self, shown: ExhibitView, exhibit: Exhibit) -> ExhibitView:
        text, original = exhibit.text or "", exhibit.original
        if original is None:
            return shown._replace(text=folded(text, self._limit))
        marked = mark_changes(original, text)
        return shown._replace(
            text=fold(marked.pieces, self._limit),
            original=folded(original, self._limit) if original != text else None,
            note=marked.note,
            beside=marked.beside,
        )

    def image(self, image: bytes, label: str = "") -> PageImage:
        """Prepare one image for the page, no larger than its share."""
        width, height = _size(image)
        tiles, small = _tiles(image), 0 < height <= SMALL
        small_enough = _shrink(image, self._share * tiles, tiles)
        if small_enough is None:
            return PageImage("", 0, False, label)
        kind = "png" if small_enough.startswith(_PNG) else "jpeg"
        src = f"data:image/{kind};base64,{base64.b64encode(small_enough).decode('ascii')}"
        shown = 112 * width // height if small else max(96, min(width or 160, 160 * tiles))
        return PageImage(src, shown, small, label, tiles > 1)

    def show_all(self, exhibits: Sequence[Exhibit]) -> list[ExhibitView]:
        """Prepare several exhibits for the page."""
        return [self.show(exhibit) for exhibit in exhibits]


def _fair_share(images: Iterable[bytes]) -> float:
    """Return the bytes for each picture so that all together fit into IMAGE_BYTES; infinite if all fit unchanged."""
    sizes = sorted((len(image) / _tiles(image), _tiles(image)) for image in images)
    left, tiles = float(IMAGE_BYTES), sum(n for _, n in sizes)
    for each, n in sizes:
        if each > left / tiles:
            return left / tiles
        left, tiles = left - each * n, tiles - n
    return float("inf")


def _size(image: bytes) -> tuple[int, int]:
    """Read width and height of a PNG in pixels from its header, 0 for anything else."""
    return struct.unpack(">II", image[16:24]) if image.startswith(_PNG) and len(image) > 24 else (0, 0)


def _tiles(image: bytes) -> int:
    """Return the number of square pictures side by side in an image."""
    width, height = _size(image)
    return max(1, round(width / height)) if height else 1


def _shrink(image: bytes, limit: float, tiles: int = 1) -> bytes | None:
    """Return the image unchanged, or a JPEG of at most `limit` bytes; None if even the smallest is larger."""
    if len(image) <= limit:
        return image
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:  # tasks on texts do not need Pillow, and have no images
        return None
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None
    for side, quality in ((192, 82), (160, 75), (128, 70), (96, 60)):
        copy = picture.copy()
        copy.thumbnail((side * tiles, side))
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit:
            return buffer.getvalue()
    return None


class SheetView(NamedTuple):
    """A sheet ready for the page: rows with the strips that the models drew, and the width of a picture in pixels."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[PageImage]]]
    tile: int


def strips(sheets: Mapping[str, Sequence[Sheet]]) -> list[bytes]:
    """Return all images of the sheets, for the budget of bytes."""
    return [image for drawn in sheets.values() for sheet in drawn for _, image in sheet.rows]


def show_sheets(sheets: Mapping[str, Sequence[Sheet]], shrinker: Shrinker) -> list[SheetView]:
    """Prepare sheets for the page, with rows of all models grouped.

    Args:
        sheets: by model ("before", "after"), the same sheets in the same order; those of a single model get no labels.
    """
    shown = []
    for versions in zip(*sheets.values(), strict=True):
        first = versions[0]
        rows = [
            (
                drawn[0][0],
                [
                    shrinker.image(image, model if len(sheets) > 1 else "")
                    for model, (_, image) in zip(sheets, drawn, strict=True)
                ],
            )
            for drawn in zip(*(sheet.rows for sheet in versions), strict=True)
        ]
        wide = max((image.width for _, strips in rows for image in strips), default=0)
        tile = max(68, min(88, wide // max(1, len(first.columns))))
        shown.append(SheetView(first.title, list(first.columns), rows, tile))
    return shown
