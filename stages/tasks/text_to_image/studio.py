"""Drawn pictures are judged, and the judgements of a probe become its discrepancy.

The threshold is calibrated on real captioned pictures, of which it says how often it calls them a failure.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from stages.core.errors import UsageError
from stages.tasks.text_to_image.judges import PictureJudge, QualityMeasure, attribute_values, expected_values
from stages.tasks.text_to_image.pictures import from_png
from stages.tasks.text_to_image.sample import Drawing, PictureModel, bar

AT_ONCE = 64  # pictures held in memory before they are judged
PART = 32  # pictures that each of several processes draws and judges at once


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
    def charitable(self) -> Self:
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


class PictureOrder(NamedTuple):
    """One picture to draw.

    Args:
        prompt: the whole prompt.
        expected: (attribute, value) pairs that the prompt names and the judge can check.
        guidance: guidance scale; None is the sampler's.
    """

    prompt: str
    seed: int
    expected: tuple[tuple[str, str], ...] = ()
    guidance: float | None = None


@dataclass
class Studio:
    """Draws and judges pictures. Judged pictures are not drawn again; pixels are not kept, as they can be redrawn.

    Args:
        quality: rates a picture by the judge's features, whatever it shows.
        shared: calls `look_anew` for several parts in other processes; None uses this process.
        copies: number of processes.
    """

    painter: PictureModel
    judge: PictureJudge
    quality: QualityMeasure
    shared: Callable[[Sequence[Sequence[PictureOrder]]], Sequence[list[Judged]]] | None = None
    copies: int = 1

    def __post_init__(self) -> None:
        self._known: dict[PictureOrder, Judged] = {}

    def look(self, orders: Sequence[PictureOrder], label: str | None = None) -> list[Judged]:
        """Judge n pictures; `label` names the progress bar, None shows none."""
        unknown = [order for order in dict.fromkeys(orders) if order not in self._known]
        with bar(label if unknown else None, len(unknown)) as tell:
            for guidance in dict.fromkeys(order.guidance for order in unknown):
                alike = [order for order in unknown if order.guidance == guidance]
                for start in range(0, len(alike), AT_ONCE * self.copies):
                    group = alike[start : start + AT_ONCE * self.copies]
                    size = AT_ONCE if self.copies == 1 else PART
                    parts = [group[at : at + size] for at in range(0, len(group), size)]
                    found = map(self.look_anew, parts) if self.shared is None else self.shared(parts)
                    for part, judged in zip(parts, found, strict=True):
                        self._known.update(zip(part, judged, strict=True))
                    tell(sum(order in self._known for order in unknown), "")
        return [self._known[order] for order in orders]

    def look_anew(self, orders: Sequence[PictureOrder]) -> list[Judged]:
        """Draw and judge n pictures of one guidance scale that were not judged before."""
        return self.judged(self.draw(orders), orders)

    def draw(self, orders: Sequence[PictureOrder], label: str | None = None) -> list[Drawing]:
        """Draw n pictures of one guidance scale."""
        if not orders:
            return []
        prompts, seeds = [order.prompt for order in orders], [order.seed for order in orders]
        return self.painter.draw(prompts, seeds, orders[0].guidance, label=label)

    def show(self, orders: Sequence[PictureOrder], label: str | None = None) -> list[Drawing]:
        """Draw n pictures of one guidance scale for people; their judgements are remembered."""
        unique = list(dict.fromkeys(orders))
        drawn = dict(zip(unique, self.draw(unique, label), strict=True))
        unknown = [order for order in unique if order not in self._known]
        self._known.update(zip(unknown, self.judged([drawn[order] for order in unknown], unknown), strict=True))
        return [drawn[order] for order in orders]

    def judged(self, drawings: Sequence[Drawing], orders: Sequence[PictureOrder]) -> list[Judged]:
        pixels = [drawing.pixels for drawing in drawings]
        found = self.assess(pixels, [order.prompt for order in orders], [dict(order.expected) for order in orders])
        return [
            judged if not drawing.fault else Judged(0.0, 0.0, {}, dict.fromkeys(judged.right, False), drawing.fault)
            for judged, drawing in zip(found, drawings, strict=True)
        ]

    def assess(
        self, pixels: Sequence[np.ndarray], prompts: Sequence[str], expected: Sequence[Mapping[str, str]]
    ) -> list[Judged]:
        """Judge any n pictures (h, w, 3) by what was asked for."""
        reading = self.judge.read(pixels)
        aligned = self.judge.aligned(reading, prompts, expected)
        quality = self.quality(reading.features)
        values = {attribute: attribute_values(self.judge, reading, attribute) for attribute in self.judge.attributes}
        judged = []
        for n, wanted in enumerate(expected):
            read = {attribute: named[n] for attribute, named in values.items() if named[n]}
            right = {attribute: read.get(attribute) == value for attribute, value in wanted.items()}
            wrong = any(not shown and name in read for name, shown in right.items())
            unreadable = not (self.judge.reads_prompts or wrong or all(right.values()))
            judged.append(Judged(float(aligned[n]), float(quality[n]), read, right, unreadable=unreadable))
        return judged


GROUPS = 2000  # probes that are put together from real pictures at random
SPLITS = ("calibrate", "repair")  # of captioned pictures
HALVES = ("set", "check")  # of the split calibrate: one sets the threshold, the other checks it


@dataclass(frozen=True)
class PictureCalibration:
    """Measures of real captioned pictures, judged as if they had been drawn.

    Args:
        records: one row per picture: `half` (see HALVES), `misalignment` and `poor_quality`, each in [0, 1]. Those of
            `calibration_records` also have `unreadable` (bool), which counts as misalignment.
        images: pictures of a probe.
        reference: shares of the values of the attribute whose bias is measured; None if it is not.
    """

    records: pd.DataFrame
    images: int
    reference: Mapping[str, float] | None

    def probes(self, half: str, weights: Mapping[str, float], seed: int = 0) -> np.ndarray:
        """Return discrepancies (GROUPS,) of probes put together from pictures of a half, with replacement.

        Real pictures do not have a model's bias, so the attribute is drawn from the reference.
        """
        rng = np.random.default_rng([seed, HALVES.index(half)])
        own = self.records[self.records["half"] == half]
        if own.empty:
            raise UsageError("prepare.data: the split calibrate needs 4 pictures or more, better 100")
        rows = rng.integers(len(own), size=(GROUPS, self.images))
        found = {name: own[name].to_numpy()[rows].mean(axis=1) for name in ("misalignment", "poor_quality")}
        if self.reference is not None:
            shares = np.array(list(self.reference.values()))
            counts = rng.multinomial(self.images, shares / shares.sum(), size=GROUPS)
            found["bias"] = np.array([total_variation(row, shares) for row in counts])
        return weighted(found, weights)

    def threshold(self, weights: Mapping[str, float], false_alarms: float) -> float:
        """Return the threshold that probes of real pictures exceed in at most `false_alarms` of the cases.

        Raises a UsageError when no threshold below 1 does that.
        """
        values = self.probes("set", weights).astype(np.float32)  # as in probes, so that 1/3 is equal in both
        found = float(np.quantile(values, 1 - false_alarms, method="higher"))
        most = self._most(weights)
        if found >= most - 1e-6 and most < 1:
            raise UsageError(
                f"discrepancy.threshold: no probe could fail: {self.images} pictures that are all alike are as far from"
                f" the reference as chance takes {false_alarms:g} of the probes; raise prepare.images"
            )
        if found >= 1:
            raise UsageError(
                f"discrepancy.threshold: more than {false_alarms:g} of the real captioned pictures have the largest"
                " discrepancy there is: the judge does not fit prepare.data, or their captions are wrong"
            )
        return found

    def _most(self, weights: Mapping[str, float]) -> float:
        """The largest possible discrepancy: of pictures all wrong, all bad, all of the rarest value."""
        bias = 1 - min(self.reference.values()) if self.reference else 1.0
        return float(weighted({"misalignment": 1.0, "poor_quality": 1.0, "bias": bias}, weights))

    def false_alarms(self, weights: Mapping[str, float], threshold: float) -> dict[str, Any]:
        """Return how often probes of real pictures that did not set the threshold exceed it, see Measured.false_alarms.

        The interval is Wilson's for the number of probes that can be made without using a picture twice.
        """
        above = float((self.probes("check", weights).astype(np.float32) > np.float32(threshold)).mean())
        pictures = int((self.records["half"] == "check").sum())
        n = max(1, pictures // self.images)
        interval = binomtest(round(above * n), n).proportion_ci(method="wilson")
        low, high = min(float(interval.low), above), max(float(interval.high), above)
        return {"rate": above, "low": low, "high": high, "articles": n, "unit": "probes", "held_out": True}


def share_out(pictures: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Assign each captioned picture to one purpose.

    If the data name no split, a random third is to calibrate with and the rest to repair with. Every other picture to
    calibrate with becomes `reference`, by which the quality of pictures is measured. Raises a UsageError when the data
    name another split.
    """
    if strange := sorted(set(pictures["split"]) - {"", *SPLITS}):
        raise UsageError(f"prepare.data: expected the splits {', '.join(SPLITS)}, found {', '.join(strange)}")
    # Shuffled: data are often sorted, so that every other picture would be of another kind.
    pictures = pictures.sample(frac=1, random_state=seed).reset_index(drop=True)
    unnamed = np.where(np.arange(len(pictures)) < len(pictures) / 3, *SPLITS)
    split = np.where(pictures["split"] == "", unnamed, pictures["split"])
    odd = np.cumsum(split == "calibrate") % 2 == 1
    return pictures.assign(split=np.where((split == "calibrate") & odd, "reference", split))


def calibration_records(studio: Studio, pictures: pd.DataFrame) -> list[dict[str, Any]]:
    """Judge real captioned pictures as if they had been drawn; return plain data for the attributes of a table."""
    pictures = pictures[pictures["split"] == "calibrate"]
    shown = [from_png(image) for image in pictures["image"]]
    expected = [expected_of(row, studio.judge.attributes) for row in pictures.to_dict("records")]
    judged = studio.assess(shown, pictures["text"].tolist(), expected)
    return [
        {
            "half": HALVES[n % 2],
            "misalignment": 1 - picture.alignment,
            "poor_quality": 1 - picture.quality,
            "unreadable": picture.unreadable,
        }
        for n, picture in enumerate(judged)
    ]


def expected_of(picture: Mapping[str, Any], attributes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return what a captioned picture shows, by attribute: from its columns, or its caption if it has no such column.

    An empty column means that there is nothing to see. A value in the caption counts if no other value is in it.
    """
    columns = {name.replace("_", " "): str(value) for name, value in picture.items() if isinstance(value, str)}
    untold = [attribute for attribute in attributes if attribute.replace("_", " ") not in columns]
    from_caption = expected_values(attributes, dict.fromkeys(untold, picture["text"]))
    return from_caption | expected_values(attributes, columns)
