"""Text-to-image pipelines: read from folders, stored unchanged, repaired; errors are one line."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.errors import UsageError
from stages.core.files import write_json
from stages.tasks.contract import Compute
from stages.tasks.sources import source_errors
from stages.tasks.text_to_image.config import SamplingConfig
from stages.tasks.text_to_image.models import (
    LORA,
    MODEL_LOADERS,
    DiffusersModel,
    load_pipeline,
    model_hash,
    scheduler_errors,
)
from stages.tasks.text_to_image.sample import Painter
from tests.tiny_pipelines import tiny_pipeline

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

QUICK = SamplingConfig(steps=2, guidance=3)
COMPUTE = Compute(threads=1, batch_size=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """inputs/ with a pipeline stored in half precision, model/ with the result of `build`."""
    home = tmp_path_factory.mktemp("pipelines")
    tiny_pipeline(home / "inputs" / "tiny", dtype=torch.float16)
    DiffusersModel(diffusers="tiny").build(home / "inputs", home / "model")
    return home


@pytest.fixture
def inputs(home, tmp_path):
    """A copy of inputs/ that may be broken."""
    shutil.copytree(home / "inputs", tmp_path / "inputs")
    return tmp_path / "inputs"


def errors(inputs, **source):
    return source_errors({"diffusers": "tiny"} | source, MODEL_LOADERS, "prepare.model", inputs)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def picture(folder, sampling=QUICK, lora=None):
    painter = Painter(load_pipeline(folder, COMPUTE, sampling, lora=lora), sampling, COMPUTE)
    return painter.draw(["a red circle", "a blue square"], [0, 1])[0].pixels.tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_kept_as_stored_and_computed_with_as_asked(home, dtype):
    stored = load_file(home / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    pipeline, wanted = load_pipeline(home / "model", replace(COMPUTE, dtype=dtype), QUICK), getattr(torch, dtype)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in part.parameters()} == {wanted}
    assert torch.equal(pipeline.unet.conv_in.weight, stored["conv_in.weight"].to(wanted))


def _gone(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tiny: _gone(tiny / "model_index.json"), r"has no model_index\.json.*found scheduler, text_encoder"),
        (lambda tiny: edit(tiny / "model_index.json", _class_name="StableDiffusionInpaintPipeline"), "InpaintPipeline"),
        (lambda tiny: (tiny / "unet" / "diffusers.py").touch(), r"unet contains its own code, diffusers\.py"),
        (lambda tiny: _gone(tiny / "text_encoder" / "model.safetensors"), r"text_encoder has no weights"),
        (lambda tiny: edit(tiny / "unet" / "config.json", in_channels=9), "takes 9 channels where pictures have 4"),
    ],
)
def test_what_a_folder_lacks_is_one_line_before_anything_runs(inputs, change, told):
    change(inputs / "tiny")
    (line,) = errors(inputs)
    assert re.search(told, line)
    with pytest.raises(UsageError, match=told):
        DiffusersModel(diffusers="tiny").build(inputs, inputs / "model")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"diffusers": "not/there/at_all"}, "no .*at_all; found there: tiny"),
        ({"diffusers": "../tiny"}, r"prepare\.model\.diffusers"),
        ({"revision": "main"}, r"prepare\.model\.revision: .* is a folder"),
    ],
)
def test_a_wrong_block_is_told_before_anything_runs(home, source, told):
    assert re.search(told, "\n".join(errors(home / "inputs", **source)))


def test_no_component_is_read_from_a_pickle_whatever_its_name(inputs, monkeypatch):
    """If its safetensors are elsewhere, torch.load would read a file named like a feature extractor."""
    part = inputs / "tiny" / "feature_extractor"
    shutil.copytree(inputs / "tiny" / "text_encoder", part)
    (part / "model.safetensors").rename(part / "other.safetensors")
    torch.save({}, part / "pytorch_model.bin")
    edit(inputs / "tiny" / "model_index.json", feature_extractor=["transformers", "CLIPTextModel"])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))
    with pytest.raises(UsageError, match=r"cannot be read: .*model\.safetensors"):
        DiffusersModel(diffusers="tiny").build(inputs, inputs / "model")


def test_weights_that_are_missing_are_not_made_up(inputs):
    (path,) = (inputs / "tiny" / "unet").glob("*.safetensors")
    state = load_file(path)
    del state[next(name for name in sorted(state) if "bias" in name)]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"the weights of unet do not fit: .*bias"):
        DiffusersModel(diffusers="tiny").build(inputs, inputs / "model")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"^prepare\.model\.diffusers: .* cannot be read[^\n]*$"):
        DiffusersModel(diffusers="tiny").build(inputs, inputs / "model")


@pytest.mark.parametrize(
    ("scheduler", "options", "told", "early"),
    [
        ("DDIMSchedulr", {}, "no scheduler DDIMSchedulr; did you mean .*DDIMScheduler", True),
        ("DDIMScheduler", {"karras": 1}, "DDIMScheduler knows no karras; it has num", True),
        ("RePaintScheduler", {}, "RePaintScheduler does not fit the model, whose own is DDIMScheduler", False),
        (None, {"beta_schedule": "steep"}, "DDIMScheduler refuses them: .*steep", False),
    ],
)
def test_a_wrong_scheduler_is_told_before_anything_runs_where_that_can_be(home, scheduler, options, told, early):
    sampling = QUICK.model_copy(update={"scheduler": scheduler, "scheduler_options": options})
    errors = scheduler_errors(sampling)
    assert len(errors) == early and all(re.search(told, line) for line in errors)
    with pytest.raises(UsageError, match=told):
        load_pipeline(home / "model", COMPUTE, sampling)


@pytest.fixture(scope="module")
def lora(home):
    from peft.utils import get_peft_model_state_dict

    folder = home / "lora"
    pipeline = load_pipeline(home / "model", COMPUTE, QUICK)
    pipeline.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.5)
    pipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipeline.unet))
    write_json(folder / "faded.json", {"base": model_hash(home / "model")})
    return folder


def test_a_repair_is_merged_has_a_hash_of_its_own_and_changes_pictures_the_same_way_each_time(home, lora):
    assert picture(home / "model", lora=lora) == picture(home / "model", lora=lora) != picture(home / "model")
    pipeline = load_pipeline(home / "model", COMPUTE, QUICK, lora=lora)
    assert not [name for name, _ in pipeline.unet.named_parameters() if "lora" in name]
    assert Painter(pipeline, QUICK, COMPUTE).hash not in ("", model_hash(home / "model"))


def _elsewhere(folder):
    state = {name.replace("unet.", "unet.nowhere."): tensor for name, tensor in load_file(folder / LORA).items()}
    save_file(state, folder / LORA, metadata={"format": "pt"})


def _with_nan(folder):
    state = load_file(folder / LORA)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, folder / LORA, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: write_json(folder / "faded.json", {"base": "0" * 16}), "is a repair of the model 0{16}; the"),
        (_elsewhere, r"pytorch_lora_weights\.safetensors.*(fit|cannot be read)"),
        (_with_nan, "1 of its tensors hold values that are not finite"),
    ],
)
def test_a_repair_that_does_not_fit_is_refused(home, lora, tmp_path, damage, told):
    shutil.copytree(lora, tmp_path / "lora")
    damage(tmp_path / "lora")
    with pytest.raises(UsageError, match=told):
        load_pipeline(home / "model", COMPUTE, QUICK, lora=tmp_path / "lora")
