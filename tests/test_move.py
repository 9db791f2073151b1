"""A repaired model moved part of the way: the model under test at one end, what was learnt at the other."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.training import interpolate, scale_adapter
from tests.images import image_context, write_images

PICTURES = TargetMode("M1", Region({"rotation": (2,), "darkening": (1, 2)}))


def contents(folder):
    """The bytes of all files below a folder, without those of weights and of the card, which says how far it went."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".safetensors"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != "README.md"}


def same(one, other):
    """Whether two models' tensors are the same bytes under the same names."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].numpy().tobytes() == other[name].numpy().tobytes()
        for name in one
    )


# Weights


@pytest.fixture
def trained(tmp_path):
    """Original tensors, and a folder of trained ones with another file."""
    draw = torch.Generator().manual_seed(0)
    original = {
        "weight": torch.randn(3, 4, generator=draw),
        "half": torch.randn(5, generator=draw).to(torch.float16),
        "seen": torch.tensor(7),
    }
    learnt = {
        "weight": torch.randn(3, 4, generator=draw),
        "half": torch.randn(5, generator=draw).to(torch.float16),
        "seen": torch.tensor(9),
    }
    original["weight"][0, 0], learnt["weight"][0, 0] = -0.0, 1e30  # a sum would lose the one beside the other
    (tmp_path / "learnt").mkdir()
    save_file(learnt, tmp_path / "learnt" / "model.safetensors", metadata={"format": "pt", "about": "x"})
    (tmp_path / "learnt" / "faded.json").write_text("{}")
    return original, learnt, tmp_path / "learnt"


def test_weights_are_exact_at_both_ends_and_between_them_elsewhere(trained, tmp_path):
    original, learnt, folder = trained
    found = {}
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        interpolate(folder, share, tmp_path / str(share), original)
        found[share] = load_file(tmp_path / str(share) / "model.safetensors")
        assert contents(tmp_path / str(share)) == contents(folder)
    assert same(found[0.0], original)
    assert (tmp_path / "1.0" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    for share in (0.1, 0.5, 0.9):
        assert found[share]["seen"] == 9, "a whole number has no share"
        assert found[share]["half"].dtype == torch.float16
        for name, rough in (("weight", 1e-6), ("half", 1e-3)):
            wanted = (1 - share) * original[name].double() + share * learnt[name].double()
            assert torch.allclose(found[share][name].double(), wanted, rtol=rough, atol=rough)


def test_the_same_weights_are_the_same_bytes(trained, tmp_path):
    original, _, folder = trained
    written = set()
    for n in range(8):  # the library writes the file's metadata in random order
        interpolate(folder, 0.3, tmp_path / str(n), original)
        written.add((tmp_path / str(n) / "model.safetensors").read_bytes())
    assert len(written) == 1


def test_of_an_adapter_one_factor_is_scaled(tmp_path):
    (tmp_path / "adapter").mkdir()
    learnt = {f"layer.{factor}.weight": torch.ones(2, 2) for factor in ("lora_A", "lora_B")}
    save_file(learnt, tmp_path / "adapter" / "adapter_model.safetensors")
    scale_adapter(tmp_path / "adapter", 0.25, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: tensor.unique().tolist() for name, tensor in found.items()} == {
        "layer.lora_A.weight": [1.0],
        "layer.lora_B.weight": [0.25],
    }


def test_a_folder_without_weights_cannot_be_moved(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no weights to move"):
        scale_adapter(tmp_path / "empty", 0.5, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Kinds of models: each is made, repaired, moved, and loaded as its stages load it


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    home = tmp_path_factory.mktemp("stripes")
    write_images(home / "inputs" / "images.parquet")
    (home / "prepare").mkdir()
    ImageClassification.prepare(image_context(home / "inputs"), home / "prepare")
    return home, ImageClassification.load(image_context(home / "inputs"), home / "prepare")


@pytest.mark.parametrize("method", sorted(ImageClassification.movable))
def test_a_classifier_goes_from_the_model_under_test_to_what_was_learnt(pictures, method, tmp_path):
    home, task = pictures
    settings = {"method": method, "epochs": 1, "batch_size": 30}
    task.repair(RepairPlan([PICTURES], settings, seed=1), tmp_path / "learnt")
    ids = task.items.ids("test")[:60]
    cells = task.concepts.sample(len(ids), np.random.default_rng(0))
    answers = {}
    for share in (0.0, 0.5, 1.0):
        out = tmp_path / str(share)
        task.move(tmp_path / "learnt", share, out)
        assert contents(out) == contents(tmp_path / "learnt")
        answers[share] = ImageClassification.load(task.context, home / "prepare", out).logits(ids, cells)
    weights = [load_file(path / "model.safetensors") for path in (home / "prepare" / "model", tmp_path / "0.0")]
    assert same(*weights)
    ends = [path / "model.safetensors" for path in (tmp_path / "learnt", tmp_path / "1.0")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert torch.equal(answers[0.0], task.logits(ids, cells))
    learnt = ImageClassification.load(task.context, home / "prepare", tmp_path / "learnt").logits(ids, cells)
    assert torch.equal(answers[1.0], learnt)
    halves = [float((answers[0.5] - answers[end]).norm()) for end in (0.0, 1.0)]
    assert 0 < max(halves) < float((answers[1.0] - answers[0.0]).norm())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_summarizer_goes_from_the_model_under_test_to_what_was_learnt(method, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    from stages.tasks.language.models import load_summarizer
    from stages.tasks.summarization import Summarization
    from stages.tasks.summarization import repair as repair_module
    from stages.tasks.summarization.training import Lesson, token_logits
    from tests.test_summarization_repair import UPPER, context, plan

    monkeypatch.setattr(repair_module, "verify", lambda *_: None)  # a fresh process, which takes seconds
    asked, base = context(tmp_path / "inputs"), tmp_path / "prepare" / "model"
    base.parent.mkdir()
    Summarization.prepare(asked, base.parent)
    task, adapter = Summarization.load(asked, base.parent), method == "lora"
    settings = {"merged": True} if adapter else {}
    task.repair(plan([UPPER], method=method, learning_rate=5e-3, **settings), tmp_path / "learnt")
    lessons = [Lesson(article, "A bridge opens.") for article in task.items.table["article"][:3]]
    ids, cells = task.items.ids("test"), np.zeros((len(task.items.ids("test")), 2), int)
    answers, whole, said = {}, {}, {}
    for share in (0.0, 0.5, 1.0):
        task.move(tmp_path / "learnt", share, out := tmp_path / str(share))
        assert contents(out).keys() == contents(tmp_path / "learnt").keys()
        assert json.loads((out / "faded.json").read_bytes()) == json.loads(
            (tmp_path / "learnt/faded.json").read_bytes()
        )
        loaded = Summarization.load(asked, base.parent, out)
        answers[share], said[share] = token_logits(loaded.summarizer, lessons), loaded.probe(ids, cells).outputs
        if adapter:
            whole[share] = token_logits(load_summarizer(out / "merged", asked.compute), lessons)
            assert torch.allclose(whole[share], answers[share], atol=1e-5)
    before, after = task.summarizer, load_summarizer(tmp_path / "learnt", asked.compute, base)
    # The last bits differ even with an adapter of zeros, so a stage goes no way at all by a copy of the model.
    assert torch.allclose(answers[0.0], token_logits(before, lessons), atol=1e-5)
    assert said[0.0] == task.probe(ids, cells).outputs
    assert torch.equal(answers[1.0], token_logits(after, lessons))
    halves = [float((answers[0.5] - answers[end]).norm()) for end in (0.0, 1.0)]
    assert 0 < max(halves) < float((answers[1.0] - answers[0.0]).norm())
    if adapter:
        assert torch.allclose(read_by_peft(base, tmp_path / "0.5", before, lessons), answers[0.5], atol=1e-4)


def read_by_peft(base, adapter, summarizer, lessons):
    """The logits of a model with an adapter, read as load.py reads them."""
    import copy

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from stages.tasks.summarization.training import token_logits

    plain = copy.copy(summarizer)
    plain.model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    return token_logits(plain, lessons)


def test_a_pipeline_goes_from_the_model_under_test_to_what_was_learnt(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    from stages.tasks.text_to_image import TextToImage
    from stages.tasks.text_to_image import repair as repair_module
    from stages.tasks.text_to_image.models import LORA
    from stages.tasks.text_to_image.repair import pixels
    from tests.boxes import boxes
    from tests.test_text_to_image_repair import plan

    monkeypatch.setattr(repair_module, "verify", lambda *_: None)
    asked, prepared = boxes(tmp_path / "inputs"), tmp_path / "prepare"
    prepared.mkdir()
    TextToImage.prepare(asked, prepared)
    task = TextToImage.load(asked, prepared)
    task.repair(plan(steps=10, learning_rate=3e-2, rank=8), tmp_path / "learnt")

    states = torch.randn(5, 2, 16).transpose(0, 1)  # not in order, which torch multiplies with in several ways

    def drawn(folder):
        painter = TextToImage.load(asked, prepared, folder).painter
        with torch.inference_mode():
            predicted.append(painter.pipeline.unet(torch.ones(2, 4, 8, 8), 5, states).sample)
        return pixels(painter, ["a red box", "a blue box"], [1, 2]).astype(int)

    found, predicted = {}, []
    for share in (0.0, 0.5, 1.0):
        task.move(tmp_path / "learnt", share, tmp_path / str(share))
        assert contents(tmp_path / str(share)) == contents(tmp_path / "learnt")
        found[share] = drawn(tmp_path / str(share))
    assert np.array_equal(found[0.0], drawn(None)) and torch.allclose(predicted[0], predicted[-1], atol=1e-5)
    assert np.array_equal(found[1.0], drawn(tmp_path / "learnt"))
    assert (tmp_path / "1.0" / LORA).read_bytes() == (tmp_path / "learnt" / LORA).read_bytes()
    assert 0 < np.abs(found[0.5] - found[0.0]).sum() < np.abs(found[1.0] - found[0.0]).sum()
