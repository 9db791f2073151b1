"""A user's own classifiers without code: of timm, torchvision and transformers."""

import json
import re
import sys

import pandas as pd
import pytest
import torch
import yaml

from stages.concepts import Region
from stages.core.errors import InfrastructureError, UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.data import DATA_LOADERS
from stages.tasks.classification.loaders import MODEL_LOADERS
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.sources import parse_source
from tests.images import CLASSES
from tests.own_pictures import (
    COMMIT,
    FOLDER,
    answers,
    cached_repository,
    check_search,
    fails,
    normalised,
    own_context,
    prepared,
    timm_folder,
    timm_weights,
    tiny_vit,
    write_folder,
)
from tests.workspace import ROOT, Workspace, audit_params

METHOD = {"method": "all-layers", "epochs": 1, "batch_size": 4}


@pytest.fixture
def inputs(tmp_path):
    """data/own/inputs with nine pictures per class, of three classes."""
    folder = tmp_path / "own" / "inputs"
    folder.mkdir(parents=True)
    write_folder(folder / "photos", 9)
    return folder


# timm


@pytest.mark.parametrize("file", ["weights.safetensors", "checkpoint.pth"])
def test_weights_of_ones_own_for_timm(inputs, file):
    net = timm_weights(inputs / file)
    task = prepared(inputs, {"timm": "resnet10t", "weights": file, "classes": CLASSES})
    form = task.model.form
    assert (form.shape, form.mean, form.std) == ((3, 32, 32), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert f"{file}, content " in form.origin
    assert "mean and std as timm has them" in form.origin
    pixels, logits = answers(task)
    with torch.inference_mode():
        assert torch.allclose(net(normalised(pixels, form.mean, form.std)), logits, atol=1e-4)
    check_search(task)


def test_a_folder_as_timm_writes_it(inputs):
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 40, 40]}
    net = timm_folder(inputs / "mine", labels=CLASSES, **own)
    task = prepared(inputs, {"timm": "mine"}, FOLDER)
    form = task.model.form
    assert (form.classes, form.shape, form.mean) == (CLASSES, (3, 40, 40), [0.1, 0.2, 0.3])
    pixels, logits = answers(task)
    with torch.inference_mode():
        assert torch.allclose(net(normalised(pixels, form.mean, form.std)), logits, atol=1e-4)


def test_a_repository_of_the_hub_is_read_from_the_cache_alone(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    fails(inputs, {"timm": "ada/mine"}, r"holds nothing of it\. Run `faded prefetch own` where there is a network")
    fails(inputs, {"timm": "resnet10t"}, r"timm/resnet10t\.c3_in1k is not a folder .* Run `faded prefetch own`")

    timm_folder(cached_repository(tmp_path / "hub", "models--ada--mine"), labels=CLASSES)
    for name in ("ada/mine", "hf-hub:ada/mine"):
        task = prepared(inputs, {"timm": name})
        assert f"ada/mine of the Hugging Face hub at {COMMIT}" in task.model.form.origin
    fails(inputs, {"timm": "ada/mine", "revision": "v2"}, "ada/mine at v2 is not a folder")


def test_prefetch_fetches_what_the_audit_names(inputs, monkeypatch):
    context = own_context(inputs, {"timm": "ada/mine"}, {"datasets": "ada/bars", "split": "train", "revision": "v1"})
    with pytest.raises(UsageError, match=r"prepare\.model\.timm: ada/mine has to be downloaded, and HF_HUB_OFFLINE=1"):
        ImageClassification.prefetch(context)

    asked = []

    def download(name, **options):
        asked.append((name, options["revision"], options["repo_type"], options["allow_patterns"]))
        folder = inputs.parent / "hub" / "0a1b2c"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(bytes(3_000_000))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    lines = ImageClassification.prefetch(context)
    assert [line.split(";")[0] for line in lines] == [
        "model ada/mine at 0a1b2c: 3.0 MB", "dataset ada/bars at 0a1b2c: 3.0 MB",
    ]  # fmt: skip
    assert [one[:3] for one in asked] == [("ada/mine", None, "model"), ("ada/bars", "v1", "dataset")]
    unsafe = (".bin", ".pt", ".pth", ".pkl", ".py", ".ckpt", ".npz", "*")
    assert not [pattern for one in asked for pattern in one[3] if pattern.endswith(unsafe)]

    def lost(name, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lost)
    with pytest.raises(InfrastructureError, match="ada/mine could not be fetched: no route"):
        ImageClassification.prefetch(context)

    local = own_context(inputs, {"timm": "resnet10t", "weights": "w.safetensors"}, FOLDER)
    timm_weights(inputs / "w.safetensors")
    assert ImageClassification.prefetch(local) == []


# torchvision


def test_weights_of_ones_own_for_torchvision(inputs):
    from torchvision import models

    net = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).eval()
    torch.save(net.state_dict(), inputs / "w.pth")
    task = prepared(inputs, {"torchvision": "shufflenet_v2_x0_5", "weights": "w.pth", "classes": CLASSES})
    form = task.model.form
    assert "mean and std as torchvision has them" in form.origin
    pixels, logits = answers(task)
    with torch.inference_mode():
        assert torch.allclose(net(normalised(pixels, form.mean, form.std)), logits, atol=1e-4)
    plain = prepared(inputs, {"torchvision": "shufflenet_v2_x0_5", "weights": "w.pth"}, FOLDER).model.form
    assert (plain.shape, plain.view.resize, plain.view.interpolation) == ((3, 224, 224), 256, "bilinear")


# transformers


def test_a_folder_of_transformers(inputs):
    net = tiny_vit(inputs / "vit")
    task = prepared(inputs, {"transformers": "vit"}, FOLDER)
    form = task.model.form
    assert (form.classes, form.shape, form.mean, form.std) == (CLASSES, (3, 32, 32), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    assert (form.view.resize, form.view.interpolation) == ((32, 32), "bicubic")
    assert str(inputs) not in (inputs.parent / "prepare" / "model" / "config.json").read_text()
    pixels, logits = answers(task)
    with torch.inference_mode():
        assert torch.allclose(net(pixel_values=normalised(pixels, form.mean, form.std)).logits, logits, atol=1e-5)
    check_search(task)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", {"num_hidden_layers": 2}, "the weights do not fit: vit"),
        ("preprocessor_config.json", {"size": {"longest": 3}}, "is not understood"),
        ("model.safetensors", b"junk", "cannot be read"),
    ],
)
def test_a_folder_of_transformers_that_cannot_be_used(inputs, file, change, message):
    tiny_vit(inputs / "vit")
    (inputs / "vit" / "evil.py").write_text(f"open({str(inputs / 'ran')!r}, 'w')\nclass C: pass")
    path = inputs / "vit" / file
    if change is None:
        path.unlink()
    elif isinstance(change, str):
        path.rename(path.with_name(change))
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    fails(inputs, {"transformers": "vit"}, message)
    assert not (inputs / "ran").exists()


# Common to all


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"timm": "resnet10t", "weights": "no.pth"}, "prepare.model.weights: no"),
        ({"timm": "resnet10t", "weights": "../w.pth"}, "put the file or a link to it there"),
        ({"timm": "resnet10t", "weights": "w.pth", "args": {"checkpoint_path": "x"}}, "checkpoint_path cannot be set"),
        ({"transformers": "photos"}, "has no config.json"),
        ({"onnx": "no.onnx", "outputs": "logits"}, "prepare.model.onnx: no"),
        ({"endpoint": "ftp://x", "classes": ["a", "b"]}, "begins with https:// or http://"),
    ],
)  # fmt: skip
def test_a_bad_model_is_told_before_anything_runs(inputs, model, message):
    errors = ImageClassification.check(own_context(inputs, model, FOLDER))
    assert [message in error for error in errors] == [True], errors


def test_folders_that_libraries_number_differently_want_the_classes_named(tmp_path):
    inputs = tmp_path / "own" / "inputs"
    numbers = [str(i) for i in range(12)]
    write_folder(inputs / "photos", 1, classes=numbers)
    timm_weights(inputs / "w.safetensors", n=12)
    named = {"timm": "resnet10t", "weights": "w.safetensors"}
    fails(inputs, named, r"prepare\.model\.classes: missing; .*otherwise than timm: class 2 is 10 or 2\)")
    task = prepared(inputs, {**named, "classes": numbers})
    assert task.model.form.classes == numbers


def test_a_network_of_ones_own_is_repaired(inputs):
    tiny_vit(inputs / "vit")
    counts = {"discover": 9, "repair": 9, "test": 9}
    context = own_context(inputs, {"transformers": "vit"}, FOLDER)
    task = prepared(inputs, {"transformers": "vit"}, FOLDER, config={**context.config, "items": counts})
    out = inputs.parent / "repaired"
    record = task.repair(RepairPlan([TargetMode("M1", Region({"rotation": (2,)}))], METHOD, seed=1), out)
    assert record.steps > 0
    repaired = ImageClassification.load(task.context, inputs.parent / "prepare", out)
    assert not torch.equal(answers(repaired)[1], answers(task)[1])
    assert repaired.model.form == task.model.form


@pytest.mark.slow
def test_an_audit_of_ones_own_through_the_stages(tmp_path):
    audit = audit_params(
        task="stages.tasks.classification:ImageClassification",
        prepare={
            "model": {"timm": "resnet10t", "weights": "w.safetensors", "classes": CLASSES},
            "data": {"imagefolder": "photos", "size": 32},
            "items": {"discover": 12},
        },
        concepts={"rotation": [0, 30], "darkening": [0, 0.4, 0.8]},
        discover={"explorer": "random", "baseline": "random", "budget": 60, "microscopic": {"method": "none"}},
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"audits": {"own": audit}, "repairs": {}}))
    (tmp_path / "stages").symlink_to(ROOT / "stages")
    inputs = tmp_path / "data" / "own" / "inputs"
    inputs.mkdir(parents=True)
    write_folder(inputs / "photos", 9)
    timm_weights(inputs / "w.safetensors")
    out = tmp_path / "data" / "own"
    for stage in ("code", "prepare", "discover"):
        done = Workspace(tmp_path).run([sys.executable, "-m", f"stages.{stage}", "own"])
        assert done.returncode == 0, done.stdout
    assert json.loads((out / "prepare" / "metrics.json").read_text())["items"] == {"discover": 12}
    probes = pd.read_parquet(out / "discover" / "probes.parquet")
    assert set(probes["item"]) <= set(pd.read_parquet(out / "prepare" / "items.parquet")["id"])
    assert len(probes) >= 60


def test_every_source_is_in_the_documentation():
    page = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    part = page.partition("## Image classifiers")[2].partition("## A model behind HTTP")[0]
    loaders = {"model": MODEL_LOADERS, "data": DATA_LOADERS}
    named = set()
    for key, source in re.findall(r"^\|.*\| `(model|data): (\{.*\})` \|$", part, re.MULTILINE):
        named.add(type(parse_source(yaml.safe_load(source), loaders[key], "docs")))
    shipped = {MODEL_LOADERS["package"], DATA_LOADERS["package"], DATA_LOADERS["parquet"]}
    assert named == {*MODEL_LOADERS.values(), *DATA_LOADERS.values()} - shipped
