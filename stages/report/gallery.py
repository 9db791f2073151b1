"""Examples of probes: images as data URIs, small enough that the whole report can be sent by mail."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stages.tasks.contract import Exhibit

IMAGE_BYTES = 600_000  # of all images of a report together, before base64
MAX_TEXT = 2_000
_PNG = b"\x89PNG\r\n\x1a\n"


class Gallery(NamedTuple):
    """Examples of one failure mode: probes the model fails on and, from the same region, probes it passes."""

    failing: list[Exhibit]
    passing: list[Exhibit]


class Shown(NamedTuple):
    """An exhibit ready for the page. `width` is in pixels of the page; 0 if there is no image."""

    caption: str
    src: str = ""
    width: int = 0
    pixelated: bool = False
    text: str = ""
    before: str = ""
    after: str = ""
    missing: str = ""


class Shrinker:
    """Turns exhibits into what a page can hold, sharing IMAGE_BYTES among all images.

    Args:
        exhibits: everything the page will show; decides how many bytes each image may take.
    """

    def __init__(self, exhibits: Iterable[Exhibit]) -> None:
        images = [e.image for e in exhibits if e.image is not None]
        self._share = IMAGE_BYTES // max(1, len(images))
        self._whole = sum(map(len, images)) <= IMAGE_BYTES

    def show(self, exhibit: Exhibit, before: str = "", after: str = "") -> Shown:
        """One exhibit for the page, with the model's outputs before and after a repair if there are any."""
        caption = exhibit.caption
        if exhibit.image is not None:
            small = exhibit.image if self._whole else _shrink(exhibit.image, self._share)
            if small is None:
                return Shown(caption, missing="image left out to keep the file small", before=before, after=after)
            width = _width(exhibit.image)
            kind = "png" if small.startswith(_PNG) else "jpeg"
            src = f"data:image/{kind};base64,{base64.b64encode(small).decode('ascii')}"
            return Shown(caption, src, max(96, min(width or 160, 160)), 0 < width <= 96, before=before, after=after)
        text = exhibit.text or ""
        if len(text) > MAX_TEXT:
            text = f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} more characters)"
        return Shown(caption, text=text, before=before, after=after)

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
