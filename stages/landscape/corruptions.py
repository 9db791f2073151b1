"""Failure rates under each corruption of ImageNet-C, and their mean, to report beside a landscape.

An error is the share of a corruption's probes that fail, averaged over its severities; the mean corruption error (mCE)
is the mean over corruptions (Hendrycks and Dietterich 2019). They are counted on the control's probes, which
are all pairs of item and cell if the budget covers them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace
from stages.concepts.grids import CORRUPTION, SEVERITIES, SEVERITY, TESTED, UNCHANGED, VALIDATED
from stages.core.intervals import COUNTED, RESAMPLES, SHARE, Rate, Resampler
from stages.records import Effect, Landscape
from stages.records.base import RateRecord

ALEXNET: Mapping[str, float] = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""Errors of AlexNet under each corruption of ImageNet-C, averaged over severities, which normalise the mCE.

From the code of AugMix by its authors (Hendrycks et al. 2020, github.com/google-research/augmix, `ALEXNET_ERR` in
imagenet.py), who took them from github.com/hendrycks/robustness.
"""


@dataclass(frozen=True)
class CorruptionError:
    """The failure rate of a model under one corruption.

    Args:
        name: name of the corruption, or "none" for unchanged pictures.
        error: the landscape's rate for this level.
        failures: number of failures among the control's probes of this corruption.
        normalised: the error over AlexNet's; None if the two cannot be compared.
    """

    name: str
    error: Rate
    failures: int
    normalised: Rate | None = None


@dataclass(frozen=True)
class CorruptionErrors:
    """The errors under all corruptions of a grid.

    Args:
        rows: in the order of the grid, including unchanged pictures.
        mean: the mean corruption error: corruptions have equal weights, and unchanged pictures do not count. Its
            interval is for other items like these.
        normalised: the mean of normalised errors, which ImageNet-C calls mCE; None if none is normalised.
        others: further concepts of the grid that the errors are averaged over.
    """

    rows: list[CorruptionError]
    mean: Rate
    normalised: Rate | None
    others: list[str]

    def numbers(self) -> dict[str, float]:
        """Return flat numbers for metrics, each with its interval."""
        rates = {f"corruption_error_{row.name}": row.error for row in self.rows if row.name != UNCHANGED}
        rates["mean_corruption_error"] = self.mean
        if self.normalised is not None:
            rates["mce"] = self.normalised
        return {
            f"{name}{suffix}": value
            for name, rate in rates.items()
            for suffix, value in zip(("", "_low", "_high"), rate[:3], strict=True)
        }


@dataclass(frozen=True)
class TooFew:
    """A corruption with too few of the control's probes for a count."""

    name: str
    probes: int


def corruption_errors(
    landscape: Landscape, probes: pd.DataFrame, *, of_imagenet: bool = False
) -> CorruptionErrors | TooFew | None:
    """Compute the errors under each corruption, beside AlexNet's `of_imagenet`; None if the grid has no corruptions."""
    space = landscape.space
    if not has_corruptions(space):
        return None
    effects = [effect for effect in landscape.effects if effect.concept == CORRUPTION]
    fewest = min((effect for effect in effects if effect.label != UNCHANGED), key=lambda effect: effect.probes)
    if fewest.probes < (1 if landscape.exact else COUNTED):
        return TooFew(fewest.label, fewest.probes)
    comparable = of_imagenet and _is_the_benchmark(space)
    rows = [_row(effect, comparable=comparable) for effect in effects]
    control = probes[probes["role"] == "control"]
    sampler = Resampler(control["item"], RESAMPLES, 0, control.get("group"))
    failed, level = control["failed"].to_numpy(dtype=float), control[CORRUPTION].to_numpy()

    def mean(weights: Mapping[str, float]) -> Rate:
        """Return the weighted sum of errors."""
        each = np.array([weights.get(row.name, 0.0) for row in rows])
        share = sampler.mean(failed, (each / np.bincount(level, minlength=len(rows)))[level], SHARE)
        return _times(share, float(each.sum()))

    corrupted = [row.name for row in rows if row.name != UNCHANGED]
    return CorruptionErrors(
        rows=rows,
        mean=mean(dict.fromkeys(corrupted, 1 / len(corrupted))),
        normalised=mean({name: 1 / (len(ALEXNET) * error) for name, error in ALEXNET.items()}) if comparable else None,
        others=[name for name in space.names if name not in (CORRUPTION, SEVERITY)],
    )


def has_corruptions(space: ConceptSpace) -> bool:
    """Whether a grid applies one corruption at a time, as with `concepts: imagenet-c`."""
    levels = {concept.name: {*concept.levels} for concept in space.concepts}
    return SEVERITY in levels and levels.get(CORRUPTION, {""}) <= {UNCHANGED, *TESTED, *VALIDATED}


def _is_the_benchmark(space: ConceptSpace) -> bool:
    """Whether a grid has the corruptions of ImageNet-C at all its severities, and no other concept."""
    levels = {concept.name: {*concept.levels} for concept in space.concepts}
    return (
        levels.keys() == {CORRUPTION, SEVERITY}
        and levels[CORRUPTION] - {UNCHANGED} == {*TESTED}
        and levels[SEVERITY] == {*SEVERITIES}
    )


def _row(effect: Effect, *, comparable: bool) -> CorruptionError:
    error = RateRecord(value=effect.rate, low=effect.low, high=effect.high, n=effect.probes).rate
    known = ALEXNET.get(effect.label) if comparable else None
    return CorruptionError(effect.label, error, effect.failures, None if known is None else _times(error, 1 / known))


def _times(rate: Rate, factor: float) -> Rate:
    return Rate(rate.value * factor, rate.low * factor, rate.high * factor, rate.n)
