"""The discrepancy of a probe from its judged pictures: misalignment, poor quality, bias."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Judged:
    """The judgement of one drawn picture.

    Args:
        alignment: in [0, 1], how well it shows what the prompt says; what cannot be read is not shown.
        quality: in [0, 1], whatever it shows.
        read: the value of each attribute that the judge could tell.
        right: for each attribute that the prompt names, whether it was drawn as asked; False if it cannot be read.
        fault: "" or why it is not a picture; see `sample.Drawing`.
        unreadable: nothing that was asked for is read wrong, but something cannot be read. Always False for a judge
            that rates the whole prompt.
    """

    alignment: float
    quality: float
    read: Mapping[str, str]
    right: Mapping[str, bool]
    fault: str = ""
    unreadable: bool = False

    @property
    def blanked(self) -> bool:
        """Whether the pipeline's own safety checker removed the picture, which then says nothing about the model."""
        return "safety" in self.fault

    @property
    def charitable(self) -> Judged:
        """The picture, counted as drawn as asked if it is unreadable."""
        return replace(self, alignment=1.0) if self.unreadable else self

    @property
    def broken(self) -> bool:
        """Whether nobody could use the picture, whatever was asked for."""
        return bool(self.fault) and not self.blanked


def total_variation(counts: Any, reference: Any) -> float:
    """Total variation distance between counts (k,) and a reference (k,), both normalised: 0 to 1."""
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
    """Return how far the pictures of one probe are from what people expect, in [0, 1]; 1 if one of them is broken.

    Args:
        pictures: at least one, none of them blanked.
        weights: weights of the measures.
        attribute: the attribute whose bias is measured; bias is 0 if the prompt names it.
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
        # Pictures that the judge cannot read are no evidence, so they count as the reference has it.
        unread = len(pictures) - read.total()
        counts = [read[value] + unread * share for value, share in reference.items()]
        found["bias"] = total_variation(counts, list(reference.values()))
    return float(weighted(found, weights))


def said(pictures: Sequence[Judged], weights: Mapping[str, float], attribute: str = "") -> str:
    """Describe the pictures of a probe in words: "as asked; digit nine; size unreadable".

    Args:
        pictures: pictures of one probe.
        weights: weights of the measures; the description covers what they use.
        attribute: the attribute whose bias is measured.
    """
    return "; ".join(picture.fault or ", ".join(_said(picture, weights, attribute)) for picture in pictures)


def _said(picture: Judged, weights: Mapping[str, float], attribute: str) -> list[str]:
    parts = []
    if "misalignment" in weights:
        wrong = [name for name, right in picture.right.items() if not right]
        parts += [f"{name} {picture.read.get(name, 'unreadable')}" for name in wrong]
        if 0 < picture.alignment < 1:  # a judge that says more than yes or no
            parts.append(f"alignment {picture.alignment:.2f}")
        elif not wrong:
            parts.append("as asked" if picture.alignment else "alignment 0")
    if "poor_quality" in weights:
        parts.append(f"quality {picture.quality:.2f}")
    if "bias" in weights and attribute not in picture.right:
        parts.append(f"{attribute} {picture.read.get(attribute, 'unreadable')}")
    return parts


def measures_of(probes: Sequence[Sequence[Judged]], attributes: Sequence[str], quality: str) -> pd.DataFrame:
    """Further measures of n probes, one row each; nan for attributes that the prompt leaves unsaid."""

    def row(pictures: Sequence[Judged]) -> dict[str, float]:
        seen = [picture for picture in pictures if not picture.blanked]
        fine = [picture for picture in seen if not picture.broken]
        right = {
            f"{attribute} as asked": _mean([p.right[attribute] for p in seen if attribute in p.right])
            for attribute in attributes
        }
        return {
            "alignment": _mean([picture.alignment for picture in seen]),
            **right,
            "unreadable": _mean([picture.unreadable for picture in fine]),
            quality: _mean([picture.quality for picture in seen]),
            "black or not a number": _mean([picture.broken for picture in seen]),
            "blanked by the safety checker": _mean([picture.blanked for picture in pictures]),
        }

    return pd.DataFrame([row(pictures) for pictures in probes])


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
