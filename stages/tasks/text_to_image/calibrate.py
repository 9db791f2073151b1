"""Calibration of the threshold on real captioned pictures, and how often it calls them a failure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from stages.core.errors import UsageError
from stages.tasks.text_to_image.judges import expected_values
from stages.tasks.text_to_image.pictures import from_png
from stages.tasks.text_to_image.studio import Studio, total_variation, weighted

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

        Raises:
            UsageError: when no threshold below 1 does that.
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
    calibrate with becomes `reference`, by which the quality of pictures is measured.

    Raises:
        UsageError: when the data name another split.
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
