"""Tallies, contact sheets and exhibits of a model that draws, with coloured squares as pictures."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from stages.concepts import Concept
from stages.landscape.bias import compare_bias, measure_bias
from stages.pages.gallery import PicturedCell
from stages.records import PairedProbe
from stages.tasks.contract import Exhibit, Sheet, Tally
from tests.report_samples import HOSTILE, make_comparison, make_inputs, shelf

COLOURS = {"red": (210, 40, 40), "green": (40, 160, 60), "blue": (50, 80, 220)}
THIRDS = dict.fromkeys(COLOURS, 1 / 3)
DIGITS = ("three", "four", "seven", "nine")
SLOTS = (
    Concept("digit", ("digit", *DIGITS), ordered=False, neutral="digit"),
    Concept("colour", ("", *COLOURS), ordered=False, neutral=""),
    Concept("background", ("", "on a black background", "on a white background"), ordered=False, neutral=""),
    Concept("size", ("", "small", "large"), ordered=False, neutral=""),
)


def png(*colours: str, side: int = 32) -> bytes:
    """Squares of these colours side by side."""
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((side, side * len(colours), 3), dtype=np.uint8)
    for k, colour in enumerate(colours):
        pixels[side // 4 : -side // 4, k * side + side // 4 : (k + 1) * side - side // 4] = COLOURS[colour]
    buffer = io.BytesIO()
    image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def tally(subject: str, counts: Sequence[int], guidance: float = 7.5, unread: int = 0) -> Tally:
    return Tally(subject, "colour", guidance, dict(zip(COLOURS, counts, strict=True)), THIRDS, unread)


def tallies(skewed: Sequence[str] = ("seven",), *guidances: float) -> list[Tally]:
    """48 answers for each digit: nearly all red for the skewed ones, about even for the others."""
    return [
        tally(f"digit {digit}", (38, 4, 4) if digit in skewed and scale > 1 else (17, 15, 16), scale, unread=2)
        for digit in DIGITS
        for scale in guidances or (7.5, 1.0)
    ]


def sheet() -> Sheet:
    return Sheet("digits by colour, no size or background said", DIGITS, [(c, png(c, c, c, c)) for c in COLOURS])


def exhibit(k: int, caption: str = "expected red four") -> Exhibit:
    words = [
        ("a ", ""),
        ("red", "colour"),
        (" ", ""),
        ("four", "digit"),
        (" ", ""),
        ("on a black background", "background"),
    ]
    colours = [*COLOURS][k % 3 :] + [*COLOURS][: k % 3]
    return Exhibit(f"M1.{k} - {caption}", drawn=png(*colours), words=words)


def picture_landscape(*, hostile: bool = False) -> dict[str, Any]:
    """Arguments of `write_landscape` for a model that draws."""
    inputs = make_inputs(*SLOTS, images=False)
    said = HOSTILE if hostile else "expected red four"
    inputs["galleries"] = {m: shelf(m, [exhibit(k, said) for k in range(3)], [exhibit(3)]) for m in ("M1", "M2", "M3")}
    inputs["summary"]["bias"] = [entry.to_json() for entry in measure_bias(tallies(), seed=1)]
    if hostile:
        named = Tally(HOSTILE, HOSTILE, 1.0, {HOSTILE: 9, "b": 1}, {HOSTILE: 0.5, "b": 0.5})
        inputs["summary"]["bias"] += [entry.to_json() for entry in measure_bias([named], seed=1)]
    cells = [PicturedCell(f"digit four, colour {c}", 0.9, 0.7, 1.0, exhibit(k)) for k, c in enumerate(COLOURS)]
    unseen = PicturedCell(HOSTILE if hostile else "digit nine, colour unsaid", 0.02, 0.0, 0.1)
    inputs |= {"extremes": {"worst": cells, "best": [unseen]}, "sheets": [sheet()], "nearest": [exhibit(1), exhibit(2)]}
    return inputs


def picture_comparison() -> dict[str, Any]:
    """Arguments of `write_comparison` for a model that draws; the repair makes "nine" skewed."""
    inputs = make_comparison(*SLOTS)
    models = {"before": tallies(("seven",)), "after": tallies(("nine",)), "control": tallies(("seven",))}
    bias = compare_bias(models, seed=1)
    assert bias is not None
    inputs["verdict"]["bias"] = bias.to_json()
    before, after = ("read as red, seven", "read as red, four")
    drawn, cell = png("red", "red", "red"), (0,) * len(SLOTS)
    shown = [PairedProbe(exhibit(k), before, after, drawn, f"item-{k}", cell) for k in range(3)]
    inputs |= {"galleries": {"fixed": shown}, "sheets": {"before": [sheet()], "after": [sheet()]}}
    return inputs
