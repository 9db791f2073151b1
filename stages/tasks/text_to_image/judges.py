"""Judges of pictures: what they read, and what a prompt lets people expect.

A judge names the attributes of a picture (colour: red), and abstains if it cannot tell. `judge_loaders` has the
loaders.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stages.core.errors import UsageError

Values = Mapping[str, tuple[str, ...]]
QualityMeasure = Callable[[np.ndarray], np.ndarray]
NEIGHBOURS = 3  # k of the improved precision and recall
FEWEST = 2 * (NEIGHBOURS + 1)
ANCHORS = ("Good photo.", "Bad photo.")
SHARPNESS = 100.0  # cosines are multiplied by this before the softmax


@dataclass(frozen=True)
class Reading:
    """What a judge reads of n pictures.

    Args:
        probabilities: by attribute (n, values) float32, in the order of the judge's values; rows sum to 1.
        abstained: by attribute (n,) bool, True if the judge cannot tell.
        features: (n, d) float32, the judge's features; they are similar for pictures that it finds similar.
    """

    probabilities: Mapping[str, np.ndarray]
    abstained: Mapping[str, np.ndarray]
    features: np.ndarray


class PictureJudge(Protocol):
    """Reads attributes of pictures, and rates how well pictures show what was asked for."""

    @property
    def attributes(self) -> Values:
        """The values it distinguishes, by attribute."""

    @property
    def note(self) -> Mapping[str, Any]:
        """What is known about its errors: plain data, see `judge_notes`."""

    @property
    def reads_prompts(self) -> bool:
        """Whether alignment is with the whole prompt, and not only with the expected values."""

    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """Read n pictures, (h, w, 3) uint8 each; the reading of one does not depend on the others."""

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Rate how well each of n pictures shows its prompt and the values expected of it: (n,) in [0, 1]."""


def attribute_values(judge: PictureJudge, reading: Reading, attribute: str) -> list[str]:
    """Return the value of an attribute for each picture of a reading; "" if the judge abstains."""
    best = reading.probabilities[attribute].argmax(1)
    return [
        "" if unsure else judge.attributes[attribute][value]
        for value, unsure in zip(best, reading.abstained[attribute], strict=True)
    ]


def judge_notes(judge: PictureJudge, unreadable: str) -> list[str]:
    """Describe a judge's known errors, and what unreadable pictures count as, in sentences for people."""
    if "real" not in judge.note:
        return [f"The judge: attributes are {judge.note['attributes']}."] if "attributes" in judge.note else []
    parts = [
        f"{name} wrong in {told['error']:.1%}, not told in {told['abstained']:.1%} (of pictures through an autoencoder"
        f" {judge.note['reconstructed'][name]['error']:.1%}, {judge.note['reconstructed'][name]['abstained']:.1%})"
        for name, told in judge.note["real"].items()
    ]
    return [
        f"The judge on {judge.note['pictures']:,} held-out pictures: {'; '.join(parts)}."
        f" A drawn picture in which it cannot tell what was asked for, and reads nothing wrong, is {unreadable}."
    ]


def expected_values(attributes: Values, words: Mapping[str, str]) -> dict[str, str]:
    """Return what words let people expect of a picture, by attribute.

    A slot or column named like an attribute counts ("other_shape" is "other shape") if its text contains exactly one of
    the attribute's values as a word. Other texts say nothing that a judge could check.

    >>> expected_values({"background": ("black", "pink")}, {"background": "on a black background", "size": "small"})
    {'background': 'black'}
    """
    said = {slot.replace("_", " "): text.lower() for slot, text in words.items()}
    expected = {}
    for attribute, values in attributes.items():
        text = said.get(attribute.replace("_", " "), "")
        held = []
        for value in sorted(values, key=len, reverse=True):  # "light blue" is not "blue"
            text, found = re.subn(rf"(?<!\w){re.escape(value.lower())}(?!\w)", "\0", text)
            held += [value] if found else []
        if len(held) == 1:
            expected[attribute] = held[0]
    return expected


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


def load_quality(name: str, judge: PictureJudge, real: Sequence[np.ndarray]) -> QualityMeasure:
    """Return the quality of a name, for features of this judge.

    Raises a UsageError when this judge cannot measure it, or there are too few real pictures.

    Args:
        name: "realism" or "clip_iqa".
        judge: the judge whose features are rated.
        real: real pictures (h, w, 3) uint8, for `realism`.
    """
    if name == "realism":
        return Realism(judge.read(real).features)
    embed_texts = getattr(judge, "embed_texts", None)
    if name != "clip_iqa" or embed_texts is None:
        raise UsageError("\n".join(quality_errors(name, {})) or f"discrepancy.quality: no quality is called {name!r}")
    return ClipIqa(embed_texts)
