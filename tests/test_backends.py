"""Backends of a classifier: each gives torch's logits in any batch; `auto` is resolved once, and people see it."""

import importlib.util
import json
import platform
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from stages.core.errors import UsageError
from stages.params import load_params
from stages.prepare import main as prepare
from stages.provenance import provenance
from stages.records import Provenance
from stages.tasks.classification import ImageClassification, backends
from stages.tasks.classification.backends import Backend, choose_backend, compute_errors
from stages.tasks.classification.families import FAMILIES, Form
from stages.tasks.classification.models import Classifier, clone
from stages.tasks.contract import Compute
from stages.tasks.load import task_context
from tests.images import image_context, stripes, write_images
from tests.workspace import audit_params

COMPUTE = Compute("cpu", threads=1, batch_size=8)
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra")
OTHERS = [
    pytest.param("eager", "bfloat16", 0.05),
    pytest.param("openvino", "float32", 1e-5, marks=needs_openvino),
    pytest.param("compile", "float32", 1e-5, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled_here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def model():
    """A small network for colour pictures, in the memory format that tasks use."""
    said = {"family": "small_cnn", "architecture": "small_cnn", "classes": ["a", "b", "c"], "origin": ""}
    form = Form(shape=(3, 12, 12), mean=0.4, std=0.3, **said)
    torch.manual_seed(0)
    return Classifier(form, FAMILIES["small_cnn"](form)).eval().to(memory_format=torch.channels_last)


@pytest.fixture(scope="module")
def pixels():
    draw = torch.Generator().manual_seed(1)
    return torch.rand(8, 3, 12, 12, generator=draw).contiguous(memory_format=torch.channels_last)


def answers(model, pixels, *sizes, **choice):
    backend = Backend(model, replace(COMPUTE, **choice))
    with torch.inference_mode(), backend.threads():
        return [torch.cat([backend(part) for part in pixels.split(size)]) for size in sizes]


@pytest.mark.parametrize(("backend", "dtype", "tolerance"), OTHERS)
def test_a_backend_answers_as_torch_does_whatever_the_batch(model, pixels, backend, dtype, tolerance):
    with torch.inference_mode():
        wanted = model(pixels)
    whole, alone, uneven = answers(model, pixels, 8, 1, 3, backend=backend, dtype=dtype)
    scale = wanted.abs().max()
    assert whole.dtype == torch.float32 and float((whole - wanted).abs().max() / scale) < tolerance
    assert (dtype == "float32") == (float((whole - wanted).abs().max() / scale) < 1e-5)
    for other in (alone, uneven):
        assert float((other - whole).abs().max() / scale) < 1e-6


def test_what_cannot_run_here_is_named(model, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    find, lacking = importlib.util.find_spec, ("openvino", "triton")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in lacking else find(name))
    for choice, named in (
        ({"backend": "openvino"}, "pip install 'faded[openvino]'"),
        ({"backend": "compile"}, "there is no no-such-compiler"),
        ({"backend": "compile", "device": "cuda"}, "package triton"),
        ({"backend": "openvino", "device": "cuda:1"}, "found compute.device cuda:1"),
    ):
        [error] = compute_errors(replace(COMPUTE, **choice))
        assert error.startswith("compute.backend: ") and named in error
        with pytest.raises(UsageError) as raised:
            Backend(model, replace(COMPUTE, **choice))
        assert str(raised.value) == error


def load(**choice):
    context = image_context(stripes() / "inputs", compute=replace(COMPUTE, batch_size=32, **choice))
    assert ImageClassification.check(context) == []
    return ImageClassification.load(context, stripes() / "prepare")


@pytest.mark.parametrize("choice", [{"dtype": "bfloat16"}, pytest.param({"backend": "openvino"}, marks=needs_openvino)])
def test_a_task_asks_its_backend_for_probes_and_for_clean_items(choice):
    plain, other = load(), load(**choice)
    rng = np.random.default_rng(0)
    items, cells = rng.choice(plain.items.ids("discover"), 50).tolist(), plain.concepts.sample(50, rng)
    asked = []
    run = other.backend._run
    other.backend._run = lambda pixels: asked.append(len(pixels)) or run(pixels)
    far = np.abs(other.probe(items, cells).discrepancy - plain.probe(items, cells).discrepancy).max()
    assert far < (0.05 if choice.get("dtype") else 1e-5) and asked == [32, 32 if choice.get("dtype") else 18]
    other.clean_quality("discover")
    assert len(asked) == 4


@pytest.fixture
def installed(monkeypatch):
    """Make OpenVINO appear installed, with torch's answers, so that these tests need no package."""

    def set_installed(there, answer=lambda model, pixels: model(pixels)):
        monkeypatch.setattr(backends, "has_openvino", lambda: there)
        monkeypatch.setattr(backends, "_openvino", lambda model, _: lambda pixels: answer(model, pixels))

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(backends, "_SMALL", 0)
    set_installed(True)
    return set_installed


@pytest.mark.parametrize(
    ("answer", "change", "chosen"),
    [
        (lambda model, pixels: model(pixels), {}, ("openvino", r"the network [\d.]+ times as fast, off by 0e\+00")),
        (lambda model, pixels: model(pixels) * 1.01, {}, ("eager", "its logits are off by 1.0e-02 of the largest")),
        (lambda model, pixels: model(pixels) + (0 if pixels.any() else 1), {}, ("eager", "on the audit's pictures")),
        (None, {"_SMALL": 20e6, "Backend": None}, ("eager", "million operations a picture gain nothing")),
        (None, {"has_openvino": lambda: False}, ("eager", r"not installed; .*pip install 'faded\[openvino\]'")),
        (None, {"platform": SimpleNamespace(machine=lambda: "riscv64")}, ("eager", "not measured on riscv64")),
    ],
)
def test_openvino_is_chosen_where_it_is_right_and_worth_it(model, installed, monkeypatch, answer, change, chosen):
    for name, value in change.items():
        monkeypatch.setattr(backends, name, value)
    if answer is not None:
        installed(True, answer)
    found = choose_backend(model, COMPUTE, torch.zeros(16, 3, 12, 12))
    assert found.backend == chosen[0] and re.search(chosen[1], found.why)


def test_a_network_that_was_converted_wrongly_is_refused(model, installed):
    installed(True, lambda model, pixels: model(pixels) * 1.01)
    with pytest.raises(UsageError, match=r"openvino does not run small_cnn as torch does: .* off by 1\.0e-02"):
        Backend(model, replace(COMPUTE, backend="openvino"))


@pytest.fixture
def audit(tmp_path, monkeypatch, installed):
    """A folder with an audit of striped squares with the default backend."""
    context = image_context(tmp_path)
    params = audit_params(
        task="stages.tasks.classification:ImageClassification",
        prepare={**context.config, "model": {"train": "small_cnn", "epochs": 1, "batch_size": 32}},
        concepts=context.concepts,
    )
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"audits": {"stripes": params}}))
    write_images(tmp_path / "data" / "stripes" / "inputs" / "images.parquet")
    monkeypatch.chdir(tmp_path)
    found = load_params().audit("stripes")
    assert found.compute.backend == "auto"
    return found


PREPARED = Path("data/stripes/prepare")


def test_prepare_settles_it_for_all_stages_and_machines(audit, installed, monkeypatch):
    prepare("stripes")
    kept = (PREPARED / "fingerprint.json").read_bytes()
    assert json.loads(kept)["backend"] == "openvino"
    told = Provenance.parse((PREPARED / "provenance.json").read_bytes(), "")
    assert told.backend_said.startswith("openvino (auto: the network ")
    assert provenance("stripes", audit, PREPARED)["backend"] == "openvino"

    monkeypatch.setattr(backends, "_seconds", lambda backend, _: 9.0 if backend.compute.backend == "openvino" else 1.0)
    prepare("stripes")
    assert (PREPARED / "fingerprint.json").read_bytes() == kept

    installed(False)  # as on a worker without it
    context = task_context("stripes", audit, PREPARED)
    assert context.compute.backend == "openvino"
    with pytest.raises(UsageError, match="openvino is not installed here, and all stages of an audit use the same"):
        _ = ImageClassification.load(context, PREPARED).backend


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("backend", "dtype", "tolerance"), [("eager", "bfloat16", 0.05), ("compile", "float32", 1e-4)])
def test_a_backend_on_a_gpu_answers_as_torch_does(model, pixels, backend, dtype, tolerance):
    gpu, shown = clone(model).to("cuda"), pixels.to("cuda")
    with torch.inference_mode():
        wanted = gpu(shown).cpu()
    whole, alone = answers(gpu, shown, 8, 1, backend=backend, dtype=dtype, device="cuda")
    assert float((whole - wanted).abs().max() / wanted.abs().max()) < tolerance and torch.equal(whole, alone)
