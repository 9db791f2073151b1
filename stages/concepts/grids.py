"""Grids that have a name: `concepts: imagenet-c` in params.yaml stands for the grid of that benchmark.

ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations") has one corruption at a time. So its grid is not the product of fifteen concepts, but of two: which
corruption, and how severe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.concepts.space import Level
from stages.errors import did_you_mean

CORRUPTION, SEVERITY = "corruption", "severity"
UNCHANGED = "none"  # the level of `corruption` at which no severity changes anything
SEVERITIES = (1, 2, 3, 4, 5)
TESTED = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The corruptions of the benchmark, in its order."""
VALIDATED = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""Those that it sets apart, for people to choose settings on."""

GRIDS: Mapping[str, Mapping[str, Sequence[Level]]] = {
    "imagenet-c": {CORRUPTION: (UNCHANGED, *TESTED), SEVERITY: SEVERITIES},
}
APPLIED_BY = {CORRUPTION: "stages.tasks.classification.corrupted:Corrupted"}
"""What applies concepts that are not changes of their own, by name: a class that goes before that of the task."""


def named_grid(name: str) -> dict[str, list[Level]]:
    """The levels of each concept of a grid that has a name.

    Raises:
        ValueError: when none has this one.
    """
    if name not in GRIDS:
        raise ValueError(
            f"found {name!r}, expected levels for each concept, or the name of a grid: {', '.join(GRIDS)}"
            f"{did_you_mean(name, GRIDS)}"
        )
    return {concept: list(levels) for concept, levels in GRIDS[name].items()}
