"""Reading of preprocessor_config.json, in which transformers describes the inputs of an image model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stages.core.errors import UsageError, did_you_mean
from stages.tasks.classification.pictures import Shape, View

PREPROCESSOR = "preprocessor_config.json"
SUPPORTED = (
    *("BeitImageProcessor", "BitImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor", "DeiTImageProcessor"),
    *("EfficientNetImageProcessor", "LevitImageProcessor", "MobileNetV1ImageProcessor", "MobileNetV2ImageProcessor"),
    *("MobileViTImageProcessor", "PerceiverImageProcessor", "PoolFormerImageProcessor", "PvtImageProcessor"),
    *("SegformerImageProcessor", "SiglipImageProcessor", "ViTImageProcessor"),
)
# do_resize_and_center_crop is an old name for the default of PoolFormer; do_reduce_labels is about segmentation maps.
_UNDERSTOOD = {
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "do_flip_channel_order"),
    *("do_resize_and_center_crop", "do_reduce_labels"),
}
_WAY_OUT = "export the model to ONNX and name it as `onnx`, where mean and std, size and resize can be said"
SMALL = 384  # ConvNext: smaller pictures are cropped from larger ones, others are squeezed into the square
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's constants


@dataclass(frozen=True)
class Preprocessor:
    """Preprocessing of pictures for a transformers model.

    Args:
        view: how a picture is resized before its centre is cropped.
        mean: mean of pixels in [0, 1], one number for all channels or one for each.
        std: the same for the standard deviation.
        bgr: whether blue comes first.
    """

    shape: Shape
    view: View
    mean: list[float]
    std: list[float]
    bgr: bool = False

    @classmethod
    def of(cls, folder: Path, told: Mapping[str, Any] | None, config: Mapping[str, Any], where: str) -> Self:
        """Read it as transformers does, which adds the defaults that old files leave out.

        Raises a UsageError if there is no file, or it contains unsupported settings.

        Args:
            told: content of the file in it; None: there is none.
            config: the model's own configuration, which has its channels.
            where: for messages.
        """
        if told is None:
            raise UsageError(f"{where}: the model has no {PREPROCESSOR}, so nobody knows its normalisation")
        try:
            processor = _processor(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError) as error:
            raise UsageError(f"{where}: its {PREPROCESSOR} is not understood: {error!r}") from None
        kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
        if kind not in SUPPORTED:
            raise UsageError(
                f"{where}: its {PREPROCESSOR} is of {kind}{did_you_mean(kind, SUPPORTED)}; understood are"
                f" {', '.join(SUPPORTED)}. Else {_WAY_OUT}"
            )
        flags = {**told, **vars(processor)}
        if odd := sorted(key for key in flags if key.startswith("do_") and flags[key] and key not in _UNDERSTOOD):
            raise UsageError(f"{where}: {PREPROCESSOR} has {', '.join(odd)}, which is not understood; {_WAY_OUT}")
        try:
            shape, view = _geometry(kind, processor, int(config.get("num_channels") or 3))
            mean, std = _normalisation(kind, processor)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"{where}: its {PREPROCESSOR} is not understood: {error}; {_WAY_OUT}") from None
        return cls(shape, view, mean, std, kind == "MobileViTImageProcessor" and bool(processor.do_flip_channel_order))


def _processor(folder: Path) -> Any:
    """Load the processor of transformers with the settings in the file; no code of the folder is run."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True, trust_remote_code=False)


def _normalisation(kind: str, processor: Any) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation for pixels in [0, 1].

    The processor computes (pixels * `rescale_factor` - `image_mean`) / `image_std` from pixels in [0, 255]. That of
    EfficientNet first subtracts 1 if `rescale_offset` is set, and divides by `image_std` again if `include_top` is set.
    """
    mean, std = [0.0], [1.0]
    efficient = kind == "EfficientNetImageProcessor"
    if processor.do_normalize and kind != "MobileViTImageProcessor":  # MobileViT has the flag but ignores it
        mean, std = _numbers(processor.image_mean), _numbers(processor.image_std)
    if efficient and processor.include_top:
        again = _numbers(processor.image_std)
        std = [one * other for one, other in zip(std * len(again) if len(std) == 1 else std, again, strict=True)]
    scale = 255.0 * float(processor.rescale_factor) if processor.do_rescale else 255.0
    offset = 1.0 if efficient and processor.do_rescale and processor.rescale_offset else 0.0
    return [(v + offset) / scale for v in mean], [v / scale for v in std]


def _geometry(kind: str, processor: Any, channels: int) -> tuple[Shape, View]:
    if not processor.do_resize:
        raise ValueError("do_resize is false, so it takes pictures of any size")
    resize = _size(processor.size, "size")
    cut = _size(processor.crop_size, "crop_size") if processor.do_center_crop else None
    if kind == "ConvNextImageProcessor":
        edge = _edge(resize)
        resize = int(edge / processor.crop_pct) if edge < SMALL else (edge, edge)
        cut = cut or (edge, edge)
    elif kind == "PoolFormerImageProcessor":
        resize = int(_edge(resize) / processor.crop_pct)
    elif kind == "LevitImageProcessor" and isinstance(resize, int):
        resize = int(256 / 224 * resize)
    elif kind == "PerceiverImageProcessor" and cut is not None:
        # Perceiver crops first, size / crop_size of the shorter side, and resizes the crop to `size`.
        resize, cut = _edge(cut), (_edge(resize), _edge(resize))
    cut = resize if cut is None else cut
    if isinstance(cut, int):
        raise ValueError("only the shorter side is resized and nothing is cut out, so it takes pictures of any size")
    height, width = (resize, resize) if isinstance(resize, int) else resize
    if cut[0] > height or cut[1] > width:
        raise ValueError(f"{cut} is cut out of pictures resized to {resize}, which would get a black frame")
    view = View.model_validate({"resize": resize, "interpolation": _FILTERS[int(processor.resample)]})
    return (channels, *cut), view


def _size(told: Any, name: str) -> int | tuple[int, int]:
    """Return the shorter side, or (height, width)."""
    given = {key: int(value) for key, value in dict(told or {}).items() if value is not None}
    if set(given) == {"shortest_edge"}:
        return given["shortest_edge"]
    if set(given) == {"height", "width"}:
        return given["height"], given["width"]
    raise ValueError(f"{name} is {given}, expected shortest_edge, or height and width")


def _edge(size: int | tuple[int, int]) -> int:
    """Return the side of a square, or the shorter side."""
    if isinstance(size, int):
        return size
    if size[0] != size[1]:
        raise ValueError(f"{size} is not square")
    return size[0]


def _numbers(told: Any) -> list[float]:
    return [float(v) for v in told] if isinstance(told, list | tuple) else [float(told)]
