"""A user's own model and pictures, and `faded init` called on them in this process."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from flows.init.answers import Questions
from flows.init.run import Options, init_audit
from stages.core.intervals import wilson
from stages.screening.sweep import ConceptSweep, Sweep, Worst
from tests.images import draw

CLASSES = {"flat": 0, "slanted": 2, "upright": 1}  # as `draw` numbers them
SIDE = 32
WEIGHTS = "test_resnet-shapes.safetensors"


def picture(kind: int, rng: np.random.Generator) -> np.ndarray:
    """A coloured bar: (32, 32, 3) uint8."""
    grey = draw(kind, rng).repeat(2, 0).repeat(2, 1).astype(float)
    return (grey[..., None] * rng.uniform(0.6, 1, 3)).clip(0, 255).astype(np.uint8)


def write_pictures(folder: Path, n: int, *, broken: int = 0) -> Path:
    """Pictures in one folder per class; the last ones are broken files."""
    rng = np.random.default_rng(0)
    for i in range(n):
        name, kind = list(CLASSES.items())[i % 3]
        path = folder / name / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(kind, rng)).save(path)
        if i >= n - broken:
            path.write_bytes(b"no picture")
    return folder


def options(**changes: Any) -> Options:
    """A command line with the answers that cannot be guessed."""
    answers = {"model": WEIGHTS, "data": "shapes", **changes.pop("answers", {})}
    return Options(answers, **{"yes": True, "probes": 400, **changes})


def init(folder: Path = Path(), given: Options | None = None) -> str:
    """Run `faded init` in this process; return its output."""
    out = io.StringIO()
    init_audit(folder, given or options(), Console(file=out, width=200), asks=False)
    return out.getvalue()


def swept(
    levels: list[float], rates: Sequence[float] = (), worst: Worst | None = None, clean: float = 0.0
) -> tuple[Sweep, float]:
    """A sweep of rotation with these levels, and these failures of 100 probes at each of them."""
    found = [wilson(round(100 * rate), 100) for rate in rates or [0.1] * len(levels)]
    labels = [f"{level:g}°" for level in levels]
    concept = ConceptSweep("rotation", levels, labels, found, 0, found, 0.1, worst=worst)
    return Sweep(150, 20, wilson(round(100 * clean), 100), [concept]), 0.05


def questions(given: dict[str, Any], **how: Any) -> Questions:
    """Questions without a terminal."""
    return Questions(Console(file=io.StringIO()), given, **{"asks": False, "yes": False, **how})
