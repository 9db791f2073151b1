"""`faded tune`: its measurements and recommendation, and that it writes only what it recommends."""

from functools import partial

import pytest
import yaml

from flows.choosing.tune import Bench, ComputeChoice, Settings, Tuning, measure_choices
from flows.workspace.edit_params import with_compute
from stages.core.errors import UsageError
from stages.params import AuditConfig, load_params
from stages.tasks.classification import ImageClassification
from stages.tasks.contract import Compute
from tests.finished import faded, inside, quick_audit
from tests.images import image_context, write_images
from tests.workspace import ROOT, audit_params, make_workspace

QUICK = Settings(rounds=1, seconds=0.001)


def choice(speed, backend="eager", dtype="float32", batch_size=32):
    return ComputeChoice(Compute("cpu", 1, batch_size, backend, dtype), [(round(100 * speed), 100.0, 50.0)])


@pytest.mark.parametrize(
    ("dtype", "others", "allow", "expected"),
    [
        ("float32", [], False, 0),
        ("float32", [choice(30, "openvino"), choice(20, "compile")], False, 1),
        ("float32", [choice(30, "openvino"), choice(60, "openvino", "bfloat16")], True, 2),
        ("bfloat16", [choice(60, "openvino", "bfloat16")], True, 1),
        ("bfloat16", [choice(30, "eager", "bfloat16", 64), choice(60, "openvino")], False, 2),
    ],
)
def test_the_fastest_that_may_be_taken_is_recommended(dtype, others, allow, expected):
    tuning = Tuning([choice(10, "eager", dtype), *others], {}, 100)
    assert tuning.best(allow) is tuning.choices[expected]


def test_a_model_behind_http_is_not_asked_thousands_of_times(tmp_path):
    audit = quick_audit()
    audit["prepare"] = {**audit["prepare"], "model": {"endpoint": "http://127.0.0.1:1/"}}
    code, said = faded(make_workspace(tmp_path / "ws", {"tiny": audit}, {}), "tune", "tiny")
    assert code == 2, said
    assert "audits.tiny has a model behind HTTP" in said


TEXT = """# head
audits:
  one:
    compute: {device: cpu, threads: 1, batch_size: 8, gpus: 0}   # said of it
    seed: 1
  two:
    compute:
      device: cpu   # here
      batch_size: 8
    seed: 2
  base: &base
    compute: {batch_size: 8}
    seed: 3
  preset:
    <<: *base
"""


def test_every_other_byte_of_params_stays():
    changes = {"backend": "openvino", "batch_size": 64}
    one = with_compute(TEXT, "one", changes)
    assert one == TEXT.replace("batch_size: 8, gpus: 0}", "batch_size: 64, gpus: 0, backend: openvino}")
    two = with_compute(TEXT, "two", changes)
    assert two == TEXT.replace("      batch_size: 8\n", "      batch_size: 64\n      backend: openvino\n")
    assert with_compute(TEXT.replace("\n", "\r\n"), "two", changes) == two.replace("\n", "\r\n")
    for audit in ("base", "preset"):  # share theirs
        told = rf"audits\.{audit}\.compute cannot be changed .* write there: batch_size: 64"
        with pytest.raises(UsageError, match=told):
            with_compute(TEXT, audit, {"batch_size": 64})


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    home = tmp_path_factory.mktemp("tune")
    inputs, prepared = home / "data/stripes/inputs", home / "data/stripes/prepare"
    write_images(inputs / "images.parquet")
    prepared.mkdir(parents=True)
    context = image_context(inputs)
    ImageClassification.prepare(context, prepared)
    blocks = {"prepare": dict(context.config), "concepts": dict(context.concepts), "discrepancy": {}}
    blocks["compute"] = {"device": "cpu", "threads": 1, "batch_size": 32, "backend": "eager"}
    audit = audit_params(task="stages.tasks.classification:ImageClassification", **blocks)
    (home / "stages").symlink_to(ROOT / "stages")
    return home, AuditConfig.model_validate(audit)


@pytest.mark.slow
def test_every_backend_and_dtype_is_measured_in_one_run_and_what_cannot_run_is_told(stripes, monkeypatch):
    home, audit = stripes
    monkeypatch.chdir(home)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(ImageClassification, "backends", ("eager", "compile"))
    monkeypatch.setattr("flows.choosing.tune.MOST", 16)
    tuning = measure_choices("stripes", audit, QUICK, lambda _: None)
    by_name = {c.name: c for c in tuning.choices}
    assert set(by_name) == {"eager float32", "eager bfloat16"}
    assert by_name["eager float32"].far < 1e-5 and by_name["eager float32"].changed == 0
    assert 1e-4 < by_name["eager bfloat16"].far < 1 and all(len(c.passes) == 1 and c.memory > 0 for c in tuning.choices)
    assert all(set(c.tried) == {8, 16} for c in tuning.choices if c.tried)
    assert set(tuning.impossible) == {"compile float32", "compile bfloat16"}
    assert all("no-such-compiler" in why for why in tuning.impossible.values())


@pytest.mark.slow
def test_no_batch_is_tried_that_would_not_fit(stripes, monkeypatch):
    home, audit = stripes
    monkeypatch.chdir(home)
    monkeypatch.setattr(ImageClassification, "backends", ("eager",))
    opened, opening = [], Bench.open
    monkeypatch.setattr(Bench, "open", lambda self, choice: opened.append(choice) or opening(self, choice))
    measure_choices("stripes", audit, Settings(memory=1e-9, rounds=1, seconds=0.001), lambda _: None)
    assert {c.compute.batch_size for c in opened} == {8, audit.compute.batch_size}


@pytest.mark.slow
def test_any_task_gets_its_batch_size_written(tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path / "ws", {"tiny": quick_audit()}, {})
    monkeypatch.setattr(ComputeChoice, "speed", property(lambda self: float(self.compute.batch_size)))
    monkeypatch.setattr("flows.choosing.tune.MOST", 64)
    monkeypatch.setattr("flows.choosing.tune.Settings", partial(Settings, rounds=1, seconds=0.001))
    with inside(workspace):
        before = load_params().audit("tiny").compute
    code, said = faded(workspace, "tune", "tiny", "--write")
    assert code == 0, said
    assert "prepare@tiny is not up to date, so it runs first" in said and "eager float32 (now)" in said
    after = yaml.safe_load((workspace.path / "params.yaml").read_text())["audits"]["tiny"]["compute"]
    assert set(after) == {"device", "threads", "batch_size", "gpus"} and after["batch_size"] == 64 > before.batch_size
    assert "written to params.yaml" in said
