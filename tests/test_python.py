"""The Python interface: `import faded`, an audit of a function, and the same audit in the pipeline."""

import importlib
import re
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
import stages.report
import stages.summarize
from stages.core.errors import UsageError
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
    concepts = {"darkening": [0, 0.2, 0.4, 0.6], "corner": my_model.corner}
    result = faded.audit(my_model.bright, IMAGES, concepts=concepts, budget=400, expected=[1] * len(IMAGES))
    worst = result.modes[0]
    assert worst.text in ("corner >= 1", "darkening >= 0.4") and worst.rate > result.landscape.overall.value
    assert worst.text in repr(result) and len(repr(result)) < 500
    assert worst.text in repr(result.modes) and len(str(result.modes)) < 1000 and len(str(result.landscape)) < 200
    shown = result._repr_html_()
    assert escape(worst.text) in shown and shown.count("data:image/png") == len(result.modes) and "<a " not in shown
    curves = result.curves()
    assert list(curves) == ["concept", "level", "probes", "failures", "rate", "low", "high"]
    assert curves["level"].tolist() == [0, 0.2, 0.4, 0.6, 0, 1, 2]
    assert curves["rate"][3] > curves["rate"][0] and curves["rate"][6] > curves["rate"][4]
    assert ((curves["low"] <= curves["rate"]) & (curves["rate"] <= curves["high"])).all()
    assert set(result.cells["darkening"]) == {0, 0.2, 0.4, 0.6}
    assert {"corner", "probes", "rate", "low", "high"} <= set(result.cells.columns)
    failures = result.failures
    assert set(failures["darkening"]) <= {0, 0.2, 0.4, 0.6} and failures["answer"].str.startswith("0 (").all()
    assert (failures["expected"] == "1").all()
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"my_model.py"}
    page = result.report("report (1).html").read_text()
    assert "result.to_workspace(" in page and "faded status" not in page
    assert '<a href="report%20%281%29.html">' in result._repr_html_()


@pytest.mark.slow
def test_the_pipeline_asks_the_same_probes(my_model, monkeypatch):
    concepts = {"noise": [0, 0.1, 0.3], "darkening": [0, 0.2, 0.4, 0.6], "corner": my_model.corner}
    result = faded.audit(my_model.bright, IMAGES, concepts=concepts, budget=100, explorer="local_search", name="mine")
    monkeypatch.chdir(result.to_workspace("audits"))
    stages.prepare.main("mine")
    stages.discover.main("mine")
    stages.summarize.main("mine")
    stages.report.main("mine")
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
    assert "result.to_workspace(" not in finished.records.report.where("page").read_text()


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
    task, cells = result._made[0], np.zeros((2, len(concepts)), dtype=int)
    shown, known = task.exhibit(["0", "1"], cells), task.probe(["0", "1"], cells)
    assert all(e.image or e.text for e in shown)
    task.model = None  # and so cannot be queried
    assert task.recalled(["0", "1"], cells, known) == shown


DARK = {"darkening": [0, 0.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concepts": {"darkning": [0, 1]}}, "concepts.darkning: unknown concept, did you mean 'darkening'"),
        ({"budget": 7}, "budget: found 7, expected 40 probes at least"),
        ({"items": np.zeros((9, 4, 4, 5), dtype=np.uint8)}, "expected 1 or 3 channels"),
        ({"model": lambda batch: [1]}, r"given 30 items and answered with shape \(1,\)"),
        ({"classes": ["a"]}, "classes: found a, expected 2 different names"),
        ({"items": [{"a": 1}, 3]}, r"items\[1\] is not a dict"),
        ({"discrepancy": lambda answer, expected: np.nan}, "discrepancy: found nan for the answer"),
        (
            {"model": torch.nn.Linear(5, 2), "items": np.zeros((40, 4)), "concepts": {"noise": [0, 1]}},
            r"the model does not take a batch of shape \(40, 4\) and torch.float32: mat1 and mat2",
        ),
    ],
)
def test_what_is_wrong_is_told(change, message):
    def model(batch):
        return np.eye(2)[(batch.mean((1, 2)) > 0.4).astype(int)]

    given = {"model": model, "items": IMAGES, "concepts": DARK, "budget": 50, **change}
    with pytest.raises(UsageError, match=message):
        faded.audit(given.pop("model"), given.pop("items"), **given)


def shouting(texts):
    return [[0.1, 0.9] if text.isupper() else [0.8, 0.2] for text in texts]


TEXTS = [f"this is text number {i} of some" for i in range(30)]
CASE = {"letter_case": ["as_is", "upper"]}
PIPELINES = {
    "all labels, the best first": lambda texts: [
        sorted([{"label": "LOUD", "score": b}, {"label": "CALM", "score": a}], key=lambda one: -one["score"])
        for a, b in shouting(texts)
    ],
    "some labels": lambda texts: [
        [{"label": "LOUD" if b > a else "CALM", "score": max(a, b)}, {"label": f"other {b:.0f}", "score": 0.05}]
        for a, b in shouting(texts)
    ],
}


@pytest.mark.parametrize("kind", PIPELINES)
def test_what_a_pipeline_of_transformers_returns_is_understood(kind):
    result = faded.audit(PIPELINES[kind], TEXTS, concepts=CASE, budget=60, expected=["CALM"] * 30)
    assert [mode.rate for mode in result.modes] == [1.0] and "letter_case is upper" in result.modes[0].text
    assert not result.probes["failed"][result.probes["letter_case"] == 0].any()
    assert set(result.failures["answer"]) == ({"LOUD (90%)"} if "all" in kind else {"LOUD"}) and result.notes == []


ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
EXPECTED = {
    "tensor that learns": lambda labels: torch.tensor(labels, dtype=torch.float32, requires_grad=True),
    "series": lambda labels: pd.Series(labels, index=range(100, 130)),
    "tensor on a GPU": lambda labels: torch.tensor(labels, device="cuda"),
}


@pytest.mark.parametrize("kind", [pytest.param(k, marks=ON_GPU if "GPU" in k else ()) for k in EXPECTED])
def test_expected_answers_come_in_any_form(kind):
    labels = [int(image.mean() > 0.5) for image in IMAGES]
    result = faded.audit(brightness, IMAGES, concepts=DARK, budget=60, expected=EXPECTED[kind](labels))
    unchanged = result.probes[result.probes["darkening"] == 0]
    assert len(unchanged) == 30 and not unchanged["failed"].any()


def test_scores_that_are_not_numbers_are_failures():
    def dies_in_the_dark(batch):
        scores = np.stack([batch.mean((1, 2)), 1 - batch.mean((1, 2))], axis=1)
        scores[batch.mean((1, 2)) < 0.35] = np.nan
        return scores

    result = faded.audit(dies_in_the_dark, IMAGES, concepts=DARK, budget=60, expected=[0] * 30)
    dark = result.failures[result.failures["darkening"] == 0.5]
    assert len(dark) == 30 and set(dark["answer"]) == {"nan"} and set(dark["discrepancy"]) == {1.0}
    with pytest.raises(UsageError, match=r"items\[0\]: the model answers \[nan nan\] .*and the like to 29 more"):
        faded.audit(lambda batch: dies_in_the_dark(batch / 2), IMAGES, concepts=DARK, budget=60)


def brightness(batch):
    light = batch.mean((1, 2)) - 0.5
    return np.stack([-light, light, np.full(len(batch), -9.0)], axis=1)


BRIGHT = np.where(brightness(IMAGES).argmax(1) == 1, "bright", "dim")


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (
            brightness,
            {"classes": ["bright", "dim", "none"]},
            r"are answered right; with classes=\['dim', 'bright', 'none'\]",
        ),
        (
            lambda batch: np.random.default_rng().random((len(batch), 3)),
            {"classes": ["none", "dim", "bright"]},
            r"answered [1-8] of 8 unchanged items differently",
        ),
        (
            lambda batch: [
                f"what a {word} picture this is" for word in np.random.default_rng().permutation(len(batch))
            ],
            {},
            "100.0% of 30 unchanged items .* fail already",
        ),
    ],
)
def test_what_is_doubtful_on_unchanged_items_is_told(model, given, message, tmp_path):
    with pytest.warns(UserWarning, match=message):
        result = faded.audit(model, IMAGES, concepts=DARK, budget=60, expected=BRIGHT, **given)
    (note,) = (note for note in result.notes if re.search(message, note))
    assert note in repr(result) and escape(note) in result._repr_html_()
    assert escape(note, quote=False)[:60] in result.report(tmp_path / "report.html").read_text()


def test_built_in_concepts_change_the_numbers_of_rows():
    table = pd.DataFrame({"age": np.arange(40), "income": np.linspace(1, 9, 40), "member": [True, False] * 20})
    table["city"] = list("abcd") * 10
    table["since"] = pd.date_range("2026-01-01", periods=40).as_unit("us")
    seen = []

    def rich(rows):
        seen.append(rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows))
        return (seen[-1]["income"] > 5).astype(int).to_numpy()

    concepts = {"gain": [0, 50], "noise": [0, 1], "missing": [0, 1]}
    for items in (table, table.to_dict("records")):
        seen.clear()
        result = faded.audit(rich, items, concepts=concepts, budget=1000)
        everything = pd.concat(seen)
        assert (everything.dtypes == table.dtypes).all()
        assert set(everything["member"]) == {True, False} and set(everything["city"]) == set("abcd")
        probes = result.probes.astype({"item": int})
        gained = probes[(probes["gain"] == 1) & (probes["noise"] == 0) & (probes["missing"] == 0)].set_index("item")
        income = table["income"].loc[gained.index]
        assert (gained["failed"] == ((income <= 5) & (income * 1.5 > 5))).all() and gained["failed"].any()
        assert 0 < probes[(probes["noise"] == 1) & (probes["missing"] == 0)]["failed"].mean() < 1
    assert type(items[0]["age"]) is int


@pytest.mark.slow
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


def python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def test_folders_called_stages_and_flows_take_no_part(tmp_path):
    add_shadows(tmp_path)
    code = "import faded, stages.core.errors, flows.graph; print(stages.core.errors.__file__, flows.__file__)"
    done = python(tmp_path, code)
    assert done.stdout.split() == [str(ROOT / "stages/core/errors.py"), str(ROOT / "flows/__init__.py")], done.stderr


def test_a_foreign_package_that_is_imported_already_is_told(tmp_path):
    (tmp_path / "stages.py").write_text("")
    done = python(tmp_path, "import stages, faded")
    assert f"'stages' is imported already, from {tmp_path / 'stages.py'}" in done.stderr
    assert "ImportError" in done.stderr


def test_one_audit_gives_the_rate_under_three_usages_without_a_new_probe():
    asked = []

    def model(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return (images.mean(axis=(1, 2)) < 60 / 255).astype(int)  # 1 for a dark image

    images = np.full((40, 8, 8), 100.0, dtype=np.float32) / 255
    levels = {"darkening": [0, 0.2, 0.4, 0.6], "noise": [0, 0.01]}
    result = faded.audit(model, images, expected=[0] * 40, concepts=levels, budget=160)
    before, assumed = sum(asked), result.landscape.overall.rate
    usages = {
        "assumed": {},
        "dark": {"changes": [0, 1], "levels": {"darkening": {0.6: 1}, "noise": {0: 1}}},
        "never dark": {"levels": {"darkening": {0: 1}, "noise": {0: 9, 0.01: 1}}},
    }
    rates = {name: result.rate(usage) for name, usage in usages.items()}
    assert sum(asked) == before and rates["assumed"].value == pytest.approx(assumed.value)
    assert rates["dark"].value > 0.95 and rates["never dark"].value < 0.05
    with pytest.raises(faded.UsageError, match=r"darkening: 0.5 is not one of its levels"):
        result.rate({"levels": {"darkening": {0.5: 1}}})
