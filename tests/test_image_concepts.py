"""Image concepts do what their names say, image by image, and change nothing at their neutral level."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.concepts.images import CATALOGUE, ImageTransforms, check_concepts, image_space

LEVEL = {
    "rotation": 30, "translation": 0.25, "scale": 0.7, "occlusion": 0.3, "darkening": 0.5,
    "brightness": 0.2, "contrast": 0.4, "saturation": 0.3, "blur": 1.5, "noise": 0.1,
}  # fmt: skip


def pictures(n: int = 6, channels: int = 3, height: int = 12, width: int = 12) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0))


def apply(images: torch.Tensor, cells: list[list[int]], levels: dict, chance: np.ndarray | None = None) -> torch.Tensor:
    chance = np.arange(len(images), dtype=np.uint64) * np.uint64(7919) if chance is None else chance
    return ImageTransforms(image_space(levels))(images.clone(), np.array(cells), chance)


def one(name: str, level: float, images: torch.Tensor) -> torch.Tensor:
    return apply(images, [[1]] * len(images), {name: [CATALOGUE[name].neutral, level]})


@pytest.mark.parametrize("name", LEVEL)
def test_neutral_leaves_every_bit_and_other_levels_do_not(name):
    images = pictures()
    cells = [[0], [1], [0], [1], [0], [0]]
    out = apply(images, cells, {name: [CATALOGUE[name].neutral, LEVEL[name]]})
    touched = np.array(cells)[:, 0] == 1
    assert torch.equal(out[~touched], images[~touched])
    assert all(not torch.allclose(a, b, atol=1e-3) for a, b in zip(out[touched], images[touched], strict=True))
    assert out.min() >= 0 and out.max() <= 1


def test_an_image_is_changed_alike_in_any_batch():
    assert {*LEVEL} == {name for name in CATALOGUE if not name.endswith("_c")}  # these are in tests/test_corruptions.py
    neutral = {name: CATALOGUE[name].neutral for name in LEVEL}
    levels = {name: [neutral[name], level, (neutral[name] + level) / 2] for name, level in LEVEL.items()}
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 3, (6, len(levels)))
    cells[0] = 0  # the neutral cell
    chance = rng.integers(0, 2**63, 6).astype(np.uint64)
    images = pictures()
    together = apply(images, cells.tolist(), levels, chance)
    assert torch.equal(together[0], images[0])
    for i in range(len(images)):
        alone = apply(images[i : i + 1], cells[i : i + 1].tolist(), levels, chance[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-6)


def test_geometry():
    images = pictures()
    assert torch.allclose(one("rotation", 90, images), torch.rot90(images, 1, (2, 3)), atol=1e-5)
    wide = torch.zeros(1, 1, 21, 41)
    wide[..., 7:14, 17:24] = 1
    assert torch.allclose(one("rotation", 90, wide), wide, atol=1e-4), "a square stays square"
    point = torch.zeros(1, 1, 8, 8)
    point[..., 4, 2] = 1
    moved = one("translation", 0.25, point)  # to the right, by a share of the shorter side
    assert moved[0, 0, 4, 4] == pytest.approx(1, abs=1e-5)
    square = torch.zeros(1, 1, 16, 16)
    square[..., 4:12, 4:12] = 1
    assert one("scale", 0.5, square).sum() == pytest.approx(16, rel=0.05)


def test_photometric_concepts():
    images = pictures()
    assert one("darkening", 0.25, images).mean() == pytest.approx(images.mean().item() * 0.75, rel=1e-5)
    assert torch.allclose(one("brightness", 0.2, images), (images + 0.2).clamp(0, 1))
    assert one("contrast", 0.5, images).std() < images.std()
    grey = one("saturation", 0, images)
    assert torch.allclose(grey[:, 0], grey[:, 2], atol=1e-6)
    assert torch.equal(one("saturation", 0, images[:, :1]), images[:, :1])
    assert (one("occlusion", 0.25, torch.ones(4, 1, 20, 20)) == 0.5).float().mean() == pytest.approx(0.25)


@pytest.mark.parametrize("sigma", [0.4, 6.0])
def test_blur_of_large_pictures_is_that_of_scipy(sigma):
    pictures = np.random.default_rng(0).random((2, 3, 120, 150), dtype=np.float32)
    radius = int(np.ceil(3 * sigma))
    wanted = [[gaussian_filter(c, sigma, mode="mirror", radius=radius) for c in picture] for picture in pictures]
    np.testing.assert_allclose(one("blur", sigma, torch.tensor(pictures)), wanted, atol=1e-5)


def test_noise_has_the_stated_deviation_and_belongs_to_the_probe():
    images = torch.full((2, 3, 64, 64), 0.5)
    first = apply(images, [[1], [1]], {"noise": [0, 0.1]}, np.array([5, 6], dtype=np.uint64))
    assert (first - 0.5).std() == pytest.approx(0.1, rel=0.05) and not torch.allclose(first[0], first[1])
    swapped = apply(images, [[1], [1]], {"noise": [0, 0.1]}, np.array([6, 5], dtype=np.uint64))
    assert torch.equal(first.flip(0), swapped)


def test_bad_levels_and_names_are_told_at_once():
    errors = check_concepts({"rotation": [0, 400], "rotatoin": [0, 1], "blur": [0, "much"]})
    assert errors[0] == "concepts.rotation: level 400 is outside -180..180 °"
    assert "did you mean 'rotation'?" in errors[1] and "'much' is not a number" in errors[2] and len(errors) == 3
