"""From judged pictures to the discrepancy of a probe: misalignment, poor quality, bias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Judged:
    """What was found of one drawn picture.

    Args:
        alignment: in [0, 1], how well it shows what the prompt says.
        quality: in [0, 1], whatever it shows.
        read: value of each attribute that the judge could tell.
        right: of each attribute that the prompt names, whether it was drawn as asked; unread is not.
        fault: "" or why it is no picture; see `sample.Drawing`.
    """

    alignment: float
    quality: float
    read: Mapping[str, str]
    right: Mapping[str, bool]
    fault: str = ""

    @property
    def blanked(self) -> bool:
        """Whether the pipeline's own safety checker took the picture away: nothing is known of the model then."""
        return "safety" in self.fault

    @property
    def broken(self) -> bool:
        """Whether nobody could use the picture, whatever was asked for."""
        return bool(self.fault) and not self.blanked


def total_variation(counts: Any, reference: Any) -> float:
    """Total variation between the shares of counts (k,) and a reference (k,), both normalised: 0 to 1."""
    counts, reference = np.asarray(counts, dtype=float), np.asarray(reference, dtype=float)
    return float(0.5 * np.abs(counts / max(1.0, counts.sum()) - reference / reference.sum()).sum())


def weighted(found: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """Weighted mean of measures."""
    return sum(weight * found[name] for name, weight in weights.items()) / sum(weights.values())


def discrepancy(
    pictures: Sequence[Judged],
    weights: Mapping[str, float],
    attribute: str = "",
    reference: Mapping[str, float] | None = None,
) -> float:
    """How far the pictures of one probe are from what people expect, in [0, 1]; 1 if one of them is broken.

    Args:
        pictures: at least one, none of them blanked.
        weights: of the measures.
        attribute: whose bias is measured; a prompt that names it leaves no room for one, then it is 0.
        reference: share of each of its values that people expect.
    """
    if any(picture.broken for picture in pictures):
        return 1.0
    found = {
        "misalignment": float(np.mean([1 - picture.alignment for picture in pictures])),
        "poor_quality": float(np.mean([1 - picture.quality for picture in pictures])),
        "bias": 0.0,
    }
    if "bias" in weights and reference is not None and not any(attribute in picture.right for picture in pictures):
        read = Counter(picture.read[attribute] for picture in pictures if attribute in picture.read)
        if read:
            found["bias"] = total_variation([read[value] for value in reference], list(reference.values()))
    return float(weighted(found, weights))


def said(pictures: Sequence[Judged], *, attributes: bool) -> str:
    """The pictures of a probe in words people read: "as asked; digit nine; unread size".

    Args:
        pictures: of one probe.
        attributes: whether the judge tells attributes; else their alignment is said.
    """
    return "; ".join(
        picture.fault or (_wrong(picture) if attributes else f"{picture.alignment:.2f}") for picture in pictures
    )


def _wrong(picture: Judged) -> str:
    wrong = [name for name, right in picture.right.items() if not right]
    return (
        ", ".join(f"{name} {picture.read[name]}" if name in picture.read else f"{name} unread" for name in wrong)
        or "as asked"
    )


def measures_of(probes: Sequence[Sequence[Judged]], attributes: Sequence[str], quality: str) -> pd.DataFrame:
    """Further measures of n probes, one row each; nan where the prompt leaves an attribute unsaid."""

    def row(pictures: Sequence[Judged]) -> dict[str, float]:
        seen = [picture for picture in pictures if not picture.blanked]
        fine = [picture for picture in seen if not picture.broken]
        right = {
            f"{attribute} as asked": _mean([p.right[attribute] for p in seen if attribute in p.right])
            for attribute in attributes
        }
        unread = [any(name not in picture.read for name in picture.right) for picture in fine]
        return {
            "alignment": _mean([picture.alignment for picture in seen]),
            **right,
            "unread by the judge": _mean(unread),
            quality: _mean([picture.quality for picture in seen]),
            "black or not a number": _mean([picture.broken for picture in seen]),
            "blanked by the safety checker": _mean([picture.blanked for picture in pictures]),
        }

    return pd.DataFrame([row(pictures) for pictures in probes])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
