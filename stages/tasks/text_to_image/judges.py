"""Who looks at the pictures: what a judge reads of them, and what a prompt lets people expect.

A judge names the attributes of a picture (colour: red) and says where it cannot tell. Where judges come from:
`judge_loaders`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

CLIP = "prepare.judge.clip"
CLIP_FORM = "judge.json"  # beside the files of a CLIP model: what it is asked
Values = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Reading:
    """What a judge reads of n pictures.

    Args:
        probabilities: by attribute (n, values) float32, in the order of the judge's values; rows sum to 1.
        abstained: by attribute (n,) bool, True where the judge cannot tell.
        features: (n, d) float32, what the judge sees; pictures alike to it have features alike.
    """

    probabilities: Mapping[str, np.ndarray]
    abstained: Mapping[str, np.ndarray]
    features: np.ndarray


class Judge(Protocol):
    """Reads attributes of pictures, and says how well pictures show what was asked for."""

    @property
    def attributes(self) -> Values:
        """The values it tells apart, by attribute."""
        ...

    @property
    def note(self) -> Mapping[str, Any]:
        """What is known of its errors: plain data, see `judge_notes`."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """Whether alignment is with the whole prompt, and not with the expected values alone."""
        ...

    def read(self, pixels: Sequence[np.ndarray]) -> Reading:
        """Look at n pictures, (h, w, 3) uint8 each; what it reads of one does not depend on the others."""
        ...

    def aligned(self, reading: Reading, prompts: Sequence[str], expected: Sequence[Mapping[str, str]]) -> np.ndarray:
        """How well each of n pictures read shows what its prompt and the values expected of it say: (n,) in [0, 1]."""
        ...


def told(judge: Judge, reading: Reading, attribute: str) -> list[str]:
    """The value of an attribute for each picture of a reading; "" where the judge abstains."""
    best = reading.probabilities[attribute].argmax(1)
    return [
        "" if unsure else judge.attributes[attribute][value]
        for value, unsure in zip(best, reading.abstained[attribute], strict=True)
    ]


def judge_notes(judge: Judge, unreadable: str) -> list[str]:
    """What is known of a judge's errors, and what unreadable pictures count as, in sentences for people."""
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
    """What words let people expect of a picture, by attribute.

    A slot or column named like an attribute counts ("other_shape" is "other shape"), if its text holds one of the
    attribute's values as a word; the text of others, and one that holds two values, says nothing a judge could check.

    >>> expected_values({"background": ("black", "pink")}, {"background": "on a black background", "size": "small"})
    {'background': 'black'}
    """
    said = {slot.replace("_", " "): text.lower() for slot, text in words.items()}
    expected = {}
    for attribute, values in attributes.items():
        text = said.get(attribute.replace("_", " "), "")
        held = []
        for value in sorted(values, key=len, reverse=True):  # "light blue" is no "blue"
            text, found = re.subn(rf"(?<!\w){re.escape(value.lower())}(?!\w)", "\0", text)
            held += [value] if found else []
        if len(held) == 1:
            expected[attribute] = held[0]
    return expected
