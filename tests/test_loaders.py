"""load.py beside a repaired classifier: libraries alone load it, prepare its pictures and answer as Faded does."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.tasks.classification import repair
from stages.tasks.classification.families import FAMILIES, Form, loading
from stages.tasks.classification.models import Classifier, load_model, save_model, seeded
from stages.tasks.classification.pictures import View, decode
from stages.tasks.training import write_loader
from tests.alone import load_alone

CLASSES = ["'quoted'", "b", "c"]
VIT = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT |= {"intermediate_size": 32, "image_size": 32, "patch_size": 8}
VIEW = View(resize=(40, 40), interpolation="bilinear")
COLOURS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
FORMS = {
    "small_cnn": {"architecture": "small_cnn", "shape": (1, 28, 28), "mean": 0.13, "std": 0.31},
    "timm": {"architecture": "resnet10t", "shape": (3, 32, 32), "view": View(resize=36), **COLOURS},
    "torchvision": {"architecture": "squeezenet1_1", "shape": (3, 32, 32), "view": VIEW, **COLOURS},
    "transformers": {"architecture": "vit", "shape": (3, 32, 32), "settings": {"config": VIT, "bgr": True}, **COLOURS},
}


def written(folder: Path, family: str, **form) -> Classifier:
    """A network with random weights, as a repair writes it."""
    made = Form(family=family, classes=CLASSES, origin="a test", **form)
    with seeded(0):
        model = Classifier(made, FAMILIES[family](made)).eval()
    save_model(model, folder)
    write_loader(folder, repair.__file__, **loading(made, model.net))
    return model


def pictures(folder: Path) -> list[Path]:
    """Colour pictures of several sizes; the last one lies on its side, as a camera says."""
    folder.mkdir()
    paths = []
    for number, (width, height) in enumerate([(32, 32), (64, 128), (300, 150)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        turned = Image.Exif()
        turned[0x0112] = 6 if number == 2 else 1
        paths.append(folder / f"picture {number}.png")
        Image.fromarray(pixels).save(paths[-1], exif=turned)
    return paths


@pytest.mark.parametrize("family", [pytest.param(f, marks=() if f == "small_cnn" else pytest.mark.slow) for f in FORMS])
def test_a_library_alone_answers_as_faded_does(family, tmp_path):
    model = written(tmp_path / "a model #1", family, **FORMS[family])
    paths = pictures(tmp_path / "pictures")
    code = "import json\nfor name in sys.argv[1:]: print(json.dumps(probabilities(Image.open(name)).tolist()))"
    lines = load_alone(tmp_path / "a model #1", *paths, code=code, cwd=tmp_path)

    seen = np.stack([decode(path, model.form.shape, model.form.shown) for path in paths])
    with torch.inference_mode():
        known = load_model(tmp_path / "a model #1")(torch.from_numpy(seen).float() / 255).softmax(1).numpy()
    np.testing.assert_allclose([json.loads(line) for line in lines[3:]], known, atol=1e-5)
    assert len(np.unique(known.round(4))) > 3, "answers that say nothing"
    assert lines[:3] == [f"{path}: {CLASSES[k]}" for path, k in zip(paths, known.argmax(1), strict=True)]


@pytest.mark.parametrize(("shape", "view"), [((3, 64, 64), View(resize=80)), ((1, 96, 96), None)])
def test_timm_reads_the_sizes_and_the_classes_of_a_model(shape, view, tmp_path):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    model = written(tmp_path, "timm", architecture="resnet10t", shape=shape, view=view)
    found = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert found.pretrained_cfg["label_names"] == CLASSES
    transform = create_transform(**resolve_model_data_config(found))
    side = 80 if view else 96
    assert transform.transforms[0].size in (side, (side, side))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    seen = torch.tensor(decode(tmp_path / "picture.png", shape, model.form.shown)).float() / 255
    pixels = transform(picture.convert("L" if shape[0] == 1 else "RGB"))
    assert torch.equal(pixels, seen), "mean 0, deviation 1"
    with torch.inference_mode():
        assert torch.allclose(found(pixels[None]), model(seen[None]), atol=1e-5)
