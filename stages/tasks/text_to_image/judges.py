"""Judges of pictures: what they read, and what a prompt lets people expect.

A judge names the attributes of a picture (colour: red), and abstains if it cannot tell. `judge_loaders` has the
loaders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

CLIP = "prepare.judge.clip"
CLIP_FORM = "judge.json"  # stored beside a CLIP model: its prompts
Values = Mapping[str, tuple[str, ...]]


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


class Judge(Protocol):
    """Reads attributes of pictures, and rates how well pictures show what was asked for."""

    @property
    def attributes(self) -> Values:
        """The values it distinguishes, by attribute."""
        ...

    @property
    def note(self) -> Mapping[str, Any]:
        """What is known about its errors: plain data, see `judge_notes`."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """Whether alignment is with the whole prompt, and not only with the expected values."""
        ...

    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """Read n pictures, (h, w, 3) uint8 each; the reading of one does not depend on the others."""
        ...

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Rate how well each of n pictures shows its prompt and the values expected of it: (n,) in [0, 1]."""
        ...


def told(judge: Judge, reading: Reading, attribute: str) -> list[str]:
    """Return the value of an attribute for each picture of a reading; "" if the judge abstains."""
    best = reading.probabilities[attribute].argmax(1)
    return [
        "" if unsure else judge.attributes[attribute][value]
        for value, unsure in zip(best, reading.abstained[attribute], strict=True)
    ]


def judge_notes(judge: Judge, unreadable: str) -> list[str]:
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
