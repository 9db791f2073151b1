"""Quality of a picture, whatever was asked for: in [0, 1], from the judge's features.

A quality is called with a judge's features of n pictures and returns n numbers; each depends on its picture alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stages.errors import UsageError
from stages.tasks.text_to_image.judges import Judge

Quality = Callable[[np.ndarray], np.ndarray]
NEIGHBOURS = 3  # k of the improved precision and recall
FEWEST = 2 * (NEIGHBOURS + 1)
ANCHORS = ("Good photo.", "Bad photo.")
SHARPNESS = 100.0  # cosines are multiplied by this before the softmax


class Realism:
    """How near a picture is to real ones, relative to their density there (Kynkäänniemi et al. 2019, section 5).

    Each real picture has a sphere around it that reaches to its third nearest neighbour; the half with the largest
    spheres, where real pictures are rare, is left out. The realism R of a picture is the largest ratio of a sphere's
    radius to the picture's distance from its centre: at least 1 within the real ones. The value is R / (1 + R), so at
    least .5 within them, and it ranks as R does.

    Args:
        real: (n, d) features of real pictures, n >= 8.
    """

    def __init__(self, real: np.ndarray) -> None:
        if len(real) < FEWEST:
            raise UsageError(
                f"discrepancy.quality: realism needs {FEWEST} real pictures or more to compare with, found {len(real)}"
            )
        self._real = real.astype(np.float64)
        radii = np.array([np.partition(self._distances(one), NEIGHBOURS)[NEIGHBOURS] for one in self._real])
        dense = radii <= np.median(radii)
        self._real, self._radii = self._real[dense], radii[dense]

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Features (n, d) of pictures -> (n,) in [0, 1]."""
        # R / (1 + R) with R = radius / distance; 0 / 0, a copy of a real picture that has copies itself, counts as 1.
        values = []
        for one in features.astype(np.float64):
            distances = self._distances(one)
            reach = self._radii + distances
            values.append(np.max(np.where(reach > 0, self._radii / np.where(reach > 0, reach, 1), 1), initial=0))
        return np.array(values, dtype=np.float32)

    def _distances(self, one: np.ndarray) -> np.ndarray:
        # One picture at a time: the rounding of a matrix product depends on the number of pictures.
        found: np.ndarray = np.sqrt(((self._real - one) ** 2).sum(1))
        return found


class ClipIqa:
    """Whether a CLIP model takes a picture for a good photo or a bad one (Wang et al. 2023, section 3.1).

    It is the probability of the first of two opposite prompts, as torchmetrics computes it. The class of torchmetrics
    only takes models from a list of names, and no folder.

    Args:
        embed_texts: texts -> (n, d) embeddings of length 1, by the model that embedded the pictures.
    """

    def __init__(self, embed_texts: Callable[[Sequence[str]], np.ndarray]) -> None:
        self._anchors = embed_texts(ANCHORS)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Embeddings (n, d) of pictures, of length 1 -> (n,) in [0, 1]."""
        good, bad = (SHARPNESS * (features * anchor).sum(1) for anchor in self._anchors)
        return (1 / (1 + np.exp(np.clip(bad - good, -80, 80)))).astype(np.float32)


def quality_errors(name: str, judge: Mapping[str, Any]) -> list[str]:
    """List why a quality cannot be measured with the judge of a `prepare.judge:` block; empty if it can."""
    if name == "clip_iqa" and "clip" not in judge:
        found = ", ".join(map(str, judge)) or "nothing"
        return [f"discrepancy.quality: clip_iqa needs a judge of the kind clip, prepare.judge is of {found}"]
    return []


def load_quality(name: str, judge: Judge, real: Sequence[np.ndarray]) -> Quality:
    """Return the quality of a name, for features of this judge.

    Args:
        name: "realism" or "clip_iqa".
        judge: the judge whose features are rated.
        real: real pictures (h, w, 3) uint8, for `realism`.

    Raises:
        UsageError: when this judge cannot measure it, or there are too few real pictures.
    """
    if name == "realism":
        return Realism(judge.read(real).features)
    embed_texts = getattr(judge, "embed_texts", None)
    if name != "clip_iqa" or embed_texts is None:
        raise UsageError("\n".join(quality_errors(name, {})) or f"discrepancy.quality: no quality is called {name!r}")
    return ClipIqa(embed_texts)
