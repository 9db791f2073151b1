"""The threshold, and how often real captioned pictures are called a failure: what people would have drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from stages.errors import UsageError
from stages.tasks.text_to_image.judges import expected_values
from stages.tasks.text_to_image.measures import total_variation, weighted
from stages.tasks.text_to_image.pictures import from_png
from stages.tasks.text_to_image.studio import Studio

GROUPS = 2000  # probes of real pictures that are put together at random
SPLITS = ("calibrate", "repair")  # of captioned pictures
HALVES = ("set", "check")  # of those to calibrate with: what sets the threshold, and what checks it


@dataclass(frozen=True)
class Calibration:
    """Measures of real captioned pictures, judged as if they had been drawn.

    Args:
        records: one row a picture: `half` (see HALVES), `misalignment` and `poor_quality`, each in [0, 1]. Of
            `calibration_records` there is also `unreadable` (bool), which counts as misalignment.
        images: pictures of a probe.
        reference: shares of the values of the attribute whose bias is measured; None if it is not.
    """

    records: pd.DataFrame
    images: int
    reference: Mapping[str, float] | None

    @classmethod
    def of(
        cls,
        misalignment: np.ndarray,
        poor_quality: np.ndarray,
        images: int = 1,
        reference: Mapping[str, float] | None = None,
    ) -> Calibration:
        """Share n pictures (n,) out between the halves, every other one."""
        halves = [HALVES[n % 2] for n in range(len(misalignment))]
        columns = {"half": halves, "misalignment": misalignment, "poor_quality": poor_quality}
        return cls(pd.DataFrame(columns), images, reference)

    def probes(self, half: str, weights: Mapping[str, float], seed: int = 0) -> np.ndarray:
        """Discrepancies (GROUPS,) of probes put together from pictures of a half, with replacement.

        Real pictures have no bias of a model: the attribute is drawn from the reference.
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
        """What probes of real pictures exceed in `false_alarms` of the cases at most.

        Raises:
            UsageError: when no threshold below 1 does that.
        """
        values = self.probes("set", weights).astype(np.float32)  # as probes have them: one of three is 1/3 in both
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
        """The largest discrepancy there is: that of pictures all wrong, all bad, all of the rarest value."""
        bias = 1 - min(self.reference.values()) if self.reference else 1.0
        return float(weighted({"misalignment": 1.0, "poor_quality": 1.0, "bias": bias}, weights))

    def false_alarms(self, weights: Mapping[str, float], threshold: float) -> dict[str, Any]:
        """How often probes of real pictures that did not set the threshold exceed it, see Measured.false_alarms.

        The interval is Wilson's at the number of probes that the pictures make without using one twice.
        """
        above = float((self.probes("check", weights).astype(np.float32) > np.float32(threshold)).mean())
        pictures = int((self.records["half"] == "check").sum())
        n = max(1, pictures // self.images)
        interval = binomtest(round(above * n), n).proportion_ci(method="wilson")
        low, high = min(float(interval.low), above), max(float(interval.high), above)
        return {"rate": above, "low": low, "high": high, "articles": n, "unit": "probes", "held_out": True}


def share_out(pictures: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Say what each captioned picture is for, so that none is used for two things.

    Where the data name no split a third, drawn at random, is to calibrate with and the rest to repair with. Every
    other picture to calibrate with becomes `reference`, what the quality of pictures is measured by.

    Raises:
        UsageError: when the data name another split.
    """
    if strange := sorted(set(pictures["split"]) - {"", *SPLITS}):
        raise UsageError(f"prepare.data: expected the splits {', '.join(SPLITS)}, found {', '.join(strange)}")
    # In an order of their own: data often come sorted, and then every other picture is of another kind.
    pictures = pictures.sample(frac=1, random_state=seed).reset_index(drop=True)
    unnamed = np.where(np.arange(len(pictures)) < len(pictures) / 3, *SPLITS)
    split = np.where(pictures["split"] == "", unnamed, pictures["split"])
    odd = np.cumsum(split == "calibrate") % 2 == 1
    return pictures.assign(split=np.where((split == "calibrate") & odd, "reference", split))


def calibration_records(studio: Studio, pictures: pd.DataFrame) -> list[dict[str, Any]]:
    """Judge real captioned pictures as if they had been drawn: plain data for the attributes of a table."""
    pictures = pictures[pictures["split"] == "calibrate"]
    shown = [from_png(image) for image in pictures["image"]]
    expected = [expected_of(row, studio.judge.attributes) for row in pictures.to_dict("records")]
    judged = studio.assess(shown, pictures["text"].tolist(), expected)
    found = Calibration.of(
        np.array([1 - picture.alignment for picture in judged]), np.array([1 - picture.quality for picture in judged])
    )
    unreadable = [picture.unreadable for picture in judged]
    records: list[dict[str, Any]] = found.records.assign(unreadable=unreadable).to_dict("records")
    return records


def expected_of(picture: Mapping[str, Any], attributes: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """What a captioned picture shows, by attribute: from its columns, and from its caption where it has no such column.

    An empty column says that there is nothing to see. A value of the caption counts if no other value is in it.
    """
    columns = {name.replace("_", " "): str(value) for name, value in picture.items() if isinstance(value, str)}
    untold = [attribute for attribute in attributes if attribute.replace("_", " ") not in columns]
    from_caption = expected_values(attributes, dict.fromkeys(untold, picture["text"]))
    return from_caption | expected_values(attributes, columns)
