"""Measures of inputs in which changes leave a trace, and the concepts whose levels they show.

A table of measures has one row per input and one column per measure. `PICTURES`, `TEXTS` and `ROWS` name, by concept,
the columns that show it. All columns together are read, so a measure of one concept also helps to distinguish others.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from torch import Tensor

_LIGHT = ("darkest", "middle", "brightest", "mean")
_SPREAD = ("spread", *_LIGHT)
_SHARP, _GRAIN, _COLOUR = ("sharp", "steep"), ("grain",), ("colour",)

PICTURES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("darkening", "brightness", "brightness_c"), _LIGHT),
    **dict.fromkeys(("contrast", "contrast_c", "fog_c"), _SPREAD),
    **dict.fromkeys(("saturation", "saturate_c"), _COLOUR),
    **dict.fromkeys(
        ("blur", "gaussian_blur_c", "defocus_blur_c", "motion_blur_c", "zoom_blur_c", "glass_blur_c"), _SHARP
    ),
    **dict.fromkeys(("noise", "gaussian_noise_c", "shot_noise_c", "impulse_noise_c", "speckle_noise_c"), _GRAIN),
}

_UNKNOWN = ("unknown",)
TEXTS: Mapping[str, tuple[str, ...]] = {
    "letter_case": ("capitals", "initials", "mixed"),
    **dict.fromkeys(("typos", "misspellings", "swap_characters", "delete_characters", "insert_characters"), _UNKNOWN),
    "repeat_characters": ("doubled",),
    "repeat_words": ("repeated",),
    "drop_stop_words": ("stop",),
    "remove_punctuation": ("marks",),
    "lost_spaces": ("spaces",),
    "politeness": ("polite", "rude"),
}

ROWS: Mapping[str, tuple[str, ...]] = {
    "gain": ("high",),
    "drift": ("high",),
    "noise": ("far",),
    "decimal_slips": ("slipped",),
    "missing": ("usual",),
}


def of_pictures(images: Tensor) -> pd.DataFrame:
    """Measure pictures (n, c, h, w) in [0, 1]: how bright, sharp, grainy and colourful they are."""
    import torch
    from torch.nn import functional

    grey = images.mean(1, keepdim=True)
    flat = grey.flatten(1)
    ordered = flat.sort(1).values
    darkest, middle, brightest = (ordered[:, int(share * (flat.shape[1] - 1))] for share in (0.01, 0.5, 0.99))
    spread = flat.std(1)
    # What is left of a pixel once its neighbours are subtracted: edges in sharp pictures, and noise (Immerkaer 1996).
    kernel = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], device=images.device) / 6
    rest = functional.conv2d(grey, kernel[None, None]).flatten(1)
    steps = (grey[..., 1:] - grey[..., :-1]).flatten(1)
    found = {
        "darkest": darkest,
        "middle": middle,
        "brightest": brightest,
        "mean": flat.mean(1),
        "spread": spread,
        "sharp": rest.std(1) / (spread + 1e-4),
        "steep": steps.std(1) / (spread + 1e-4),
        "grain": rest.abs().median(1).values,
        "colour": (images.amax(1) - images.amin(1)).flatten(1).mean(1),
    }
    return pd.DataFrame({name: values.cpu().numpy().astype(np.float64) for name, values in found.items()})


_WORD = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*")
_POLITE = re.compile(
    r"\b(please|thanks?|thank you|grateful|appreciated?|excuse me|kindly|sorry|would you mind)\b", re.I
)
_RUDE = re.compile(
    r"\b(idiot|stupid|dumb|useless|moron|hurry up|shut up|waste my time|damn|hell|crap|fuck\w*|shit\w*|wtf)\b", re.I
)
_SHORTEST = 3  # letters of a word that can be unknown


def words_of(text: str) -> list[str]:
    """Return the words of a text in order, without numbers and marks."""
    return _WORD.findall(text)


def of_texts(texts: Sequence[str], known: Sequence[Container[str]]) -> pd.DataFrame:
    """Measure n texts: capitals, words that nobody knows, doubled letters, marks, spaces, and courtesy.

    Args:
        texts: the texts.
        known: for each, words in lower case that are known in addition to frequent English ones.
    """
    return pd.DataFrame([_of_text(text, also) for text, also in zip(texts, known, strict=True)], columns=_NAMES)


_NAMES = (
    *("capitals", "initials", "mixed", "unknown", "doubled", "repeated", "stop", "marks", "spaces"),
    *("polite", "rude"),
)


def _of_text(text: str, known: Container[str]) -> list[float]:
    from stages.concepts.texts.lexicon import is_stop_word

    words = words_of(text)
    lower = [word.lower() for word in words]
    letters = [letter for word in words for letter in word if letter.isalpha()]
    long = [word for word in lower if len(word) >= _SHORTEST]
    frequent = _frequent()
    pairs = [(a, b) for word in lower for a, b in pairwise(word)]
    counts = (
        (sum(letter.isupper() for letter in letters), len(letters)),
        (sum(word[0].isupper() for word in words), len(words)),
        (sum(word[1:] not in (word[1:].lower(), word[1:].upper()) for word in words), len(words)),
        (sum(word not in known and word not in frequent for word in long), len(long)),
        (sum(a == b for a, b in pairs), len(pairs)),
        (sum(a == b for a, b in pairwise(lower)), len(words)),
        (sum(is_stop_word(word, "") for word in lower), len(words)),
        (sum(not (sign.isalnum() or sign.isspace()) for sign in text), len(words)),
        (sum(sign.isspace() for sign in text), len(text)),
        (len(_POLITE.findall(text)), 1),
        (len(_RUDE.findall(text)), 1),
    )
    return [part / max(whole, 1) for part, whole in counts]


@lru_cache(maxsize=1)
def _frequent() -> frozenset[str]:
    from textblob.en import spelling

    return frozenset(spelling)


def of_prompts(prompts: Sequence[str], slots: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Measure prompts: for each slot which of its phrases are said first and second, by number; -1 for none.

    Args:
        prompts: n prompts.
        slots: the levels of each slot; "" is not looked for.
    """
    found = {}
    for name, phrases in slots.items():
        longest = sorted((phrase for phrase in phrases if phrase), key=len, reverse=True)
        said = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)", re.I)
        number = {phrase.lower(): i for i, phrase in enumerate(phrases)}
        each = [[number[match.lower()] for match in said.findall(prompt)] for prompt in prompts]
        found[f"{name} first"] = [(*said, -1)[0] for said in each]
        found[f"{name} second"] = [(*said, -1, -1)[1] for said in each]
    return pd.DataFrame(found, dtype=float)


def of_rows(values: np.ndarray, spread: np.ndarray, usual: np.ndarray) -> pd.DataFrame:
    """Measure rows of numbers: how high, how far from usual, with how many outliers and usual values.

    Args:
        values: (n, d).
        spread: (d,) standard deviations.
        usual: (d,) medians.
    """
    away = (values - usual) / spread
    sizes = np.sort(np.abs(away), axis=1)
    return pd.DataFrame(
        {
            "high": np.median(away, axis=1),
            "far": np.median(sizes, axis=1),
            "slipped": (sizes > 10).sum(1).astype(float),
            "usual": (values == usual).mean(1),
            "farthest": sizes[:, -1],
        }
    )
