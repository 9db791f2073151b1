"""A tiny image data set, and a workspace around it: striped squares that a small network learns in a second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.tasks.contract import Compute, TaskContext
from tests.shared import once

SIDE = 16
CLASSES = ["flat", "upright", "slanted"]
POOLS = {"train": 600, "discover": 60, "repair": 150, "test": 150}


def draw(target: int, rng: np.random.Generator) -> np.ndarray:
    """A horizontal, vertical or diagonal bar near the middle: (16, 16) uint8."""
    image = rng.integers(0, 60, (SIDE, SIDE))
    at = np.arange(3, 13)
    shift = rng.integers(-2, 3)
    rows, columns = {0: (np.full(10, 8), at), 1: (at, np.full(10, 8)), 2: (at, at)}[target]
    for thick in (0, 1):
        image[
            np.clip(rows + shift + (thick if target == 0 else 0), 0, SIDE - 1), np.clip(columns + thick, 0, SIDE - 1)
        ] = 220
    return image.astype(np.uint8)


def write_images(
    path: Path, *, corrupt: int = 0, classes: list[str] | None = None, pools: dict[str, int] = POOLS
) -> None:
    """Write a table in the form of data/mnist/build.py; the last `corrupt` images are cut short."""
    rng = np.random.default_rng(0)
    rows = [
        {"id": f"{split}-{i}", "split": split, "label": CLASSES[i % 3], "image": draw(i % 3, rng).tobytes()}
        for split, n in pools.items()
        for i in range(n)
    ]
    for row in rows[len(rows) - corrupt :]:
        row["image"] = row["image"][:-1]
    meta = {"images": json.dumps({"shape": [1, SIDE, SIDE], "classes": classes or CLASSES})}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(meta), path)


def image_context(inputs: Path, **changes: Any) -> TaskContext:
    """The context of an audit of these images; keyword arguments replace its parts."""
    parts: dict[str, Any] = {
        "audit": "stripes",
        "seed": 3,
        "config": {
            "model": {"train": "small_cnn", "epochs": 6, "batch_size": 32},
            "data": {"parquet": "images.parquet"},
            "items": {"discover": 60, "repair": 150, "test": 150},
        },
        "concepts": {"rotation": [0, 15, 30], "darkening": [0, 0.4, 0.8], "noise": [0, 0.1, 0.2]},
        "discrepancy": {},
        "inputs": inputs,
        "compute": Compute("cpu", threads=1, batch_size=32),
    }
    return TaskContext(**{**parts, **changes})


def stripes() -> Path:
    """A folder with inputs/ and prepare/ of the audit of these images, made once per session; never change it."""
    return once("stripes", _prepare)


def _prepare(home: Path) -> None:
    from stages.tasks.classification import ImageClassification

    write_images(home / "inputs" / "images.parquet")
    (home / "prepare").mkdir()
    metrics = ImageClassification.prepare(image_context(home / "inputs"), home / "prepare")
    (home / "metrics.json").write_text(json.dumps(metrics))
