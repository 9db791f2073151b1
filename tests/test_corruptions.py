"""The corruptions of ImageNet-C equal the published ones, and `concepts: imagenet-c` reproduces its table."""

import colorsys
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from stages.concepts import ConceptSpace
from stages.concepts.corruptions import CORRUPTIONS, corrupt
from stages.concepts.grids import CORRUPTION, GRIDS, SEVERITY, TESTED, VALIDATED
from stages.concepts.images import CATALOGUE, ImageTransforms, check_concepts, image_space
from stages.core.intervals import wilson
from stages.landscape.corruptions import ALEXNET, CorruptionErrors, corruption_errors
from stages.params import AuditConfig
from stages.records import Effect
from stages.screening.sweep import declared_bounds
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.corrupted import Corrupted
from tests.images import image_context, write_images
from tests.workspace import audit_params

TINY = {
    "model": {"train": "small_cnn", "epochs": 1, "batch_size": 32},
    "data": {"parquet": "images.parquet"},
    "items": {"discover": 12},
}
CERTAIN = "defocus_blur zoom_blur gaussian_blur brightness contrast saturate pixelate jpeg_compression"
DRAWN = {*TESTED, *VALIDATED} - {*CERTAIN.split()}


def pictures(n: int = 3, channels: int = 3, height: int = 48, width: int = 64) -> torch.Tensor:
    noise = np.random.default_rng(0).random((n, channels, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3))
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    smooth[..., height // 4 : height // 2, width // 4 : width // 2] *= 0.4
    return torch.from_numpy(smooth).float()


def corrupted(name: str, images: torch.Tensor, severity: float, first: int = 0) -> torch.Tensor:
    levels = torch.full((len(images), 1, 1, 1), float(severity))
    return corrupt(name)(images.clone(), levels, np.arange(first, first + len(images), dtype=np.uint64))


def one(name: str, severity: int, x: np.ndarray) -> np.ndarray:
    """One picture (c, h, w) at a severity, unclipped, from the function for the published size."""
    change, constants = CORRUPTIONS[name]
    given = constants[severity - 1]
    return change(x, np.random.default_rng(0), 1.0, *(given if isinstance(given, tuple) else (given,)))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_picture_is_corrupted_alike_in_any_batch(name: str) -> None:
    for images in (pictures(2), pictures(2, 1, 32, 32)):
        together = corrupted(name, images, 5)
        assert together.shape == images.shape and together.dtype == torch.float32
        assert together.min() >= 0 and together.max() <= 1
        assert torch.equal(together[1:], corrupted(name, images[1:], 5, first=1))
        unchanged = torch.allclose(together, images, atol=1e-3)
        assert unchanged == (name == "saturate" and images.shape[1] == 1)  # a grey picture has no colour
        assert torch.equal(corrupted(name, images, 5, first=50), together) == (unchanged or name not in DRAWN)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_5_changes_more_than_severity_1(name: str) -> None:
    images = pictures(3, height=96, width=96)

    def change(severity: int) -> float:
        return float((corrupted(name, images, severity) - images).abs().mean())

    if name == "elastic_transform":  # as published, 1 and 2 shift far and bend little, 3 to 5 the reverse
        assert change(1) < change(2) and change(3) < change(5)
    else:
        assert change(5) > change(1)


def test_noise_is_as_strong_as_published() -> None:
    grey = np.full((3, 224, 224), 0.5, np.float32)
    assert one("gaussian_noise", 3, grey).std() == pytest.approx(0.18, rel=0.02)
    assert one("shot_noise", 2, grey).var() == pytest.approx(0.5 / 25, rel=0.02)
    assert one("speckle_noise", 5, grey).std() == pytest.approx(0.3, rel=0.02)
    hit = one("impulse_noise", 4, grey)
    assert (hit != 0.5).mean() == pytest.approx(0.17, abs=0.005)
    assert (hit == 1).mean() == pytest.approx(0.085, abs=0.005)


def test_blurs_are_those_of_scipy() -> None:
    x = np.random.default_rng(1).random((3, 224, 224)).astype(np.float32)
    gaussian = ndimage.gaussian_filter(x, (0, 4, 4), mode="nearest", truncate=4)
    np.testing.assert_allclose(one("gaussian_blur", 4, x), gaussian, atol=1e-5)
    square = np.hypot(*np.mgrid[-8:9, -8:9]) <= 3
    disk = square / square.sum()  # an antialiasing blur of 0.1 pixels does nothing
    blurred = np.array([ndimage.correlate(channel, disk, mode="mirror") for channel in x])
    np.testing.assert_allclose(one("defocus_blur", 1, x), blurred, atol=1e-5)

    def zoomed(factor: float) -> np.ndarray:
        side = int(np.ceil(224 / factor))
        top = (224 - side) // 2
        large = ndimage.zoom(x[:, top : top + side, top : top + side], (1, factor, factor), order=1)
        top = (large.shape[1] - 224) // 2
        return large[:, top : top + 224, top : top + 224]

    factors = np.arange(1, 1.31, 0.03)
    wanted = (x + sum(zoomed(factor) for factor in factors)) / (len(factors) + 1)
    np.testing.assert_allclose(one("zoom_blur", 5, x), wanted, atol=1e-4)


def test_colours_change_as_hue_saturation_and_value_do() -> None:
    severity = 3
    x = np.random.default_rng(2).random((3, 6, 6)).astype(np.float32)
    x[:, 0, 0], x[:, 0, 1] = 0, 0.3  # black and grey have no hue
    factor, added = CORRUPTIONS["saturate"][1][severity - 1]
    brighter = CORRUPTIONS["brightness"][1][severity - 1]
    for row in range(6):
        for column in range(6):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[:, row, column])
            wanted = colorsys.hsv_to_rgb(hue, saturation, min(1, value + brighter))
            np.testing.assert_allclose(one("brightness", severity, x)[:, row, column], wanted, atol=1e-5)
            wanted = colorsys.hsv_to_rgb(hue, min(1, saturation * factor + added), value)
            np.testing.assert_allclose(one("saturate", severity, x)[:, row, column], wanted, atol=1e-5)


def test_each_is_a_concept_that_combines_with_others() -> None:
    levels = {"fog_c": [0, 3], "rotation": [0, 20]}
    space, images = image_space(levels), pictures()
    chance = np.arange(3, dtype=np.uint64)
    out = ImageTransforms(space)(images.clone(), np.array([[0, 0], [1, 0], [1, 1]]), chance)
    assert torch.equal(out[0], images[0]) and torch.equal(out[1], corrupted("fog", images[1:2], 3, first=1)[0])
    assert not torch.allclose(out[2], corrupted("fog", images[2:3], 3, first=2)[0], atol=1e-2)


def test_between_severities_there_is_nothing() -> None:
    wanted = "concepts.fog_c: level 2.5 is not a severity of ImageNet-C, expected a whole number"
    assert check_concepts({"fog_c": [0, 2.5]}) == [wanted]
    assert check_concepts({"fog_c": [0, 6]}) == ["concepts.fog_c: level 6 is outside 0..5"]
    task: Any = SimpleNamespace(concepts=image_space({"fog_c": [0, 1], "blur": [0, 1]}))
    task.automatic_task = SimpleNamespace(catalogue=CATALOGUE)
    assert declared_bounds(task).keys() == {"blur"}, "screening proposes nothing there either"


def config(**changes: Any) -> AuditConfig:
    task = "stages.tasks.classification:ImageClassification"
    return AuditConfig.model_validate(audit_params(task=task, discrepancy={}, **changes))


def test_one_word_stands_for_the_grid() -> None:
    concepts = config(concepts="imagenet-c").concepts
    assert concepts == {CORRUPTION: ["none", *TESTED], SEVERITY: [1, 2, 3, 4, 5]}
    told = r"found 'imagenet-d', expected levels .* imagenet-c, did you mean 'imagenet-c'"
    with pytest.raises(ValueError, match=told):
        config(concepts="imagenet-d")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("stripes")
    write_images(path / "images.parquet", pools={"train": 60, "discover": 12})
    (path / "prepare").mkdir()
    context = image_context(path, config=TINY, concepts=dict(GRIDS["imagenet-c"]))
    Corrupted.before(ImageClassification).prepare(context, path / "prepare")
    return path


def load(home: Any, concepts: dict[str, Any]) -> Any:
    context = image_context(home, config=TINY, concepts=concepts)
    return Corrupted.before(ImageClassification).load(context, home / "prepare")


def test_one_corruption_at_a_time(home: Any) -> None:
    task = load(home, {"darkening": [0, 0.5], CORRUPTION: ["none", "fog", "pixelate"], SEVERITY: [1, 5]})
    ids = task.items.ids("discover")[:4]
    clean = task.clean(task.rows(ids))
    assert task.concepts.neutral.tolist() == [0, 0, 0]
    seen = task.inputs(ids, np.array([[0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 2, 1]]))
    assert torch.equal(seen[:2], clean[:2])  # without a corruption no severity changes anything
    assert torch.allclose(seen[2], clean[2] * 0.5)
    assert torch.allclose(seen[3], corrupted("pixelate", clean[3:] * 0.5, 5)[0], atol=1e-6)
    fog = task.inputs(ids, np.tile([0, 1, 1], (4, 1)))
    assert torch.equal(fog, task.inputs(ids, np.tile([0, 1, 1], (4, 1))))
    assert torch.equal(fog[2:], task.inputs(ids[2:], np.tile([0, 1, 1], (2, 1))))
    assert (fog - task.inputs(ids, np.tile([0, 1, 0], (4, 1)))).abs().mean() > 0.01


def test_what_is_wrong_with_such_concepts_is_told(home: Any) -> None:
    def errors(concepts: dict[str, Any]) -> list[str]:
        return Corrupted.before(ImageClassification).check(image_context(home, config=TINY, concepts=concepts))

    assert errors({CORRUPTION: ["none", "fog"]}) == ["concepts.corruption: expected severity beside it"]
    (told,) = errors({CORRUPTION: ["none", "fogg"], SEVERITY: [1, 5]})
    assert re.search(r"level 'fogg' is not one of none, .* did you mean 'fog'", told)
    (told,) = errors({CORRUPTION: ["none", "fog"], SEVERITY: [1, 2.5]})
    assert "2.5 is not a severity" in told


def landscape_of(space: ConceptSpace, probes: pd.DataFrame) -> Any:
    """The parts of a landscape that the table needs: its effects, counted."""
    effects = []
    for level, at in probes.groupby(CORRUPTION):
        label = space.concepts[space.names.index(CORRUPTION)].label(int(level))
        rate = wilson(int(at["failed"].sum()), len(at))
        counted = {"probes": len(at), "failures": int(at["failed"].sum())}
        spread = {"rate": rate.value, "low": rate.low, "high": rate.high}
        effects.append(Effect(concept=CORRUPTION, level=int(level), label=label, **spread, **counted))
    return SimpleNamespace(space=space, exact=True, effects=effects)


def probes_of(space: ConceptSpace, items: int, fails: dict[str, float]) -> pd.DataFrame:
    """Probes of all pairs by the control; each corruption makes a share of the items fail."""
    cells = space.cells()
    item, cell = np.repeat(np.arange(items), len(cells)), np.tile(cells, (items, 1))
    shares = np.array([fails.get(str(name), 0) for name in space.concepts[0].levels])
    failed = item < np.round(items * shares)[cell[:, 0]]
    table = pd.DataFrame(cell, columns=space.names)
    return table.assign(role="control", item=[f"i{i:03d}" for i in item], failed=failed)


def test_a_model_like_alexnet_has_an_mce_of_one() -> None:
    space = image_space(GRIDS["imagenet-c"], Corrupted.before(ImageClassification).catalogue)
    probes = probes_of(space, 400, dict(ALEXNET))
    errors = corruption_errors(landscape_of(space, probes), probes, of_imagenet=True)
    assert isinstance(errors, CorruptionErrors) and errors.normalised is not None
    assert errors.normalised.value == pytest.approx(1, abs=0.002)  # a share of 400 items
    assert errors.normalised.low < 1 < errors.normalised.high
    assert errors.mean.value == pytest.approx(np.mean(list(ALEXNET.values())), abs=0.001)
    assert errors.mean.low < errors.mean.value < errors.mean.high
    rows = {row.name: row for row in errors.rows}
    assert rows["none"].error.value == 0 and rows["none"].normalised is None
    assert rows["fog"].error.value == pytest.approx(ALEXNET["fog"], abs=0.002)
    numbers = errors.numbers()
    assert {"mce", "mce_low", "mce_high", "mean_corruption_error", "corruption_error_fog_low"} <= numbers.keys()
