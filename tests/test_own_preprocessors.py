"""The settings read from a preprocessor_config.json, compared with what transformers does with it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.classification.pictures import decode
from stages.tasks.classification.preprocessor import SUPPORTED, Preprocessor
from tests.own_pictures import normalised, striped


def seen_and_theirs(folder, told):
    """A photo shown by the settings of a folder, and by the processor that transformers makes of it."""
    from transformers import AutoImageProcessor

    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    seen = Preprocessor.of(folder, told, {}, "here")
    pixels = np.array(striped(2, np.random.default_rng(0), width=430, height=310))
    pixels[..., 1] = 255 - pixels[..., 1]  # not grey, so that channels have an order
    photo = Image.fromarray(pixels)
    photo.save(folder / "a.png")
    pixels = torch.from_numpy(decode(folder / "a.png", seen.shape, seen.view)).float()[None] / 255
    ours = normalised(pixels, seen.mean, seen.std)
    theirs = AutoImageProcessor.from_pretrained(folder, backend="torchvision")(photo, return_tensors="pt")
    return seen, ours.flip(1) if seen.bgr else ours, torch.as_tensor(theirs["pixel_values"])


def check_alike(folder, told):
    """Filters of two libraries differ by a few of 256 levels, another crop or normalisation by far more."""
    seen, ours, theirs = seen_and_theirs(folder, told)
    assert ours.shape == theirs.shape and (ours - theirs).abs().mean() < 0.01 * (theirs.max() - theirs.min())
    return seen


def saved(folder, kind, settings):
    """The settings that save_pretrained() writes for a processor."""
    import transformers

    getattr(transformers, kind)(**settings).save_pretrained(folder)
    return json.loads((folder / "preprocessor_config.json").read_text())


FRAMED = {"MobileViTImageProcessor": {"size": {"shortest_edge": 288}}}  # by default it cuts 256 pixels out of 224


@pytest.mark.parametrize("kind", SUPPORTED)
def test_a_preprocessor_of_each_kind_is_read_as_transformers_reads_it(tmp_path, kind):
    check_alike(tmp_path, saved(tmp_path, kind, FRAMED.get(kind, {})))


NORMAL = {"do_normalize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3}


@pytest.mark.parametrize(
    ("told", "resize", "side"),
    [
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "crop_pct": 0.875}, 256, 224),
        ({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "crop_pct": None}, (384, 384), 384),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 240, "crop_size": 224}, 240, 224),
        ({"feature_extractor_type": "PerceiverFeatureExtractor", "size": 224, "crop_size": 256}, 256, 224),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224}, (256, 256), 224),
    ],
)  # fmt: skip
def test_an_old_preprocessor_is_read_as_transformers_reads_it(tmp_path, told, resize, side):
    seen = check_alike(tmp_path, {**NORMAL, **told})
    assert (seen.view.resize, seen.shape) == (resize, (3, side, side))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"image_processor_type": "ImageGPTImageProcessor"}, "is of ImageGPTImageProcessor.*understood are BeitImage"),
        ({"image_processor_type": "ViTImageProcessor", "do_spin": True}, "has do_spin, which is not understood"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "would get a black frame"),
        ({"image_processor_type": "Evil", "auto_map": {"AutoImageProcessor": "evil.C"}}, "is not understood"),
    ],
)  # fmt: skip
def test_a_preprocessor_that_is_not_understood_is_refused(tmp_path, told, message):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UsageError, match=message):
        seen_and_theirs(tmp_path, told)
    assert not (tmp_path / "ran").exists()
