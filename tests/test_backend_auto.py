"""`compute.backend: auto`: how it is resolved, that this happens once, and that people see it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from flows.graph import Graph, Stage
from flows.results.compare import Run, check_alike
from flows.results.estimate import backend_line
from stages.errors import UsageError
from stages.files import write_json
from stages.params import AuditConfig, Params, load_params
from stages.prepare import main as prepare
from stages.provenance import provenance
from stages.records import Landscape, Provenance, Verdict
from stages.tasks.classification import ImageClassification
from stages.tasks.classification import backends as module
from stages.tasks.classification.backends import choose, only_eager
from stages.tasks.classification.families import FAMILIES, Form
from stages.tasks.classification.models import Classifier
from stages.tasks.contract import Chosen, Compute
from stages.tasks.load import task_context
from tests.images import image_context, write_images
from tests.workspace import audit_params

COMPUTE = Compute("cpu", threads=1, batch_size=8)


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Make OpenVINO appear installed, with torch's answers, so that these tests need no package."""

    def set_installed(there, answer=lambda model, pixels: model(pixels)):
        monkeypatch.setattr(module, "has_openvino", lambda: there)
        monkeypatch.setattr(module, "_openvino", lambda model, _: lambda pixels: answer(model, pixels))

    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module, "_SMALL", 0)
    set_installed(True)
    return set_installed


@pytest.fixture(scope="module")
def model():
    form = Form(family="small_cnn", architecture="small_cnn", classes=["a", "b", "c"], shape=(1, 12, 12), origin="")
    torch.manual_seed(0)
    return Classifier(form, FAMILIES["small_cnn"](form)).eval()


PIXELS = torch.rand(16, 1, 12, 12, generator=torch.Generator().manual_seed(1))


# How it is resolved


def test_openvino_where_it_answers_as_torch_does(model):
    chosen = choose(model, COMPUTE, PIXELS)
    assert chosen.backend == "openvino"
    assert chosen.why.startswith("the network ") and chosen.why.endswith("times as fast, off by 0e+00")


def test_the_clock_decides_nothing(model, monkeypatch):
    seconds = iter([2.0, 1.0] * 3)
    monkeypatch.setattr(module, "_seconds", lambda *_: next(seconds))
    assert choose(model, COMPUTE, PIXELS) == Chosen("openvino", "the network 0.5 times as fast, off by 0e+00")


def test_eager_where_openvino_answers_otherwise(model, installed):
    installed(True, lambda model, pixels: model(pixels) * 1.01)
    assert choose(model, COMPUTE, PIXELS) == Chosen(
        "eager",
        "openvino does not run small_cnn as torch does: its logits are off by 1.0e-02 of the largest, expected less"
        " than 0.001",
    )


def test_eager_where_openvino_answers_otherwise_to_the_audits_own_pictures(model, installed):
    dark = torch.zeros_like(PIXELS)
    installed(True, lambda model, pixels: model(pixels) + (0 if pixels.any() else 1))
    chosen = choose(model, COMPUTE, dark)
    assert chosen.backend == "eager" and "of the largest on the audit's pictures" in chosen.why


def test_eager_for_small_networks(model, monkeypatch):
    monkeypatch.setattr(module, "_SMALL", 20e6)
    monkeypatch.setattr(module, "Backend", None)  # nothing can be opened
    chosen = choose(model, COMPUTE, PIXELS)
    assert chosen.backend == "eager" and chosen.why.endswith("million operations a picture gain nothing by OpenVINO")


@pytest.mark.parametrize(
    ("change", "black_box", "why"),
    [
        ({"device": "cuda:1"}, None, "on cuda:1"),
        ({"dtype": "bfloat16"}, None, "in bfloat16, where backends differ in their answers"),
        ({}, "onnx", "a model that runs by itself (prepare.model.onnx)"),
        ({}, None, ""),
    ],
)
def test_where_it_is_eager_whatever_the_network_is(change, black_box, why):
    assert only_eager(replace(COMPUTE, **change), black_box) == why


def test_without_openvino_it_says_what_that_would_gain(model, installed):
    installed(False)
    chosen = choose(model, COMPUTE, PIXELS)
    assert chosen.backend == "eager"
    assert chosen.why.startswith("OpenVINO is not installed") and chosen.why.endswith("pip install 'faded[openvino]'")


def test_a_processor_nobody_measured(model, monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    assert choose(model, COMPUTE, PIXELS) == Chosen("eager", "not measured on riscv64")


# Resolved once


@pytest.fixture
def audit(tmp_path, monkeypatch):
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

    monkeypatch.setattr(module, "_seconds", lambda backend, _: 9.0 if backend.compute.backend == "openvino" else 1.0)
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
    monkeypatch.setattr("stages.tasks.classification.probes.choose", None)
    prepare("stripes")
    assert json.loads((PREPARED / "fingerprint.json").read_text())["backend"] == "eager"
    assert "backend_auto" not in json.loads((PREPARED / "provenance.json").read_text())


def test_another_word_is_refused(audit):
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("device: cpu", "backend: fastest"))
    with pytest.raises(UsageError, match=r"audits.stripes.compute.backend: .*'auto', 'eager', 'compile' or 'openvino'"):
        load_params()


def run(backend, tmp_path):
    """A run of an audit with `auto` that prepare resolved to this backend."""
    prepared = tmp_path / backend
    write_json(prepared / "fingerprint.json", {"backend": backend})
    (prepared / "model").mkdir()
    (prepared / "items.parquet").write_bytes(b"")
    made = provenance("x", AuditConfig.model_validate(audit_params()), prepared)
    landscape = Landscape.model_construct(concepts=[], threshold=0.0)
    return Run(backend, landscape, Verdict.model_construct(), Provenance.model_validate(made), None)


def test_runs_are_compared_by_what_it_stood_for(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.provenance.resolve_dtype", lambda *_: "float32")
    eager, openvino = run("eager", tmp_path), run("openvino", tmp_path)
    check_alike(eager, eager)
    with pytest.raises(UsageError, match='backend: "eager" against "openvino"'):
        check_alike(eager, openvino)


# Output for people


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
