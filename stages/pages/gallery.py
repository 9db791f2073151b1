"""Examples of probes: images as data URIs and texts with marked changes, small enough for a page sent by mail."""

import base64
import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from stages.pages.texts import FoldedText, MarkedText, Piece, excerpt, fold, folded, mark_changes
from stages.records.tables import PairedProbe
from stages.tasks.contract import Exhibit, Sheet

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
