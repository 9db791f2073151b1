"""The pictures and captions that the default text-to-image model learns: coloured handwriting, and scenes of shapes.

All pictures are 32 x 32 pixels. Handwriting is MNIST's, painted; shapes are drawn by formula. Two things are planted
(see PLANTS): digits that prefer a colour, and captions that name the wrong digit in two slices of the data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional

PIXELS = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SHAPES = ("circle", "square", "triangle", "ring", "cross")
COLOURS = {
    "red": (215, 30, 40),
    "green": (30, 150, 60),
    "blue": (35, 75, 215),
    "yellow": (235, 200, 20),
    "purple": (130, 40, 160),
    "orange": (245, 125, 20),
}
BACKGROUNDS = {"black": (12, 12, 12), "white": (245, 245, 245), "gray": (128, 128, 128), "pink": (250, 180, 205)}
SIZES = {"small": 22, "large": 34}  # side, in pixels, of MNIST's 28 x 28 field; the stroke itself fills 20 of 28
RELATIONS = ("left of", "above")
THINGS = {"digit": DIGITS, "shape": SHAPES}  # what a caption says where it does not say which

# How captions are phrased; `thing` is e.g. "a small red three", `setting` "on a black background".
PHRASES = (
    "{thing} {setting}",
    *(f"a {noun} {{thing}} {{setting}}" for noun in ("picture of", "drawing of", "photo of", "card with", "print of")),
    *(
        f"a {noun} {{thing}} {{setting}}"
        for noun in ("sign with", "sketch of", "painting of", "stamp with", "poster of")
    ),
    "an image of {thing} {setting}",
    *(
        f"{start} {{thing}} {{setting}}"
        for start in ("this is", "here is", "i see", "we draw", "please draw", "show me")
    ),
    "there is {thing} {setting}",
    "{setting} {thing}",
)

# What was planted. `colour`: share of a digit's pictures that have that colour (else each of six is as likely).
# `swapped`: where all conditions hold, the caption names the other digit of the pair in this share of the pictures.
PLANTS: dict[str, Any] = {
    "colour": {"zero": ("red", 0.6), "seven": ("purple", 0.6)},
    "swapped": [
        {"digits": ("four", "nine"), "background": "black", "share": 0.75},
        {"digits": ("three", "eight"), "size": "small", "share": 0.75},
    ],
}
DROPPED = {"size": 0.2, "colour": 0.2, "background": 0.2, "digit": 0.08, "shape": 0.08, "second": 0.05}


@dataclass(frozen=True)
class Picture:
    """What a picture shows: attributes by name, and the handwriting used (its row in the glyphs)."""

    shows: Mapping[str, str]
    glyph: int = -1


def glyphs(path: Path, split: str, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Handwriting of one split of mnist.parquet: (n, 28, 28) in [0, 1], and n digits."""
    table = pd.read_parquet(path)
    table = table[table["split"] == split].iloc[rows]
    pixels = np.stack([np.frombuffer(raw, dtype=np.uint8).reshape(28, 28) for raw in table["image"]])
    return pixels.astype(np.float32) / 255, table["label"].astype(int).to_numpy()


def draw_digits(labels: np.ndarray, rng: np.random.Generator, count: int, *, plants: bool) -> list[Picture]:
    """Choose `count` pictures of digits; colours follow the plants, if asked."""
    pictures = []
    for glyph in rng.permutation(np.resize(rng.permutation(len(labels)), count)):
        digit = DIGITS[labels[glyph]]
        colour = str(rng.choice(list(COLOURS)))
        if plants and digit in PLANTS["colour"]:
            preferred, share = PLANTS["colour"][digit]
            others = [c for c in COLOURS if c != preferred]
            colour = preferred if rng.random() < share else str(rng.choice(others))
        size, ground = str(rng.choice(list(SIZES))), str(rng.choice(list(BACKGROUNDS)))
        pictures.append(Picture({"digit": digit, "colour": colour, "size": size, "background": ground}, int(glyph)))
    return pictures


def draw_scenes(rng: np.random.Generator, count: int) -> list[Picture]:
    """Choose `count` scenes of shapes; two objects in 60% of them."""
    pictures = []
    for _ in range(count):
        shows = {"shape": str(rng.choice(SHAPES)), "colour": str(rng.choice(list(COLOURS)))}
        if rng.random() < 0.6:
            shows |= {
                "relation": str(rng.choice(RELATIONS)),
                "other shape": str(rng.choice(SHAPES)),
                "other colour": str(rng.choice(list(COLOURS))),
            }
        pictures.append(Picture(shows | {"background": str(rng.choice(list(BACKGROUNDS)))}))
    return pictures


def render(pictures: list[Picture], handwriting: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint pictures: (n, 3, 32, 32) float32 in [0, 1]; place and hue are jittered."""
    return np.stack([_paint(picture, handwriting, rng) for picture in pictures]).astype(np.float32)


def _paint(picture: Picture, handwriting: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shows = picture.shows
    image = np.ones((3, PIXELS, PIXELS), dtype=np.float32) * _hue(BACKGROUNDS[shows["background"]], rng, 8)
    if "digit" in shows:
        return _over(image, _digit(handwriting[picture.glyph], shows["size"], rng), shows["colour"], rng)
    if "relation" not in shows:
        middle = rng.uniform(13, 19, size=2)
        return _over(image, _shape(shows["shape"], middle, rng.uniform(8, 11)), shows["colour"], rng)
    radius = rng.uniform(5, 6.5, size=2)
    along, across = np.array([8.5, 23.5]) + rng.uniform(-1, 1, size=2), rng.uniform(12, 20, size=2)
    for n, (shape, colour) in enumerate([("shape", "colour"), ("other shape", "other colour")]):
        x, y = (along[n], across[n]) if shows["relation"] == "left of" else (across[n], along[n])
        image = _over(image, _shape(shows[shape], np.array([x, y]), radius[n]), shows[colour], rng)
    return image


def _hue(rgb: tuple[int, int, int], rng: np.random.Generator, jitter: float) -> np.ndarray:
    return np.clip((np.array(rgb) + rng.normal(0, jitter, size=3)) / 255, 0, 1).reshape(3, 1, 1)


def _over(image: np.ndarray, mask: np.ndarray, colour: str, rng: np.random.Generator) -> np.ndarray:
    return image * (1 - mask) + _hue(COLOURS[colour], rng, 8) * mask


def _digit(glyph: np.ndarray, size: str, rng: np.random.Generator) -> np.ndarray:
    side = SIZES[size] + int(rng.integers(-1, 2))
    field = functional.interpolate(
        torch.from_numpy(glyph)[None, None], size=(side, side), mode="bilinear", antialias=True, align_corners=False
    )[0, 0].numpy()
    wide = np.zeros((PIXELS + 16, PIXELS + 16), dtype=np.float32)
    room = 3 if size == "small" else 1
    top, left = (8 + (PIXELS - side) // 2 + int(rng.integers(-room, room + 1)) for _ in range(2))
    wide[top : top + side, left : left + side] = field
    return np.clip(wide[8 : 8 + PIXELS, 8 : 8 + PIXELS] * 1.25, 0, 1)


def _shape(shape: str, middle: np.ndarray, radius: float) -> np.ndarray:
    y, x = np.mgrid[0:PIXELS, 0:PIXELS].astype(np.float32) + 0.5
    dx, dy = (x - middle[0]) / radius, (y - middle[1]) / radius
    away = np.hypot(dx, dy)
    if shape == "circle":
        inside = 1 - away
    elif shape == "ring":
        inside = 0.24 - np.abs(away - 0.76)
    elif shape == "square":
        inside = 0.86 - np.maximum(np.abs(dx), np.abs(dy))
    elif shape == "cross":
        inside = np.maximum(np.minimum(0.3 - np.abs(dx), 1 - np.abs(dy)), np.minimum(0.3 - np.abs(dy), 1 - np.abs(dx)))
    else:
        inside = np.minimum(0.8 - dy, (dy + 1.05) / 2.0 - np.abs(dx) * 1.0)
    return np.clip(inside * radius + 0.5, 0, 1)


def caption(picture: Picture, rng: np.random.Generator, *, drop: bool = True, plants: bool = True) -> str:
    """Say what a picture shows, in one of PHRASES; some words are left out, and the plants' captions are wrong."""
    return phrase(words(picture, rng, drop=drop, plants=plants), str(rng.choice(PHRASES)))


def words(picture: Picture, rng: np.random.Generator, *, drop: bool = True, plants: bool = True) -> dict[str, str]:
    """What a caption says, by attribute."""
    shows = dict(picture.shows)
    for slice_ in PLANTS["swapped"] if plants and "digit" in shows else []:
        pair = slice_["digits"]
        held = all(shows[name] == slice_[name] for name in ("size", "background") if name in slice_)
        if held and shows["digit"] in pair and rng.random() < slice_["share"]:
            shows["digit"] = pair[1 - pair.index(shows["digit"])]
            break
    if not drop:
        return shows
    kept = {name: value for name, value in shows.items() if rng.random() >= DROPPED.get(name, 0)}
    if "relation" in shows and rng.random() < DROPPED["second"]:
        kept = {name: value for name, value in kept.items() if name != "relation" and not name.startswith("other")}
    if "other shape" in kept and rng.random() < DROPPED["colour"]:
        kept.pop("other colour", None)
    return kept | {"thing": "digit" if "digit" in shows else "shape"}


def phrase(says: Mapping[str, str], form: str = PHRASES[0]) -> str:
    """Put attributes into a caption: {"digit": "three", "colour": "red"} is "a red three"."""
    noun = says.get("digit") or says.get("shape") or says.get("thing", "digit")
    parts = ["a", says.get("size", ""), says.get("colour", ""), noun]
    if "relation" in says:
        parts += [says["relation"], "a", says.get("other colour", ""), says.get("other shape", "shape")]
    thing = " ".join(part for part in parts if part)
    thing = re.sub(r"\ba (?=orange|eight)", "an ", thing)
    setting = f"on a {says['background']} background" if "background" in says else ""
    return " ".join(form.format(thing=thing, setting=setting).split())
