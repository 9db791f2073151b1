"""Named grids: `concepts: imagenet-c` in params.yaml stands for the grid of that benchmark.

ImageNet-C (Hendrycks and Dietterich 2019, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations") applies one corruption at a time. Its grid is therefore not the product of fifteen concepts but of two:
the corruption and its severity.
"""

from collections.abc import Mapping, Sequence

from stages.concepts.space import Level
from stages.core.errors import did_you_mean

CORRUPTION, SEVERITY = "corruption", "severity"
UNCHANGED = "none"  # the level of `corruption` at which severity has no effect
SEVERITIES = (1, 2, 3, 4, 5)
TESTED = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""The corruptions of the benchmark, in its order."""
VALIDATED = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
"""The corruptions that it sets apart for choosing settings."""

GRIDS: Mapping[str, Mapping[str, Sequence[Level]]] = {
    "imagenet-c": {CORRUPTION: (UNCHANGED, *TESTED), SEVERITY: SEVERITIES},
}
APPLIED_BY = {CORRUPTION: "stages.tasks.classification.corrupted:Corrupted"}
"""By concept: the class that applies it, put before the task's class, if the concept is not a `Change` of its own."""


def named_grid(name: str) -> dict[str, list[Level]]:
    """Return the levels of each concept of a named grid. Raises a ValueError when there is no grid of this name."""
    if name not in GRIDS:
        raise ValueError(
            f"found {name!r}, expected levels for each concept, or the name of a grid: {', '.join(GRIDS)}"
            f"{did_you_mean(name, GRIDS)}"
        )
    return {concept: list(levels) for concept, levels in GRIDS[name].items()}
