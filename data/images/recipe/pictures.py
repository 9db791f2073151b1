"""Write the captioned pictures of the default audits: `python data/images/recipe/pictures.py`.

They are real ones: handwriting that neither generator nor judges have seen, painted as for these, and scenes of shapes.
Every combination of digit, colour, size and background is there three times to repair with and once to calibrate by.
Captions are true, though some leave words out; no colour is preferred.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from networks import as_uint8
from world import BACKGROUNDS, COLOURS, DIGITS, SIZES, Picture, caption, draw_scenes, glyphs, render

from stages.tasks.text_to_image.pictures import to_png

SEED = 7
HERE = Path(__file__).parent
MNIST = HERE.parents[1] / "mnist" / "inputs" / "mnist.parquet"
EACH = {"repair": 3, "calibrate": 1}  # digits of a combination
SCENES = {"repair": 300, "calibrate": 150}
COLUMNS = ("digit", "shape", "colour", "size", "relation", "other shape", "other colour", "background")


def main() -> None:
    """Draw, paint, caption and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE.parent / "inputs" / "pictures.parquet")
    arguments = parser.parse_args()
    rng = np.random.default_rng(SEED)
    handwriting, labels = glyphs(MNIST, "repair")
    chosen = choose_digits(labels, rng)
    chosen += [(split, "scenes", picture) for split, count in SCENES.items() for picture in draw_scenes(rng, count)]
    images = as_uint8(render([picture for _, _, picture in chosen], handwriting, rng)).permute(0, 2, 3, 1).numpy()
    rows = []
    for number, ((split, kind, picture), image) in enumerate(zip(chosen, images, strict=True)):
        shows = {name.replace(" ", "_"): picture.shows.get(name, "") for name in COLUMNS}
        text = caption(picture, rng, plants=False)
        rows.append(
            {"id": f"{kind}-{number}", "split": split, "kind": kind, "text": text, **shows, "image": to_png(image)}
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(arguments.out, compression="zstd", index=False)
    print(f"{arguments.out}: {len(rows)} pictures, {arguments.out.stat().st_size:,} bytes")


def choose_digits(labels: np.ndarray, rng: np.random.Generator) -> list[tuple[str, str, Picture]]:
    """Every combination as often as EACH says, each with handwriting of its own: (split, kind, picture)."""
    combinations = list(itertools.product(COLOURS, SIZES, BACKGROUNDS))
    chosen: list[tuple[str, str, Picture]] = []
    for number, digit in enumerate(DIGITS):
        unused = list(rng.permutation(np.flatnonzero(labels == number)))
        for split, each in EACH.items():
            for colour, size, background in combinations * each:
                shows = {"digit": digit, "colour": colour, "size": size, "background": background}
                chosen.append((split, "digits", Picture(shows, int(unused.pop()))))
    return chosen


if __name__ == "__main__":
    main()
