"""Weights and images in installed packages: read without importing them, and checked before use."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.classification import ImageClassification
from tests.images import image_context

timm = pytest.importorskip("timm")
ARCHITECTURE = "tf_efficientnet_lite0"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of 6 photos, and weights with 4 classes and other layer names; importing it is an error."""
    home = tmp_path / "site" / "toy_weights"
    (home / "photos").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')")
    rng = np.random.default_rng(0)
    for i in range(6):
        picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8))
        picture.save(home / "photos" / f"photo_{i}_{i % 4}.png")
    torch.manual_seed(0)
    state = timm.create_model(ARCHITECTURE, num_classes=4).state_dict()
    torch.save({f"_{name}": value for name, value in state.items()}, home / "weights.pth")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return home


def run(out, model=None, data=None, items=None):
    context = image_context(out, concepts={"rotation": [0, 30], "saturation": [1, 0]})
    config = {
        "model": {
            "package": "toy_weights",
            "file": "weights.pth",
            "timm": ARCHITECTURE,
            "match": "order",
            **(model or {}),
        },
        "data": {
            "package": "toy_weights",
            "files": "photos/*.png",
            "crops": 5,
            "resize": 40,
            "size": 32,
            **(data or {}),
        },
        "items": items or {"discover": 30},
    }
    context = dataclasses.replace(context, config=config)
    return context, ImageClassification.prepare(context, out)


def test_crops_and_weights_arrive(package, tmp_path):
    context, metrics = run(tmp_path)
    assert metrics["items"] == {"discover": 30} and metrics["classes"] == 4
    task = ImageClassification.load(context, tmp_path)
    pixels = task.clean(task.rows(["photo_3_3-0"]))
    assert pixels.shape == (1, 3, 32, 32)
    photo = Image.open(package / "photos" / "photo_3_3.png").resize((53, 40), Image.Resampling.BICUBIC)
    assert np.array_equal((pixels[0] * 255).round().numpy(), np.asarray(photo)[4:36, 10:42].transpose(2, 0, 1))
    reference = timm.create_model(ARCHITECTURE, num_classes=4).eval()
    own = torch.load(package / "weights.pth", weights_only=True)
    reference.load_state_dict({name[1:]: value for name, value in own.items()})
    with torch.inference_mode():
        assert torch.allclose(task.model(pixels), reference(pixels), atol=1e-5)


def test_crops_of_a_photo_are_a_group_and_stay_in_one_split(package, tmp_path):
    context, _ = run(tmp_path, items={"discover": 10, "repair": 5, "test": 5})
    table = ImageClassification.load(context, tmp_path).items.table
    photos = table["id"].str.rsplit("-", n=1).str[0]
    assert (table.groupby(photos)[["split", "group"]].nunique() == 1).all(axis=None)
    assert table["group"].nunique() == photos.nunique()
    assert table["split"].value_counts().to_dict() == {"discover": 10, "repair": 5, "test": 5}


def test_a_corrupt_photo_is_skipped_or_an_error(package, tmp_path):
    (package / "photos" / "photo_5_1.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"1 of 6 pictures cannot be read, .*max_corrupt allows 5%: photo_5_1\.png"):
        run(tmp_path, items={"discover": 10})
    _, metrics = run(tmp_path, data={"max_corrupt": 0.2}, items={"discover": 25})
    assert metrics["skipped"] == 1


def test_a_pickle_that_runs_code_is_refused(package, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"a": Evil()}, package / "weights.pth")
    with pytest.raises(UsageError, match="not a readable file of tensors"):
        run(tmp_path)
