"""The Python interface: `import faded`, an audit of a function, and the same audit in the pipeline."""

from __future__ import annotations

import importlib
import subprocess
import sys
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import faded
import stages.discover
import stages.prepare
import stages.summarize
from stages.errors import UsageError
from stages.params import load_params
from tests.own_workspaces import add_shadows
from tests.workspace import ROOT

IMAGES = np.random.default_rng(0).random((30, 6, 6)).astype(np.float32)
MODEL = '''
import numpy as np
import faded


def bright(images):
    """Whether a picture is bright, as two scores; a bright corner is misread."""
    light = images.mean((1, 2)) - 0.35
    light[images[:, 0, 0] > 0.99] = -1
    return np.stack([-light, light], axis=1)


@faded.concept([0, 1, 2])
def corner(image, level):
    image = image.copy()
    image[0, :level] = 1
    return image
'''


@pytest.fixture
def my_model(tmp_path, monkeypatch):
    """A user's module, as imported beside a notebook."""
    (tmp_path / "my_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield importlib.import_module("my_model")
    del sys.modules["my_model"]


def test_an_audit_names_what_makes_a_model_fail(my_model):
    result = faded.audit(
        my_model.bright,
        IMAGES,
        concepts={"darkening": [0, 0.2, 0.4, 0.6], "corner": my_model.corner},
        budget=400,
        expected=[1] * len(IMAGES),
    )
    worst = result.modes[0]
    assert worst.text in ("corner >= 1", "darkening >= 0.4")
    assert worst.rate > result.landscape.overall.value
    assert worst.text in repr(result) and escape(worst.text) in result._repr_html_()
    assert set(result.cells["darkening"]) == {0, 0.2, 0.4, 0.6}
    assert {"corner", "probes", "rate", "low", "high"} <= set(result.cells.columns)
    failures = result.failures
    assert set(failures["darkening"]) <= {0, 0.2, 0.4, 0.6}
    assert failures["answer"].str.startswith("0 (").all()
    assert (failures["expected"] == "1").all()
    assert list(Path().iterdir()) == [Path("my_model.py")] or {p.name for p in Path().iterdir()} == {
        "my_model.py",
        "__pycache__",
    }


def test_the_pipeline_asks_the_same_probes(my_model, monkeypatch):
    concepts = {"noise": [0, 0.1, 0.3], "darkening": [0, 0.2, 0.4, 0.6], "corner": my_model.corner}
    result = faded.audit(my_model.bright, IMAGES, concepts=concepts, budget=100, explorer="local_search", name="mine")
    folder = result.to_workspace("audits")
    monkeypatch.chdir(folder)
    stages.prepare.main("mine")
    stages.discover.main("mine")
    stages.summarize.main("mine")
    finished = faded.load("mine")
    pd.testing.assert_frame_equal(finished.probes, result.probes)
    assert finished.landscape == result.landscape
    fresh = result.records.summarize.fresh
    pd.testing.assert_frame_equal(finished.records.summarize.fresh, fresh)
    assert set(fresh["role"]) <= {"test", "measure"} and len(fresh) > 0
    pd.testing.assert_frame_equal(finished.failures.astype({"item": int}), result.failures)
    with pytest.raises(UsageError, match="is an audit of a workspace already"):
        finished.to_workspace("elsewhere")
    with pytest.raises(UsageError, match="has no audit 'mien', found: mine, did you mean 'mine'"):
        faded.load("mien")
    with pytest.raises(UsageError, match="is in no workspace"):
        faded.load("mine", "/")
    with pytest.raises(UsageError, match=r"verdict\.json is missing"):
        finished.verdict  # noqa: B018


KINDS = {
    "a torch module": (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)), IMAGES, {"blur": [0, 1, 2]}),
    "pictures in colour as bytes": (
        lambda batch: (batch.mean((1, 2, 3)) > 140).astype(int),
        (np.random.default_rng(1).random((12, 5, 7, 3)) * 255).astype(np.uint8),
        {"brightness": [0, 0.2, 0.4]},
    ),
    "texts to labels": (
        lambda texts: ["shouts" if text.isupper() else "talks" for text in texts],
        [f"this is text number {i} of some" for i in range(12)],
        {"letter_case": ["as_is", "upper"], "typos": [0, 0.5]},
    ),
    "texts to texts": (
        lambda texts: [" ".join(reversed(text.split())) for text in texts],
        [f"the quick brown fox number {i} jumps over the lazy dog" for i in range(12)],
        {"delete_words": [0, 0.3, 0.9]},
    ),
    "rows of numbers": (
        lambda rows: (rows[:, 0] > 0).astype(int),
        np.random.default_rng(2).normal(size=(20, 4)),
        {"lower": faded.Concept("lower", (0, 1, 2), neutral=0, apply=lambda row, level: row - level)},
    ),
    "rows of a table": (
        lambda table: np.where(table["kind"] == "a", 1, table["n"] % 2),
        pd.DataFrame({"kind": list("ab") * 10, "n": range(20)}),
        {"other": faded.concept(["same", "b"])(lambda row, level: row.replace({"a": "b"}))},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_any_function_of_any_items(kind):
    model, items, concepts = KINDS[kind]
    result = faded.audit(model, items, concepts=concepts, budget=1000)  # all pairs, so the truth is known
    unchanged = result.probes[(result.probes[list(concepts)] == 0).all(axis=1)]
    assert not unchanged["failed"].any()  # the model's own answers are expected
    if kind != "a torch module":
        assert 0 < result.probes["failed"].mean() < 1
    assert all(e.image or e.text for e in result._made[0].exhibit(["0", "1"], np.zeros((2, len(concepts)), dtype=int)))


DARK = {"darkening": [0, 0.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concepts": {"darkning": [0, 1]}}, "concepts.darkning: unknown concept, did you mean 'darkening'"),
        ({"concepts": {"darkening": 3}}, "concepts.darkening: found 3, expected levels"),
        ({"concepts": {"darkening": [0, 2]}}, r"level 2 is outside 0\.\.1"),
        ({"concepts": [faded.Concept("a", (0, 1))]}, "expected a function"),
        ({"concepts": {"rate": [0, 1]}}, "has the name of a column"),
        ({"budget": 7}, "budget: found 7, expected 40 probes at least"),
        ({"budget": 0}, "discover.budget: Input should be greater than or equal to 1, found 0"),
        ({"explorer": "rnadom"}, "no explorer 'rnadom'.*did you mean 'random'"),
        ({"items": IMAGES * 16}, "images of values from .* expected 0 to 1 or uint8"),
        ({"items": "text"}, "one text, expected a list"),
        ({"items": np.zeros((9, 4, 4, 5), dtype=np.uint8)}, "expected 1 or 3 channels"),
        ({"items": np.zeros(4)}, r"found ndarray of shape \(4,\)"),
        ({"items": IMAGES[:1]}, "found 1 item"),
        ({"model": 3}, "model: found int, expected a function"),
        ({"model": lambda batch: [1]}, r"given 30 items and answered with shape \(1,\)"),
        ({"model": lambda batch: np.zeros(len(batch))}, "of float64, expected labels or texts"),
        ({"expected": [1]}, "expected: found 1 answers for 30 items"),
        ({"expected": [7] * 30}, "the model scores no class 7, its classes are 0, 1"),
        ({"classes": ["a"]}, "classes: found a, expected 2 different names"),
    ],
)
def test_what_is_wrong_is_told(change, message):
    def model(batch):
        return np.eye(2)[(batch.mean((1, 2)) > 0.4).astype(int)]

    given = {"model": model, "items": IMAGES, "concepts": DARK, "budget": 50, **change}
    with pytest.raises(UsageError, match=message):
        faded.audit(given.pop("model"), given.pop("items"), **given)


def test_what_has_no_file_is_named_or_refused(my_model):
    def audit(model, concept=my_model.corner):
        return faded.audit(model, IMAGES, concepts=[concept], budget=40, name="mine")

    with pytest.raises(UsageError, match=r"has no file that a pipeline could run.*model=\.\.\."):
        audit(lambda batch: my_model.bright(batch + 0)).to_workspace("audits")
    own = faded.concept([0, 1])(lambda image, level: image * 0)
    with pytest.raises(UsageError, match=r"concepts: \{'<lambda>': \.\.\.\}"):
        audit(my_model.bright, own).to_workspace("audits")
    with pytest.raises(UsageError, match="answers otherwise"):
        audit(lambda batch: my_model.bright(1 - batch)).to_workspace("audits", model="my_model:bright")
    assert not Path("audits").exists()
    audit(lambda batch: my_model.bright(batch + 0)).to_workspace("audits", model="my_model:bright")
    assert Path("audits/data/mine/inputs/my_model.py").read_text() == MODEL
    with pytest.raises(UsageError, match="is there already"):
        audit(my_model.bright).to_workspace("audits")


# A user's own folders


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


def test_folders_called_stages_and_flows_take_no_part(tmp_path):
    add_shadows(tmp_path)
    done = python(tmp_path, "import faded, stages.errors, flows.graph; print(stages.errors.__file__, flows.__file__)")
    assert done.stdout.split() == [str(ROOT / "stages/errors.py"), str(ROOT / "flows/__init__.py")], done.stderr


def test_a_foreign_package_that_is_imported_already_is_told(tmp_path):
    (tmp_path / "stages.py").write_text("")
    done = python(tmp_path, "import stages, faded")
    assert f"'stages' is imported already, from {tmp_path / 'stages.py'}" in done.stderr
    assert "ImportError" in done.stderr


def test_what_own_tasks_and_concepts_need_is_there():
    for name in (*faded.__all__, *faded._LATER):
        assert getattr(faded, name) is not None
    with pytest.raises(AttributeError, match="did you mean 'audit'"):
        faded.audits  # noqa: B018


def test_usage_is_stated_as_in_params_yaml(my_model, tmp_path):
    def audited(**stated):
        levels = {"darkening": [0, 0.2, 0.4, 0.6], "corner": my_model.corner}
        settings = {"concepts": levels, "budget": 200, "explorer": "random", **stated}
        return faded.audit(my_model.bright, IMAGES, **settings)

    assumed, uniform = audited(), audited(usage="uniform")
    rare = audited(
        usage={"levels": {"corner": {0: 0.98, 1: 0.01, 2: 0.01}, "darkening": {0: 7, 0.2: 1, 0.4: 1, 0.6: 1}}}
    )
    assert uniform.landscape.usage is None
    assert not assumed.landscape.usage.stated
    assert rare.landscape.usage.stated
    rates = [one.landscape.overall.rate.value for one in (rare, assumed, uniform)]
    assert rates == sorted(rates), "the corner fails, and is ever more common"
    assert " of the grid [" in repr(uniform)
    assert " in use [" in repr(rare)
    folder = rare.to_workspace(tmp_path / "ws", model="my_model:bright", concepts={"corner": "my_model:corner"})
    assert load_params(folder / "params.yaml").audit("audit").usage == rare._made[1].usage


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ("unifrom", "usage: expected uniform, or some of changes, levels.*did you mean 'uniform'"),
        ({"levels": {"darkenin": {0: 1}}}, "no concept of that name, did you mean 'darkening'"),
        ({"levels": {"darkening": {0.9: 1}}}, "0.9 is not one of its levels: 0, 0.2"),
    ],
)
def test_a_usage_that_is_wrong_is_told(my_model, usage, told):
    with pytest.raises(UsageError, match=told):
        faded.audit(my_model.bright, IMAGES, concepts={"darkening": [0, 0.2]}, budget=60, usage=usage)
