"""The corruptions of ImageNet-C: nineteen changes of a picture, each at the five published severities.

Implemented from the published definitions (Hendrycks and Dietterich 2019; github.com/hendrycks/robustness, Apache-2.0)
with NumPy, SciPy, PyTorch and Pillow; docs/classification.md says why no library is used. Three things differ from the
code that made the benchmark's files:

- Lengths in pixels were published for pictures of 224 pixels. They scale with the shorter side, so that a corruption
  looks the same at every size; at 224 they are as published.
- The benchmark blends in one of five photos of frost, which have no licence of their own. `frost` draws needles of ice
  in the colours and with the contrast of these photos instead.
- The outlines of drops (`spatter`) come from a mask, not from a Canny edge detector. A corrupted picture is not
  compressed again.

All random draws come from the probe's random number.
"""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Picture = np.ndarray
"""(channels, height, width) float32 in [0, 1]; what a corruption returns is clipped to this range."""

Chance = np.random.Generator
Corrupt = Callable[..., Picture]
"""(picture, chance, scale, constants of the severity) -> corrupted picture. `scale` is the shorter side over 224."""

PUBLISHED_SIDE = 224  # pixels
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def corrupt(name: str) -> Callable[[Tensor, Tensor, np.ndarray], Tensor]:
    """Return a corruption as the `apply` of an image concept whose levels are severities 1 to 5; see `CORRUPTIONS`."""
    return partial(_apply, name)


def _apply(name: str, images: Tensor, levels: Tensor, chance: np.ndarray) -> Tensor:
    """Corrupt each picture (n, c, h, w) at its own severity (n, 1, 1, 1), with its own random number (n,)."""
    change, constants = CORRUPTIONS[name]
    scale = min(images.shape[-2:]) / PUBLISHED_SIDE
    kind = zlib.crc32(name.encode())  # so that two corruptions of one probe draw differently
    for image, level, number in zip(images, levels.flatten().tolist(), chance.tolist(), strict=True):
        given = constants[int(level) - 1]
        drawn = np.random.default_rng([number, kind])
        made = change(image.cpu().numpy(), drawn, scale, *(given if isinstance(given, tuple) else (given,)))
        image.copy_(torch.from_numpy(np.clip(made, 0, 1).astype(np.float32)))
    return images


# Shared helpers


@lru_cache(maxsize=64)
def _gaussian_matrix(size: int, sigma: float, mode: str, truncate: float) -> Tensor:
    """The Gaussian blur of a line of `size` pixels as a matrix: (size, size)."""
    from scipy.ndimage import gaussian_filter1d

    return torch.from_numpy(gaussian_filter1d(np.eye(size), sigma, axis=0, mode=mode, truncate=truncate)).float()


def _gaussian(x: np.ndarray, sigma: float, mode: str = "nearest", truncate: float = 4.0) -> np.ndarray:
    """Blur the last two axes as scikit-image does, by matrix products, which are fastest."""
    down, across = (_gaussian_matrix(size, sigma, mode, truncate) for size in x.shape[-2:])
    return (down @ torch.from_numpy(np.asarray(x, np.float32)) @ across.T).numpy()


def _correlate(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate each channel of (c, h, w) with a kernel of odd side lengths; borders are mirrored."""
    weights = torch.from_numpy(kernel.astype(np.float32))[None, None]
    room = [kernel.shape[1] // 2] * 2 + [kernel.shape[0] // 2] * 2
    planes = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))[:, None]
    return functional.conv2d(functional.pad(planes, room, mode="reflect"), weights)[:, 0].numpy()


def _motion(x: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """Blur with half a Gaussian along a direction (degrees), as ImageMagick's motion blur; edge pixels are repeated."""
    width = 2 * math.ceil(radius) + 1
    steps = np.arange(width)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    across = np.ceil(steps * math.cos(math.radians(angle)) - 0.5).astype(int)
    down = np.ceil(steps * math.sin(math.radians(angle)) - 0.5).astype(int)
    height, wide = x.shape[-2:]
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(width, width)] * 2, mode="edge")
    blurred = np.zeros_like(x)
    for weight, dy, dx in zip(weights.astype(np.float32), down + width, across + width, strict=True):
        blurred += weight * padded[..., dy : dy + height, dx : dx + wide]
    return blurred


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of (c, h, w) to the full size by linear interpolation."""
    height, width = x.shape[-2:]
    h, w = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - h) // 2, (width - w) // 2
    middle = torch.from_numpy(np.ascontiguousarray(x[None, :, top : top + h, left : left + w]))
    size = [round(h * factor), round(w * factor)]
    large = functional.interpolate(middle, size=size, mode="bilinear", align_corners=True)[0].numpy()
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return large[:, top : top + height, left : left + width]


def _plasma(side: int, decay: float, chance: Chance) -> np.ndarray:
    """A cloud from the diamond-square algorithm: (side, side) in [0, 1]; `side` must be a power of two."""
    cloud = np.zeros((side, side))
    step, wobble = side, 100.0

    def mean_of(four: np.ndarray) -> np.ndarray:
        return four / 4 + wobble * chance.uniform(-wobble, wobble, four.shape)

    while step >= 2:
        half = step // 2
        corners = cloud[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        cloud[half::step, half::step] = mean_of(pairs + np.roll(pairs, -1, 1))
        centres = cloud[half::step, half::step]
        beside = centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1)
        above = centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0)
        cloud[::step, half::step] = mean_of(beside)
        cloud[half::step, ::step] = mean_of(above)
        step, wobble = half, wobble / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def _clouds(x: Picture, decay: float, chance: Chance) -> np.ndarray:
    """A cloud of the picture's size (h, w)."""
    height, width = x.shape[-2:]
    return _plasma(2 ** math.ceil(math.log2(max(height, width))), decay, chance)[:height, :width].astype(np.float32)


def _colour(rgb: Sequence[float], channels: int) -> np.ndarray:
    """A colour with as many channels as the picture: (c, 1, 1)."""
    own = np.array(rgb, np.float32)
    return own[:, None, None] if channels == 3 else np.array([_LUMA @ own], np.float32)[:, None, None]


def _bytes(x: Picture) -> np.ndarray:
    """Convert a picture to (h, w) or (h, w, 3) uint8 for Pillow."""
    return (np.clip(x, 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0).squeeze()


def _of_bytes(image: Any, channels: int) -> Picture:
    return np.asarray(image, np.float32).reshape(image.height, image.width, channels).transpose(2, 0, 1) / 255


# Noise


def _gaussian_noise(x: Picture, chance: Chance, scale: float, sigma: float) -> Picture:
    return x + chance.normal(scale=sigma, size=x.shape)


def _shot_noise(x: Picture, chance: Chance, scale: float, photons: float) -> Picture:
    return chance.poisson(np.maximum(x, 0) * photons) / photons


def _impulse_noise(x: Picture, chance: Chance, scale: float, share: float) -> Picture:
    hit, salt = chance.random(x.shape) <= share, chance.random(x.shape) <= 0.5
    return np.where(hit, salt.astype(np.float32), x)


def _speckle_noise(x: Picture, chance: Chance, scale: float, sigma: float) -> Picture:
    return x + x * chance.normal(scale=sigma, size=x.shape)


# Blur


def _gaussian_blur(x: Picture, chance: Chance, scale: float, sigma: float) -> Picture:
    return _gaussian(x, sigma * scale)


def _disk(radius: float, alias: float) -> np.ndarray:
    """A disk that sums to 1, its edge softened by a small Gaussian blur of sigma `alias`."""
    from scipy.ndimage import correlate1d

    half, taps = (8, 1) if radius <= 8 else (math.ceil(radius), 2)
    fine = 1 if radius == int(radius) else 5  # points per pixel and axis: a fractional radius covers pixels in part
    points = (np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5
    inside = (points[:, None] ** 2 + points**2 <= radius**2).astype(np.float32)
    disk = inside.reshape(2 * half + 1, fine, 2 * half + 1, fine).sum((1, 3))
    disk /= disk.sum()
    weights = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * alias**2))
    weights /= weights.sum()
    return correlate1d(correlate1d(disk, weights, 0, mode="mirror"), weights, 1, mode="mirror")


def _defocus_blur(x: Picture, chance: Chance, scale: float, radius: float, alias: float) -> Picture:
    kernel = _disk(radius * scale, alias)
    over = max(0, len(kernel) // 2 - min(x.shape[1:]) + 1)  # for pictures smaller than the kernel
    return _correlate(x, kernel[over : len(kernel) - over, over : len(kernel) - over])


def _glass_blur(x: Picture, chance: Chance, scale: float, sigma: float, reach: int, rounds: int) -> Picture:
    reach = max(1, round(reach * scale))
    soft = np.floor(_gaussian(x, sigma * scale) * 255) / 255
    channels, height, width = x.shape
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    here = (rows[:, None] * width + columns).ravel()
    source = list(range(height * width))
    for _ in range(rounds):
        down, right = chance.integers(-reach, reach, (2, len(here)))
        # Meant as a swap, but the published code copies, because its two pixels are views of one array.
        for to, from_ in zip(here.tolist(), (here + down * width + right).tolist(), strict=True):
            source[to] = source[from_]
    return _gaussian(soft.reshape(channels, -1)[:, source].reshape(x.shape), sigma * scale)


def _motion_blur(x: Picture, chance: Chance, scale: float, radius: float, sigma: float) -> Picture:
    return _motion(x, radius * scale, sigma * scale, chance.uniform(-45, 45))


def _zoom_blur(x: Picture, chance: Chance, scale: float, end: float, step: float) -> Picture:
    factors = np.arange(1, end, step)
    return (x + np.sum([_zoomed(x, float(factor)) for factor in factors], axis=0)) / (len(factors) + 1)


# Weather


def _snow(
    x: Picture,
    chance: Chance,
    scale: float,
    mean: float,
    spread: float,
    zoom: float,
    least: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Picture:
    flakes = chance.normal(mean, spread, (1, *x.shape[1:])).astype(np.float32)
    flakes = _zoomed(flakes, max(1.0, zoom * scale))
    flakes = np.where(flakes < least, 0, flakes).clip(0, 1)
    flakes = _motion(flakes, radius * scale, sigma * scale, chance.uniform(-135, -45))
    grey = np.tensordot(_LUMA, x, 1) if len(x) == 3 else x[0]
    whiter = kept * x + (1 - kept) * np.maximum(x, grey * 1.5 + 0.5)
    return whiter + flakes + flakes[:, ::-1, ::-1]


# Mean colour, and standard deviation of brightness within 224 pixels, of the five photos that the benchmark uses.
_PANES = (
    ((0.305, 0.585, 0.650), 0.061),
    ((0.787, 0.805, 0.841), 0.079),
    ((0.787, 0.805, 0.841), 0.079),
    ((0.540, 0.599, 0.648), 0.103),
    ((0.441, 0.484, 0.528), 0.139),
)
_DIRECTIONS = 6  # of needles


def _needles(x: Picture, chance: Chance, scale: float) -> np.ndarray:
    """Patches of parallel needles over a cloud (h, w): mean 0, standard deviation 1.

    Blurred by 1, 2, 4, 8, 16 and 32 pixels, the photos keep 81, 72, 65, 59, 53 and 45% of their contrast. These needles
    come close to that and are about as parallel: the mean coherence of the photos' structure tensor is 0.34.
    """
    shape = (_DIRECTIONS, *x.shape[1:])
    patches = _gaussian(chance.normal(size=shape), 8 * scale, "reflect")
    patches = np.exp(4 * patches / patches.std())
    soft = _gaussian(chance.normal(size=shape), 0.6 * scale, "reflect")
    angles = chance.uniform(0, 360, _DIRECTIONS)
    lines = [_motion(one, max(1, 5 * scale), max(0.5, 2.5 * scale), at) for one, at in zip(soft, angles, strict=True)]
    drawn = (np.array(lines) * patches).sum(0) / patches.sum(0)
    cloud = _clouds(x, 2.0, chance)
    made = 0.8 * (drawn - drawn.mean()) / drawn.std() + 0.6 * (cloud - cloud.mean()) / cloud.std()
    return (made - made.mean()) / made.std()


def _frost(x: Picture, chance: Chance, scale: float, kept: float, added: float) -> Picture:
    rgb, contrast = _PANES[chance.integers(len(_PANES))]
    ice = _colour(rgb, len(x)) + contrast * _needles(x, chance, scale)
    return kept * x + added * np.clip(ice, 0, 1)


def _fog(x: Picture, chance: Chance, scale: float, amount: float, decay: float) -> Picture:
    brightest = x.max()
    return (x + amount * _clouds(x, decay, chance)) * brightest / (brightest + amount)


_WATER, _MUD = (175 / 255, 238 / 255, 238 / 255), (63 / 255, 42 / 255, 20 / 255)


def _spatter(
    x: Picture,
    chance: Chance,
    scale: float,
    mean: float,
    spread: float,
    sigma: float,
    least: float,
    amount: float,
    liquid: str,
) -> Picture:
    # A wider blur flattens the noise more, so the noise grows with it and covers as much of the picture.
    drops = _gaussian(chance.normal(mean, spread * scale, x.shape[1:]), sigma * scale)
    drops = np.where(drops < least, 0, drops)
    if liquid == "water":
        shine = drops * _lit(drops > 0)
        return x + amount * shine / max(float(shine.max()), 1e-6) * _colour(_WATER, len(x))
    cover = _gaussian((drops > least).astype(np.float32), amount * scale)
    cover = np.where(cover < 0.8, 0, cover)
    return x * (1 - cover) + cover * _colour(_MUD, len(x))


def _lit(drops: np.ndarray) -> np.ndarray:
    """Highlights of drops (h, w): bright on one side of their outlines."""
    from scipy.ndimage import binary_erosion, correlate, distance_transform_edt, uniform_filter

    outline = drops & ~binary_erosion(drops, border_value=1)
    if not outline.any():
        return np.zeros(drops.shape, np.float32)
    away = np.minimum(distance_transform_edt(~outline), 20)
    away = _equalised(uniform_filter(away, 3, mode="mirror").round().astype(np.uint8))
    relief = correlate(away.astype(np.float32), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    return uniform_filter(relief.clip(0, 255), 3, mode="mirror").astype(np.float32)


def _equalised(grey: np.ndarray) -> np.ndarray:
    """Equalise the histogram of uint8 values."""
    counts = np.bincount(grey.ravel(), minlength=256)
    first = int(np.flatnonzero(counts)[0])
    rest = grey.size - counts[first]
    counts[first] = 0
    return (np.cumsum(counts) * (255 / max(rest, 1))).round().astype(np.uint8)[grey]


# Light and file


def _brightness(x: Picture, chance: Chance, scale: float, added: float) -> Picture:
    # Scaling all channels by one factor keeps hue and saturation; black has neither and becomes grey.
    value = x.max(0)
    brighter = np.clip(value + added, 0, 1)
    return np.where(value > 0, x * (brighter / np.maximum(value, 1e-6)), brighter)


def _contrast(x: Picture, chance: Chance, scale: float, kept: float) -> Picture:
    means = x.mean((1, 2), keepdims=True)
    return (x - means) * kept + means


def _saturate(x: Picture, chance: Chance, scale: float, factor: float, added: float) -> Picture:
    if len(x) != 3:
        return x  # a grey picture has no colour
    value = x.max(0)
    saturation = (value - x.min(0)) / np.maximum(value, 1e-6)
    wanted = np.clip(saturation * factor + added, 0, 1)
    red = np.array([0, 1, 1], np.float32)[:, None, None] * value * wanted  # libraries give grey the hue of red
    own = (value - x) * (wanted / np.maximum(saturation, 1e-6))
    return value - np.where(saturation > 0, own, red)


def _elastic_transform(x: Picture, chance: Chance, scale: float, amount: float, sigma: float, shift: float) -> Picture:
    """Apply a random affine map, then move each pixel by a smooth field; unit 244 pixels, as published."""
    from scipy.ndimage import map_coordinates

    unit = 244 * scale
    height, width = x.shape[1:]
    y, x_ = np.mgrid[:height, :width].astype(np.float32)
    centre, reach = np.array([width, height]) // 2, min(height, width) // 3
    before = np.array([centre + reach, [centre[0] + reach, centre[1] - reach], centre - reach])
    after = before + chance.uniform(-shift * unit, shift * unit, before.shape)
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)  # (x, y, 1) @ back -> a pixel's source
    from_x, from_y = (x_ * back[0, axis] + y * back[1, axis] + back[2, axis] for axis in (0, 1))
    moved = [map_coordinates(plane, [from_y, from_x], order=1, mode="mirror") for plane in x]
    # Blurring over a length divides the noise by it, so `amount` alone would move pixels equally far at all sizes.
    dx, dy = _gaussian(chance.uniform(-1, 1, (2, height, width)), sigma * unit, "reflect", 3) * amount * unit * scale
    return np.array([map_coordinates(plane, [y + dy, x_ + dx], order=1, mode="reflect") for plane in moved])


def _pixelate(x: Picture, chance: Chance, scale: float, share: float) -> Picture:
    from PIL import Image

    image = Image.fromarray(_bytes(x))
    small = image.resize((int(image.width * share), int(image.height * share)), Image.Resampling.BOX)
    return _of_bytes(small.resize(image.size, Image.Resampling.BOX), len(x))


def _jpeg_compression(x: Picture, chance: Chance, scale: float, quality: int) -> Picture:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_bytes(x)).save(file, "JPEG", quality=quality)
    return _of_bytes(Image.open(file), len(x))


CORRUPTIONS: dict[str, tuple[Corrupt, Sequence[Any]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "glass_blur": (_glass_blur, ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2))),
    "motion_blur": (_motion_blur, ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "zoom_blur": (_zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "snow": (
        _snow,
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (_frost, ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))),
    "fog": (_fog, ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        _elastic_transform,
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    ),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (_jpeg_compression, (25, 18, 15, 10, 7)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "spatter": (
        _spatter,
        (
            (0.65, 0.3, 4, 0.69, 0.6, "water"),
            (0.65, 0.3, 3, 0.68, 0.6, "water"),
            (0.65, 0.3, 2, 0.68, 0.5, "water"),
            (0.65, 0.3, 1, 0.65, 1.5, "mud"),
            (0.67, 0.4, 1, 0.65, 1.5, "mud"),
        ),
    ),
    "saturate": (_saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
}
"""By the benchmark's name: the function, and its constants at severities 1 to 5."""
