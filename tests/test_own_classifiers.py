"""A user's own classifiers: of timm, torchvision and transformers, in ONNX and behind HTTP."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.data import DATA_LOADERS
from stages.tasks.classification.loaders import MODEL_LOADERS
from stages.tasks.classification.models import load_model
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.sources import parse_source
from tests.endpoints import served
from tests.hubs import in_cache
from tests.images import CLASSES
from tests.own_pictures import (
    FOLDER,
    answers,
    check_answers,
    check_search,
    fails,
    onnx_network,
    own_context,
    prepared,
    timm_folder,
    timm_weights,
    tiny_vit,
    write_folder,
)
from tests.workspace import ROOT

METHOD = {"method": "all-layers", "epochs": 1, "batch_size": 4}


@pytest.fixture
def inputs(tmp_path):
    """data/own/inputs with nine pictures per class, of three classes."""
    folder = tmp_path / "own" / "inputs"
    folder.mkdir(parents=True)
    write_folder(folder / "photos", 9)
    return folder


def test_weights_of_ones_own_for_timm(inputs):
    net = timm_weights(inputs / "w.pth")
    task = prepared(inputs, {"timm": "resnet10t", "weights": "w.pth", "classes": CLASSES})
    form = task.model.form
    assert (form.shape, form.mean, form.std) == ((3, 32, 32), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert "w.pth, content " in form.origin and "mean and std as timm has them" in form.origin
    check_answers(task, net)
    check_search(task)


def test_a_folder_as_timm_writes_it(inputs):
    own = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "input_size": [3, 40, 40]}
    net = timm_folder(inputs / "mine", labels=CLASSES, **own)
    task = prepared(inputs, {"timm": "mine"}, FOLDER)
    form = task.model.form
    assert (form.classes, form.shape, form.mean) == (CLASSES, (3, 40, 40), [0.1, 0.2, 0.3])
    check_answers(task, net)


def test_a_repository_of_the_hub_is_read_from_the_cache_alone(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    fails(inputs, {"timm": "ada/mine"}, r"holds nothing of it\. Run `faded prefetch own` where there is a network")
    fails(inputs, {"timm": "resnet10t"}, r"timm/resnet10t\.c3_in1k is not a folder .* Run `faded prefetch own`")

    timm_folder(tmp_path / "mine", labels=CLASSES)
    commit = in_cache(monkeypatch, tmp_path / "hub", "ada/mine", tmp_path / "mine")
    for name in ("ada/mine", "hf-hub:ada/mine"):
        task = prepared(inputs, {"timm": name})
        assert f"ada/mine of the Hugging Face hub at {commit}" in task.model.form.origin
    fails(inputs, {"timm": "ada/mine", "revision": "v2"}, "ada/mine at v2 is not a folder")


def test_prefetch_fetches_what_the_audit_names(inputs, monkeypatch):
    context = own_context(inputs, {"timm": "ada/mine"}, {"datasets": "ada/bars", "split": "train", "revision": "v1"})
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
    fetched = [line.split(";")[0] for line in lines]
    assert fetched == ["model ada/mine at 0a1b2c: 3.0 MB", "dataset ada/bars at 0a1b2c: 3.0 MB"]
    assert [one[:3] for one in asked] == [("ada/mine", None, "model"), ("ada/bars", "v1", "dataset")]
    unsafe = (".bin", ".pt", ".pth", ".pkl", ".py", ".ckpt", ".npz", "*")
    assert not [pattern for one in asked for pattern in one[3] if pattern.endswith(unsafe)]

    local = own_context(inputs, {"timm": "resnet10t", "weights": "w.safetensors"}, FOLDER)
    timm_weights(inputs / "w.safetensors")
    assert ImageClassification.prefetch(local) == []


def test_weights_of_ones_own_for_torchvision(inputs):
    from torchvision import models

    net = models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).eval()
    torch.save(net.state_dict(), inputs / "w.pth")
    task = prepared(inputs, {"torchvision": "shufflenet_v2_x0_5", "weights": "w.pth", "classes": CLASSES})
    form = task.model.form
    assert "mean and std as torchvision has them" in form.origin
    check_answers(task, net)
    plain = prepared(inputs, {"torchvision": "shufflenet_v2_x0_5", "weights": "w.pth"}, FOLDER).model.form
    assert (plain.shape, plain.view.resize, plain.view.interpolation) == ((3, 224, 224), 256, "bilinear")


def test_a_folder_of_transformers(inputs):
    net = tiny_vit(inputs / "vit")
    task = prepared(inputs, {"transformers": "vit"}, FOLDER)
    form = task.model.form
    assert (form.classes, form.shape, form.mean, form.std) == (CLASSES, (3, 32, 32), [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    assert (form.view.resize, form.view.interpolation) == ((32, 32), "bicubic")
    assert str(inputs) not in (inputs.parent / "prepare" / "model" / "config.json").read_text()
    check_answers(task, net, 1e-5)
    check_search(task)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"num_hidden_layers": 2}, "the weights do not fit: vit"),
        ("preprocessor_config.json", {"size": {"longest": 3}}, "is not understood"),
        ("model.safetensors", b"junk", "cannot be read"),
    ],
)
def test_a_folder_of_transformers_that_cannot_be_used(inputs, file, change, message):
    tiny_vit(inputs / "vit")
    (inputs / "vit" / "evil.py").write_text(f"open({str(inputs / 'ran')!r}, 'w')\nclass C: pass")
    path = inputs / "vit" / file
    if isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    fails(inputs, {"transformers": "vit"}, message)
    assert not (inputs / "ran").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"timm": "resnet10t", "weights": "../w.pth"}, "put the file or a link to it there"),
        ({"timm": "resnet10t", "weights": "w.pth", "args": {"checkpoint_path": "x"}}, "checkpoint_path cannot be set"),
        ({"transformers": "photos"}, "has no config.json"),
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
    assert prepared(inputs, {**named, "classes": numbers}).model.form.classes == numbers


def test_a_network_of_ones_own_is_repaired(inputs):
    tiny_vit(inputs / "vit")
    counts = {"discover": 9, "repair": 9, "test": 9}
    context = own_context(inputs, {"transformers": "vit"}, FOLDER)
    task = prepared(inputs, {"transformers": "vit"}, FOLDER, config={**context.config, "items": counts})
    out = inputs.parent / "repaired"
    record = task.repair(RepairPlan([TargetMode("M1", Region({"rotation": (2,)}))], METHOD, seed=1), out)
    assert record.steps > 0
    repaired = ImageClassification.load(task.context, inputs.parent / "prepare", out)
    assert not torch.equal(answers(repaired)[1], answers(task)[1]) and repaired.model.form == task.model.form


def test_every_source_is_in_the_documentation():
    page = (ROOT / "docs" / "classification.md").read_text(encoding="utf-8")
    part = page.partition("## Your own model and images")[2].partition("## What a probe is")[0]
    loaders = {"model": MODEL_LOADERS, "data": DATA_LOADERS}
    named = set()
    for key, source in re.findall(r"^\|.*\| `(model|data): (\{.*\})` \|$", part, re.MULTILINE):
        named.add(type(parse_source(yaml.safe_load(source), loaders[key], "docs")))
    shipped = {MODEL_LOADERS["package"], DATA_LOADERS["package"], DATA_LOADERS["parquet"]}
    assert named == {*MODEL_LOADERS.values(), *DATA_LOADERS.values()} - shipped


@pytest.mark.parametrize(
    ("made", "named"),
    [
        ({"batch": 4}, {"outputs": "logits"}),
        ({"side": None}, {"outputs": "logits", "size": 16}),
        ({"probabilities": True}, {"outputs": "probabilities"}),
    ],
)
def test_a_network_in_onnx(inputs, made, named):
    net = onnx_network(inputs / "net.onnx", **made)
    named = {"onnx": "net.onnx", "classes": CLASSES, "mean": 0.5, "std": 0.25, **named}
    task = prepared(inputs, named, FOLDER)
    model = inputs.parent / "prepare" / "model"
    assert {path.name for path in model.iterdir()} == {"faded.json", "model.onnx"}
    pixels, logits = answers(task, 7)
    with torch.inference_mode():
        wanted = net((pixels - 0.5) / 0.25)
    wanted = wanted.log_softmax(1) if made.get("probabilities") else wanted
    assert torch.allclose(logits, wanted, atol=1e-4)
    check_search(task)


@pytest.mark.parametrize(
    ("made", "named", "message"),
    [
        ({}, {"outputs": "logits", "classes": ["a", "b"]}, "2 names, the model has 3 classes"),
        ({}, {"outputs": "probabilities"}, "expected probabilities from 0 to 1"),
        ({}, {"outputs": "logits", "output": "logit"}, r"has no output 'logit', did you mean 'logits'\?"),
        ({"side": None}, {"outputs": "logits"}, "prepare.data.size: missing; neither model nor data say"),
        (None, {"outputs": "logits"}, "is not a network that ONNX Runtime can read"),
    ],
)
def test_a_file_of_onnx_that_cannot_be_used(inputs, made, named, message):
    if made is None:
        (inputs / "net.onnx").write_bytes(b"junk")
    else:
        onnx_network(inputs / "net.onnx", **made)
    fails(inputs, {"onnx": "net.onnx", **named}, message, FOLDER)


def brightness(form="list"):
    """A model behind HTTP: the brighter the picture, the more probable is class 0."""

    def answer(one):
        share = float(np.asarray(Image.open(io.BytesIO(base64.b64decode(one["image"])))).mean()) / 255
        scores = {"flat": share, "upright": (1 - share) * 0.75, "slanted": (1 - share) * 0.25}
        if form == "best two":
            del scores["slanted"]
        return {"scores": list(scores.values()) if form == "list" else scores}

    return answer


@pytest.mark.parametrize("form", ["list", "best two"])
def test_a_classifier_behind_http(inputs, form):
    says = [brightness(form)]

    def answer(one):
        return says[-1](one)

    with served(answer) as model:
        named = {"endpoint": model.url, "classes": CLASSES, "size": 20, "batch_size": 5}
        task = prepared(inputs, named, FOLDER)
        pixels, logits = answers(task)
        share = pixels.mean((1, 2, 3))
        rest = [(1 - share) * 0.75, (1 - share) * 0.25 if form == "list" else torch.full_like(share, 1e-12)]
        assert torch.allclose(logits, torch.stack([share, *rest], 1).log(), atol=0.02)
        check_search(task)
        assert {path.name for path in (inputs.parent / "prepare" / "model").iterdir()} == {"faded.json", "answers.json"}
        says.append(lambda one: {"scores": [0.2, 0.3, 0.5]})
        with pytest.raises(UsageError, match="answers differently than when prepared"):
            ImageClassification.load(task.context, inputs.parent / "prepare")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"scores": {"flat": 1.0, "sideways": 0.0}}, "scores a class 'sideways'"),
        ({"scores": [0.5, 0.5]}, "for each of the 3 classes, by name or in their order; found 2 scores"),
        ({"label": "flat"}, "found the keys label"),
        ({"scores": [2, 0, 0]}, r"gives scores from 0 to 2, expected probabilities from 0 to 1"),
    ],
)
def test_an_endpoint_that_answers_something_else(inputs, answer, told):
    with served(lambda one: answer) as model:
        fails(inputs, {"endpoint": model.url, "classes": CLASSES, "size": 20}, told, FOLDER)


def test_a_key_is_asked_for_where_the_model_is_asked(inputs, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    named = {"endpoint": "http://127.0.0.1:9/x", "classes": CLASSES, "size": 20, "key_env": "NO_SUCH_KEY"}
    context = own_context(inputs, named, FOLDER)
    assert ImageClassification.check(context) == [] and ImageClassification.prefetch(context) == []
    fails(inputs, named, "NO_SUCH_KEY is not set", FOLDER)
    del named["size"], named["key_env"]
    fails(inputs, named, r"prepare\.data\.size: missing", FOLDER)


def test_what_only_answers_is_not_repaired_and_says_so(inputs):
    config = {"data": FOLDER, "items": dict.fromkeys(("discover", "repair", "test"), 5)}
    for model in (
        {"onnx": "net.onnx", "outputs": "logits"},
        {"endpoint": "http://127.0.0.1:9/x", "classes": CLASSES, "size": 20},
    ):
        context = own_context(inputs, {}, {}, config={**config, "model": model})
        (error,) = ImageClassification.check_repair(context, METHOD)
        assert "cannot be repaired (no weights)" in error
    trained = own_context(inputs, {}, {}, config={**config, "model": {"train": "small_cnn"}})
    assert ImageClassification.check_repair(trained, METHOD) == []


def test_weights_beside_a_file_of_onnx_are_kept_in_it(inputs):
    import onnx

    net = onnx_network(inputs / "plain.onnx")
    onnx.save_model(
        onnx.load(str(inputs / "plain.onnx")), str(inputs / "net.onnx"),
        save_as_external_data=True, location="net.data", size_threshold=0,
    )  # fmt: skip
    task = prepared(inputs, {"onnx": "net.onnx", "outputs": "logits", "classes": CLASSES}, FOLDER)
    (inputs / "net.data").unlink()
    pixels, logits = answers(task)
    with torch.inference_mode():
        assert torch.allclose(load_model(inputs.parent / "prepare" / "model")(pixels), logits)
        assert torch.allclose(logits, net(pixels), atol=1e-4)
