"""Decoding of picture files for a model: upright, resized and cropped, in the model's channels."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.params import Strict

Shape = tuple[int, int, int]  # channels, height, width
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_MODES = {1: "L", 3: "RGB"}
_NUMBERS = ("I", "F")  # modes whose values have no known range


class UnreadablePicture(Exception):
    """A file without a usable picture; the message says why, without naming a folder."""


class View(Strict):
    """How a picture is resized before its centre is cropped.

    Args:
        resize: the shorter side, or (height, width) whatever the picture's proportions.
        interpolation: a filter of Pillow.
    """

    resize: int | Annotated[tuple[int, int], Field(strict=False)] = Field(
        description="the shorter side, or height and width"
    )
    interpolation: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"

    def at(self, own: Shape, shape: Shape) -> View:
        """Adapt to inputs of another shape than `own`; the shorter side is then not cropped."""
        return self if own == shape else View(resize=max(shape[1:]), interpolation=self.interpolation)


def decode(source: Path | bytes, shape: Shape, view: View) -> np.ndarray:
    """Read one picture.

    Args:
        source: a file, or its content.
        shape: shape of the result: 1 channel is grey, 3 are red, green and blue.
        view: how it is resized before its centre is cropped.

    Returns:
        (channels, height, width) uint8.

    Raises:
        UnreadablePicture: if it is damaged, not a picture, or too large to be one.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = source.name if isinstance(source, Path) else "the picture"
    try:
        # Pillow warns about pictures of more than 89 million pixels and refuses those twice as large.
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as opened:
                photo = _upright(ImageOps.exif_transpose(opened), _MODES[shape[0]])
    except UnidentifiedImageError:
        raise UnreadablePicture(f"{name} is not a readable image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePicture(f"{name} is too large: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, TypeError) as error:
        # The message may contain a path of this machine, which must not get into the outputs.
        raise UnreadablePicture(
            str(error).replace(str(source), name) if isinstance(source, Path) else str(error)
        ) from None
    return _cut(photo, shape, view, name)


def _upright(photo: Any, mode: str) -> Any:
    from PIL import Image

    if photo.mode.startswith("I;16"):  # Pillow would clip 16 bits instead of scaling them
        return Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8)).convert(mode)
    if photo.mode in _NUMBERS:
        raise ValueError(f"its pixels are of mode {photo.mode}, expected 8 or 16 bits a channel")
    return photo.convert(mode)


def _cut(photo: Any, shape: Shape, view: View, name: str) -> np.ndarray:
    from PIL import Image

    channels, height, width = shape
    if isinstance(view.resize, int):
        scale = view.resize / min(photo.size)
        size = [max(view.resize, round(side * scale)) for side in photo.size]
    else:
        size = [view.resize[1], view.resize[0]]
    # The resized picture must not be smaller than the crop.
    grow = max(1.0, width / size[0], height / size[1])
    wide, high = (math.ceil(side * grow) for side in size)
    # A strip of a few bytes grows to billions of pixels if its shorter side is enlarged.
    if Image.MAX_IMAGE_PIXELS is not None and wide * high > Image.MAX_IMAGE_PIXELS:
        raise UnreadablePicture(
            f"{name} is too large: {photo.width} x {photo.height} pixels would become {wide} x {high}, more than"
            f" {Image.MAX_IMAGE_PIXELS} pixels"
        )
    photo = photo.resize((wide, high), Image.Resampling[view.interpolation.upper()])
    left, top = (wide - width) // 2, (high - height) // 2
    pixels = np.asarray(photo)[top : top + height, left : left + width]
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))
