"""Image concepts: changes of a picture, as batched torch transforms with one level per sample.

They are applied in the order in which light travels: the scene (rotation, translation, scale, then occlusion), the
light (darkening, brightness, contrast, saturation), the lens (blur), the sensor (noise). The corruptions of ImageNet-C
follow, in the same order among themselves (stages/concepts/corruptions.py); then the result is clipped to [0, 1].
Rotation, translation and scale are composed into one affine resampling, so that a picture is interpolated only once. A
concept does not touch samples at its neutral level, so the neutral cell leaves every bit unchanged.

To add your own concept, put an `ImageConcept` into the `catalogue` of a subclass of the classification task, see
docs/own-task.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stages.concepts.catalogue import Change, check_levels, span, steps_of
from stages.concepts.corruptions import corrupt
from stages.concepts.space import ConceptSpace

Apply = Callable[[Tensor, Tensor, np.ndarray], Tensor]
"""(images (n, c, h, w) float in [0, 1], levels (n, 1, 1, 1), chance (n,) uint64) -> changed images, values unclipped.

`chance` is the probe's own random number, so that an answer does not depend on its batch.
"""

Matrix = Callable[[Tensor], Tensor]
"""levels (n,) -> (n, 3, 3) maps from output to input points, in units of half the shorter side."""


@dataclass(frozen=True)
class ImageConcept(Change):
    """One way to change a picture; give either `apply` or `matrix`.

    Args:
        apply: changes pixels.
        matrix: moves pixels; all matrices are composed into one resampling.
    """

    neutral: float = 0
    apply: Apply | None = None
    matrix: Matrix | None = None


class Corruption(ImageConcept):
    """A corruption of ImageNet-C; its levels are severities, which are whole numbers.

    Attributes:
        whole: levels between whole numbers have no meaning, so screening proposes none.
    """

    whole = True

    def error(self, level: Any) -> str | None:
        found = super().error(level)
        if found is None and level != int(level):
            return f"level {level:g} is not a severity of ImageNet-C, expected a whole number"
        return found


def _of_c(name: str) -> Corruption:
    """A corruption as a concept: "fog_c" is the fog of ImageNet-C."""
    of = name.removesuffix("_c")
    return Corruption(name, f"{of.replace('_', ' ')} of ImageNet-C, by its severity", 0, 5, 0, apply=corrupt(of))


def _rotation(levels: Tensor) -> Tensor:
    angle = torch.deg2rad(levels)
    out = torch.eye(3).repeat(len(levels), 1, 1)
    out[:, 0, 0] = out[:, 1, 1] = angle.cos()
    out[:, 0, 1], out[:, 1, 0] = -angle.sin(), angle.sin()
    return out


def _translation(levels: Tensor) -> Tensor:
    out = torch.eye(3).repeat(len(levels), 1, 1)
    out[:, 0, 2] = -2 * levels
    return out


def _scale(levels: Tensor) -> Tensor:
    out = torch.eye(3).repeat(len(levels), 1, 1)
    out[:, 0, 0] = out[:, 1, 1] = 1 / levels
    return out


def _occlusion(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    height, width = images.shape[-2:]
    for image, share, draw in zip(images, levels.flatten().tolist(), chance.tolist(), strict=True):
        h, w = round(height * math.sqrt(share)), round(width * math.sqrt(share))
        top, left = draw % (height - h + 1), (draw >> 32) % (width - w + 1)
        image[:, top : top + h, left : left + w] = 0.5
    return images


def _darkening(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    return images.mul_(1 - levels)


def _brightness(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    return images.add_(levels)


def _contrast(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    return torch.lerp(images.mean(dim=(1, 2, 3), keepdim=True), images, levels)


def grey(images: Tensor) -> Tensor:
    """Convert colour pictures (n, 3, h, w) to grey ones (n, 1, h, w)."""
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)  # ITU-R BT.601, as Pillow uses
    return (images * luma).sum(1, keepdim=True)


def _saturation(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    if images.shape[1] != 3:
        return images  # a grey picture has no colour to take away
    return torch.lerp(grey(images), images, levels)


_FEW = 16  # kernel widths; for larger pictures a convolution is faster than two matrix products


def _kernel(sigma: float, size: int) -> Tensor:
    """Gaussian kernel of three sigma on both sides, or as much of it as fits into a line of `size` pixels."""
    radius = min(math.ceil(3 * sigma), size - 1)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    return kernel / kernel.sum()


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float, device: torch.device) -> Tensor:
    """The Gaussian blur of a line of `size` pixels as a matrix (size, size); borders are reflected."""
    kernel = _kernel(sigma, size)
    radius = len(kernel) // 2
    padded = functional.pad(torch.eye(size)[:, None], (radius, radius), mode="reflect")
    return functional.conv1d(padded, kernel.view(1, 1, -1))[:, 0].T.contiguous().to(device)


def _blurred(images: Tensor, sigma: float) -> Tensor:
    """Blur all images with the same sigma; borders are reflected."""
    channels, height, width = images.shape[1:]
    kernel = _kernel(sigma, min(height, width)).to(images.device)
    if len(kernel) * _FEW > min(height, width):  # at 224 pixels: for a sigma above 2
        down, across = (_blur_matrix(size, sigma, images.device) for size in (height, width))
        return down @ images @ across.T
    # Without channels_last this takes twelve times as long on a CPU.
    padded = functional.pad(images, [len(kernel) // 2] * 4, mode="reflect").contiguous(
        memory_format=torch.channels_last
    )
    down = kernel.view(1, 1, -1, 1).repeat(channels, 1, 1, 1)
    return functional.conv2d(functional.conv2d(padded, down, groups=channels), down.mT, groups=channels)


def _blur(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    # There are few levels, so samples are grouped by level, each with its own kernel size.
    sigmas = levels.flatten().tolist()
    out = torch.empty_like(images)
    for sigma in sorted(set(sigmas)):
        rows = [i for i, s in enumerate(sigmas) if s == sigma]
        out[rows] = _blurred(images[rows], sigma)
    return out


_STREAM = 1 << 22


@lru_cache(maxsize=2)
def _noise_stream(seed: int, length: int, device: torch.device) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).to(device)


def _noise(images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    # Each probe adds a window of one long stream of normal numbers that starts at its own random number. This does not
    # depend on the batch and takes a tenth of the time of drawing new numbers.
    size = images[0].numel()
    stream = _noise_stream(0, _STREAM + size, images.device)
    for image, sigma, start in zip(images, levels.flatten().tolist(), (chance % _STREAM).tolist(), strict=True):
        image.add_(stream[start : start + size].view_as(image), alpha=sigma)
    return images


CATALOGUE: Mapping[str, ImageConcept] = {
    concept.name: concept
    for concept in (
        ImageConcept("rotation", "turn about the centre, counter-clockwise", -180, 180, 0, "°", matrix=_rotation),
        ImageConcept(
            "translation", "shift to the right, as share of the shorter side", -0.9, 0.9, 0, matrix=_translation
        ),
        ImageConcept("scale", "size of the content about the centre", 0.1, 10, 1, "x", matrix=_scale),
        ImageConcept("occlusion", "share of the area under a grey box", 0, 0.95, 0, apply=_occlusion),
        ImageConcept("darkening", "share of brightness taken away", 0, 1, 0, apply=_darkening),
        ImageConcept("brightness", "added to every pixel, 1 = full range", -1, 1, 0, apply=_brightness),
        ImageConcept("contrast", "distance from the mean grey; 0 is flat", 0, 5, 1, "x", apply=_contrast),
        ImageConcept("saturation", "strength of colours; 0 is grey", 0, 5, 1, "x", apply=_saturation),
        ImageConcept("blur", "Gaussian blur, sigma in pixels", 0, 50, 0, "px", apply=_blur),
        ImageConcept("noise", "Gaussian noise, standard deviation, 1 = full range", 0, 2, 0, apply=_noise),
        _of_c("snow_c"),
        _of_c("frost_c"),
        _of_c("fog_c"),
        _of_c("spatter_c"),
        _of_c("brightness_c"),
        _of_c("contrast_c"),
        _of_c("saturate_c"),
        _of_c("defocus_blur_c"),
        _of_c("glass_blur_c"),
        _of_c("motion_blur_c"),
        _of_c("zoom_blur_c"),
        _of_c("gaussian_blur_c"),
        _of_c("elastic_transform_c"),
        _of_c("gaussian_noise_c"),
        _of_c("shot_noise_c"),
        _of_c("impulse_noise_c"),
        _of_c("speckle_noise_c"),
        _of_c("pixelate_c"),
        _of_c("jpeg_compression_c"),
    )
}
"""All built-in concepts, in the order in which they are applied."""


def check_concepts(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, ImageConcept] = CATALOGUE) -> list[str]:
    """List what is wrong with the `concepts:` of an audit, one line per error."""
    return check_levels(levels, catalogue)


def image_space(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, ImageConcept] = CATALOGUE) -> ConceptSpace:
    """Build the grid of an audit's `concepts:` that `check_concepts` accepted."""
    return span(levels, catalogue)


class ImageTransforms:
    """Applies cells of a concept space to images.

    Args:
        space: the concepts and their levels; made by `image_space`.
        catalogue: how concepts are applied, in this order.
    """

    def __init__(self, space: ConceptSpace, catalogue: Mapping[str, ImageConcept] = CATALOGUE) -> None:
        self._steps = [(concept, at, torch.tensor(levels)) for concept, at, levels in steps_of(space, catalogue)]

    def __call__(self, images: Tensor, cells: np.ndarray, chance: np.ndarray) -> Tensor:
        """Apply one cell to each image.

        Args:
            images: (n, c, h, w) float in [0, 1]; may be overwritten.
            cells: (n, concepts) level indices.
            chance: (n,) uint64, a random number for each probe.

        Returns:
            (n, c, h, w) float in [0, 1].
        """
        indices = torch.as_tensor(np.array(cells, order="C"))  # a copy, because `cells` may be read-only
        values = {concept.name: levels[indices[:, column]] for concept, column, levels in self._steps}
        images = self._move(images, values)
        for concept, _, _ in self._steps:
            if concept.apply is None:
                continue
            level = values[concept.name]
            touched = (level != concept.neutral).nonzero().flatten()
            if len(touched) == 0:
                continue
            shaped = level[touched].view(-1, 1, 1, 1).to(images.device)
            if len(touched) == len(images):
                images = concept.apply(images, shaped, chance)
            else:
                rows = touched.to(images.device)
                images[rows] = concept.apply(images[rows], shaped, chance[touched.numpy()])
        return images.clamp_(0, 1)

    def _move(self, images: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Resample once for all concepts that move pixels; what comes from outside the picture is black."""
        maps = torch.eye(3).repeat(len(images), 1, 1)
        touched = torch.zeros(len(images), dtype=torch.bool)
        for concept, _, _ in self._steps:
            if concept.matrix is not None:
                maps = maps @ concept.matrix(values[concept.name])
                touched |= values[concept.name] != concept.neutral
        if not touched.any():
            return images
        # affine_grid measures each axis in half of its own side, our maps in half of the shorter side.
        height, width = images.shape[-2:]
        unit = torch.tensor([width, height, 1.0]) / torch.tensor([min(width, height), min(width, height), 1.0])
        rows = touched.nonzero().flatten().to(images.device)
        theta = (maps[touched] * unit / unit[:, None])[:, :2].to(images.device)
        grid = functional.affine_grid(theta, [len(rows), *images.shape[1:]], align_corners=False)
        moved = functional.grid_sample(images[rows], grid, align_corners=False)
        if len(rows) == len(images):
            return moved
        images[rows] = moved
        return images


def probe_chance(items: np.ndarray, cells: np.ndarray, repeats: np.ndarray, seed: int) -> np.ndarray:
    """Return a random number for each probe, (n,) uint64, that depends on the arguments alone.

    Args:
        items: (n,) uint64, one number per item, see `item_number`.
        cells: (n,) numbers of the cells in the grid.
        repeats: (n,) repeat indices.
    """
    mixed = np.full(len(items), seed, dtype=np.uint64)
    for part in (items, cells, repeats):
        mixed = _splitmix(mixed ^ np.asarray(part).astype(np.uint64))
    return mixed


def _splitmix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every input bit affects every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)  # wraps around on purpose
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
