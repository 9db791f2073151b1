"""Examples of probes: images as data URIs, texts with their changes marked, all small enough to be sent by mail."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stages.report.texts import Folded, fold, mark_changes, plain
from stages.tasks.contract import Exhibit

IMAGE_BYTES = 600_000  # of all images of a report together, before base64
TEXT_CHARS = 500_000  # of all texts of a report together; each is shown up to three times: marked, as it was, answered
MAX_TEXT = 6_000  # of one text
_PNG = b"\x89PNG\r\n\x1a\n"


class Gallery(NamedTuple):
    """Examples of one failure mode: probes the model fails on and, from the same region, probes it passes."""

    failing: list[Exhibit]
    passing: list[Exhibit]


class Shown(NamedTuple):
    """An exhibit ready for the page.

    Args:
        caption: what was expected, what came out.
        src: the image as data URI; empty if there is none.
        width: of the image, in pixels of the page.
        pixelated: the image is so small that its pixels are to be seen.
        text: the changed text, with marks where the original is known.
        original: the text before the change, where it differs.
        note: what the marks leave unsaid.
        beside: too much changed for marks, so both texts are shown.
        answers: what the model said, by what it was asked.
        missing: why there is no image.
    """

    caption: str
    src: str = ""
    width: int = 0
    pixelated: bool = False
    text: Folded | None = None
    original: Folded | None = None
    note: str = ""
    beside: bool = False
    answers: Sequence[tuple[str, Folded]] = ()
    missing: str = ""


class Shrinker:
    """Turns exhibits into what a page can hold, sharing IMAGE_BYTES among all images and TEXT_CHARS among all texts.

    Args:
        exhibits: everything the page will show; decides how large each image and each text may be.
    """

    def __init__(self, exhibits: Iterable[Exhibit]) -> None:
        exhibits = list(exhibits)
        images = [e.image for e in exhibits if e.image is not None]
        self._share = IMAGE_BYTES // max(1, len(images))
        self._whole = sum(map(len, images)) <= IMAGE_BYTES
        self._limit = min(MAX_TEXT, TEXT_CHARS // max(1, len(exhibits)))

    def show(self, exhibit: Exhibit, before: str | None = None, after: str | None = None) -> Shown:
        """One exhibit for the page, with the model's outputs before and after a repair if there are any."""
        answers = dict(exhibit.answers)
        if before is not None and after is not None:
            # The exhibit was made with the model before the repair: what it says of the changed input is `before`.
            if answers and [*answers.values()][-1] == before:
                del answers[[*answers][-1]]
            answers |= {"before the repair": before, "after the repair": after}
        said = [(asked, plain(answer, self._limit)) for asked, answer in answers.items()]
        shown = Shown(exhibit.caption, answers=said)
        return self._text(shown, exhibit) if exhibit.image is None else self._image(shown, exhibit.image)

    def _text(self, shown: Shown, exhibit: Exhibit) -> Shown:
        text, original = exhibit.text or "", exhibit.original
        if original is None:
            return shown._replace(text=plain(text, self._limit))
        marked = mark_changes(original, text)
        return shown._replace(
            text=fold(marked.pieces, self._limit),
            original=plain(original, self._limit) if original != text else None,
            note=marked.note,
            beside=marked.beside,
        )

    def _image(self, shown: Shown, image: bytes) -> Shown:
        small = image if self._whole else _shrink(image, self._share)
        if small is None:
            return shown._replace(missing="image left out to keep the file small")
        width = _width(image)
        kind = "png" if small.startswith(_PNG) else "jpeg"
        src = f"data:image/{kind};base64,{base64.b64encode(small).decode('ascii')}"
        return shown._replace(src=src, width=max(96, min(width or 160, 160)), pixelated=0 < width <= 96)

    def show_all(self, exhibits: Sequence[Exhibit]) -> list[Shown]:
        """Several exhibits for the page."""
        return [self.show(exhibit) for exhibit in exhibits]


def _width(image: bytes) -> int:
    """Pixel width of a PNG from its header, 0 for anything else."""
    return struct.unpack(">I", image[16:20])[0] if image.startswith(_PNG) and len(image) > 24 else 0


def _shrink(image: bytes, limit: int) -> bytes | None:
    """The image as it is, or a JPEG of at most `limit` bytes; None if even the smallest is larger."""
    if len(image) <= limit:
        return image
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:  # a task of texts needs no Pillow, and then no image comes here
        return None
    try:
        with Image.open(io.BytesIO(image)) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None
    for side, quality in ((192, 82), (160, 75), (128, 70), (96, 60)):
        copy = picture.copy()
        copy.thumbnail((side, side))
        buffer = io.BytesIO()
        copy.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit:
            return buffer.getvalue()
    return None
