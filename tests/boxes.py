"""An audit of a tiny text-to-image pipeline that should draw coloured boxes, with a judge of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.tasks.contract import Compute, TaskContext
from tests.shared import once
from tests.tiny_judges import tiny_judge
from tests.tiny_pipelines import tiny_pipeline

COLOURS = {"red": (220, 30, 40), "green": (30, 160, 60), "blue": (40, 70, 220)}
GROUNDS = {"black": 10, "white": 245}
LEVELS = {"colour": ["", *COLOURS], "background": ["", "on a black background", "on a white background"]}
ATTRIBUTES = {"colour": tuple(COLOURS), "background": tuple(GROUNDS)}
TEMPLATES = [
    f"{word} {{colour}} box {{background}}" for word in (*"abcdefghij", "one", "my", "his", "its", "the", "any")
]


def box(colour: str, ground: str, jitter: int = 0) -> bytes:
    """A picture of a box, 16 x 16 pixels, as PNG."""
    from stages.tasks.text_to_image.pictures import to_png

    return to_png(box_pixels(colour, ground, jitter))


def box_pixels(colour: str, ground: str, jitter: int = 0) -> np.ndarray:
    """A picture of a box: (16, 16, 3) uint8."""
    image = np.full((16, 16, 3), GROUNDS[ground], dtype=np.uint8)
    image[4 + jitter : 12 + jitter, 4:12] = COLOURS[colour]
    return image


def captioned() -> pd.DataFrame:
    """Boxes of all colours on all grounds, three of each to calibrate with and three to repair with."""
    return pd.DataFrame(
        {"id": f"{c}-{g}-{n}", "text": f"see a {c} box on {g}", "image": box(c, g, n % 4), "colour": c, "background": g}
        | {"split": "calibrate" if n < 3 else "repair"}
        for c in COLOURS
        for g in GROUNDS
        for n in range(6)
    )


def boxes(inputs: Path, **config: Any) -> TaskContext:
    """The audit's settings; makes its inputs if they are missing. `config` changes the prepare: block."""
    if not inputs.exists():
        inputs.mkdir(parents=True)
        tiny_pipeline(inputs / "model")
        tiny_judge(inputs / "judge", ATTRIBUTES)
        captioned().to_parquet(inputs / "boxes.parquet")
    prepare = {
        "model": {"diffusers": "model"},
        "data": {"parquet": "boxes.parquet"},
        "judge": {"attributes": "judge"},
        "templates": TEMPLATES,
        "items": {"discover": 5, "repair": 2, "test": 10},
        "images": 2,
        "sampling": {"steps": 2, "guidance": 2.0},
    }
    return TaskContext(
        audit="boxes",
        seed=7,
        config=prepare | config,
        concepts=LEVELS,
        discrepancy={"threshold": 0.5},
        inputs=inputs,
        compute=Compute(threads=1, batch_size=4),
    )


def prepared_boxes() -> Path:
    """A folder with inputs/ and prepare/ of this audit, made once per session; never change it."""
    return once("boxes", _prepare)


def _prepare(home: Path) -> None:
    from stages.tasks.text_to_image import TextToImage

    (home / "prepare").mkdir(parents=True)
    TextToImage.prepare(boxes(home / "inputs"), home / "prepare")
