"""What a preprocessor_config.json of transformers says of pictures, read as the plain data it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.errors import UsageError
from stages.tasks.classification.pictures import Shape, View

SMALL = 384  # ConvNext: smaller pictures are cut out of larger ones, others are squeezed into the square


@dataclass(frozen=True)
class Preprocessor:
    """How a model of transformers is shown pictures.

    Args:
        shape: of its input.
        view: how a picture is resized before the centre is cut out.
        mean: one number for each channel, or for all, of pixels in [0, 1].
        std: likewise.
    """

    shape: Shape
    view: View
    mean: list[float]
    std: list[float]

    @classmethod
    def of(cls, told: Mapping[str, Any] | None, config: Mapping[str, Any], where: str) -> Preprocessor:
        """Read it; `config` is the model's own, which knows channels and size where the file does not.

        Raises:
            UsageError: when there is no file, or it says something this does not understand.
        """
        if told is None:
            raise UsageError(f"{where}: the model has no preprocessor_config.json, so nobody knows its normalisation")
        try:
            shape, view = _geometry(told, config)
            mean, std = _normalisation(told)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"{where}: its preprocessor_config.json is not understood: {error!r}") from None
        return cls(shape, view, mean, std)


def _normalisation(told: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels in [0, 1].

    The processor has pixels in [0, 255], times `rescale_factor`, less 1 with `rescale_offset`, less `image_mean`, by
    `image_std`; EfficientNets divide by `image_std` twice.
    """
    mean, std = [0.0], [1.0]
    if told.get("do_normalize", True):
        twice = 2 if told.get("include_top") else 1
        mean, std = [float(v) for v in told["image_mean"]], [float(v) ** twice for v in told["image_std"]]
    scale = 255.0 * float(told.get("rescale_factor", 1 / 255)) if told.get("do_rescale", True) else 255.0
    offset = 1.0 if told.get("do_rescale", True) and told.get("rescale_offset") else 0.0
    return [(v + offset) / scale for v in mean], [v / scale for v in std]


def _geometry(told: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Shape, View]:
    channels = int(config.get("num_channels") or 3)
    size = told.get("size") or config.get("image_size")
    resize: int | tuple[int, int]
    if isinstance(size, Mapping) and "shortest_edge" in size:
        edge = int(size["shortest_edge"])
        share = told.get("crop_pct")
        resize = edge
        cut = (edge, edge)
        if share:
            resize = int(edge / float(share)) if edge < SMALL else (edge, edge)
    else:
        resize = cut = _pair(size)
    if told.get("do_center_crop") and told.get("crop_size"):
        cut = _pair(told["crop_size"])
    resample = int(told.get("resample", 2))
    filters = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # as pillow numbers them
    view = View.model_validate({"resize": resize, "interpolation": filters[resample]})
    return (channels, *cut), view


def _pair(size: Any) -> tuple[int, int]:
    """(height, width) of {height, width}, [height, width] or the side of a square."""
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    return int(size), int(size)
