"""Warnings about file formats of pictures that can reduce a model's accuracy unnoticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")  # modes of Pillow
_ORIENTATION = 0x0112  # tag of EXIF
_COARSE = 20.0  # mean of JPEG's luminance table: 20 is about quality 65, 58 is quality 50, 12 is quality 90

_WHAT = {
    "16 bits": "have 16 bits a channel, of which the upper 8 are kept",
    "palette": "have a palette, and are turned into colours",
    "alpha": "have transparency, which is dropped: whatever colour lies under it is shown",
    "turned": "are turned as the camera says (EXIF), which torchvision's ImageFolder and many trainings do not do",
    "CMYK": "are CMYK, and are converted without a colour profile",
    "coarse": "are JPEGs of low quality (below about 65), whose blocks a model may see",
}


def traits_of(picture: Any) -> list[str]:
    """Return the traits of a picture that may reduce accuracy, as keys for `notes`, and its file format."""
    mode, format_ = picture.mode, picture.format or "?"
    found = [f"format {format_}", "grey" if mode in GREY else "colour"]
    if mode.startswith("I;16") or mode == "I":
        found.append("16 bits")
    if mode == "P":
        found.append("palette")
    if mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        found.append("alpha")
    if mode == "CMYK":
        found.append("CMYK")
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        found.append("turned")
    tables = getattr(picture, "quantization", None)
    if format_ == "JPEG" and tables and sum(tables[0]) / len(tables[0]) > _COARSE:
        found.append("coarse")
    return found


def notes(traits: Mapping[str, int], sides: Mapping[int, int], channels: int | None, shown: int | None) -> list[str]:
    """Return warnings for people; empty if there are none.

    Args:
        traits: number of opened pictures with each trait.
        sides: number of opened pictures by shorter side.
        channels: channels of the model's input; None if unknown.
        shown: side of the pictures shown to the model; None if unknown.
    """
    n = sum(sides.values())
    lines = [f"{_of(traits[key], n)} {what}" for key, what in _WHAT.items() if traits.get(key)]
    grey, colour = traits.get("grey", 0), traits.get("colour", 0)
    if channels == 3 and grey:
        lines.append(f"{_of(grey, n)} are grey, and the model is for colour: all three channels are shown the same")
    if channels == 1 and colour:
        lines.append(f"{_of(colour, n)} have colour, and the model is for grey ones: their colour is dropped")
    if shown and (small := sum(count for side, count in sides.items() if side < shown)):
        lines.append(f"{_of(small, n)} are smaller than {shown} pixels, and are enlarged, so that they are blurred")
    formats = {key.removeprefix("format "): count for key, count in traits.items() if key.startswith("format ")}
    if len(formats) > 1 and "JPEG" in formats:
        listed = " and ".join(f"{count:,} {name}" for name, count in sorted(formats.items(), key=lambda f: -f[1]))
        lines.append(f"they are {listed}: if classes differ in that, a model can tell them by their compression")
    return lines


def _of(count: int, n: int) -> str:
    return "all pictures" if count == n else f"{count:,} of {n:,} pictures"
