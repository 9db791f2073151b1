"""Colours, and formatting of texts and numbers for plotly."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

RGB = tuple[int, int, int]
Scale = list[tuple[float, str]]  # (share, hexadecimal colour), from 0 to 1

# Plasma without its last, almost white part: perceptually uniform, safe for colour-blind readers, and visible on both
# white and black. Blue passes, orange fails.
RATE_SCALE: Scale = [
    (0.0, "#2d0594"), (0.17, "#6a00a8"), (0.33, "#9c179e"), (0.5, "#c5407e"),
    (0.67, "#e26561"), (0.83, "#f58b46"), (1.0, "#fdb42f"),
]  # fmt: skip
# Blue: fewer failures than before. Orange: more.
CHANGE_SCALE: Scale = [
    (0.0, "#0a4d8c"), (0.25, "#5fa2ce"), (0.5, "#f1f1ee"), (0.75, "#f1a35f"), (1.0, "#a63e00"),
]  # fmt: skip
# Cividis: a separate scale, because how often a policy looks somewhere is not a failure rate.
POLICY_SCALE: Scale = [
    (0.0, "#00224e"), (0.25, "#414d6b"), (0.5, "#7c7b78"), (0.75, "#bcae6c"), (1.0, "#fee838"),
]  # fmt: skip
# For values of an attribute that are not names of colours.
VALUE_COLOURS = ("#6a00a8", "#f58b46", "#2a7fbf", "#c5407e", "#0b6e4f", "#fdb42f", "#8a8f98", "#5fa2ce")
CSS_COLOURS = frozenset(
    (
        *("black", "silver", "gray", "grey", "white", "maroon", "red", "purple", "fuchsia", "magenta", "green", "lime"),
        *("olive", "yellow", "navy", "blue", "teal", "aqua", "cyan", "orange", "pink", "brown", "gold", "violet"),
        *("indigo", "turquoise", "crimson", "salmon", "khaki", "coral", "beige"),
    )
)
BEFORE, AFTER, CONTROL = "#c5407e", "#2a7fbf", "#8a8f98"
AGENT = "#c5407e"


def shade(rate: float, top: float) -> RGB:
    """Return the colour of RATE_SCALE for a rate, as red, green and blue."""
    return colour_at(RATE_SCALE, rate / top)


def colour_at(scale: Scale, share: float) -> RGB:
    """Interpolate a scale at a share, as red, green and blue; shares beyond its ends get the colour of the end."""
    share = min(1.0, max(0.0, share))
    upper = max(1, next(i for i, (at, _) in enumerate(scale) if at >= share))
    (a, first), (b, second) = scale[upper - 1], scale[upper]
    mix = (share - a) / (b - a)
    red, green, blue = (
        round(int(first[k : k + 2], 16) * (1 - mix) + int(second[k : k + 2], 16) * mix) for k in (1, 3, 5)
    )
    return red, green, blue


def ink_on(colour: RGB) -> str:
    """Return black or white, whichever is more readable on a colour; contrast is at least 4.58:1 (WCAG 2.2)."""
    parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return "#000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#fff"


def value_colours(values: Sequence[str]) -> dict[str, str]:
    """Return a colour for each value of an attribute: itself if all values are CSS colours, else from the palette."""
    if all(value.lower() in CSS_COLOURS for value in values):
        return {value: value.lower() for value in values}
    return {value: VALUE_COLOURS[k % len(VALUE_COLOURS)] for k, value in enumerate(values)}


def nice_ceiling(values: pd.Series | np.ndarray, least: float = 0.1) -> float:
    """Return the next tenth above the largest value, as the end of a colour scale that several pictures share."""
    highest = float(np.nanmax(np.asarray(values, dtype=float), initial=0.0))
    return min(1.0, max(least, math.ceil(highest * 10 - 1e-9) / 10))


def short(text: str, limit: int) -> str:
    """Shorten a text to `limit` characters, with an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(text: str, limit: int = 48) -> str:
    """Escape a user's text for plotly, which interprets pseudo-HTML, entities and %{templates} in every label."""
    return html.escape(short(text, limit), quote=False).replace("%{", "&#37;{")


def rounded(values: Any, digits: int = 4) -> list[float | None]:
    """Round numbers for the page, with None for gaps."""
    return [None if not math.isfinite(v) else round(float(v), digits) for v in np.asarray(values, dtype=float)]
