"""The summarization task as stages use it: with random weights, a known model, and a real one."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from stages.concepts.texts import sentences
from stages.core.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.language import models
from stages.tasks.language.form import GenerationConfig
from stages.tasks.summarization import Summarization, support
from tests.news import news_context, write_news
from tests.tiny_models import tiny_tokenizer

SPLIT_SIZES = {"discover": 10, "repair": 6, "test": 5}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_news(tmp_path_factory.mktemp("news") / "inputs").parent


@pytest.fixture(scope="module")
def prepared(home):
    """The prepared model with random weights, and its metrics."""
    out = home / "prepare"
    out.mkdir()
    return out, Summarization.prepare(news_context(home / "inputs"), out)


@pytest.fixture
def tiny(home, prepared):
    return Summarization.load(news_context(home / "inputs"), prepared[0])


class LeadModel:
    """A summarizer that answers with the first sentence, refuses capitals, and counts its requests."""

    hash, compute = "lead", Compute(batch_size=8)
    form = SimpleNamespace(generation=GenerationConfig(max_new_tokens=200), parameters=1, origin="nobody")

    def __init__(self):
        self.asked, self.tokenizer = [], tiny_tokenizer()

    def inputs(self, article):
        return self.tokenizer(article)["input_ids"]

    def unfinished(self, summary):
        return len(self.inputs(summary)) >= 199

    def summarize(self, articles):
        self.asked += articles
        return ["I cannot read this." if text.isupper() else " ".join(sentences(text)[0].split()) for text in articles]


class InventingModel(LeadModel):
    """A summarizer that answers with the first sentence, with names that nobody has."""

    def summarize(self, articles):
        return [re.sub(r"(?<= )[A-Z]\w+", lambda found: found[0][::-1].title(), s) for s in super().summarize(articles)]


@pytest.fixture
def lead(home, tmp_path, monkeypatch):
    """Prepare and load an audit of `LeadModel`; keyword arguments replace parts of its context, `model` the model."""

    def make(model=None, **changes):
        monkeypatch.setattr(models, "load_summarizer", lambda *_, **__: model or LeadModel())
        context = news_context(home / "inputs", **changes)
        Summarization.prepare(context, tmp_path)
        return Summarization.load(context, tmp_path)

    return make


def cell(task, **levels):
    """The neutral cell with some levels changed, by their index: (1, concepts)."""
    found = task.concepts.neutral.copy()
    for name, level in levels.items():
        found[task.concepts.names.index(name)] = level
    return found[None]


def test_what_prepare_writes_is_the_same_twice(home, prepared, tmp_path):
    out, metrics = prepared
    assert metrics["items"] == SPLIT_SIZES and metrics["parameters"] > 0
    assert metrics["skipped"] == metrics["cut"] == 0
    assert set(metrics["clean_unsupported"]) == set(metrics["clean_faithfulness"]) == set(SPLIT_SIZES)
    items = pd.read_parquet(out / "items.parquet")
    assert list(items.columns) == ["id", "split", "label", "article", "reference", "cut", "summary", "faithfulness"]
    assert items["split"].value_counts().to_dict() == SPLIT_SIZES
    assert (out / "model" / "model.safetensors").exists()
    records = pd.DataFrame(items.attrs["calibration"]).groupby(["condition", "split"]).size()
    assert records.to_dict() == {("benign", "discover"): 10, ("benign", "repair"): 6, ("no_op", "repair"): 6}
    Summarization.prepare(news_context(home / "inputs"), tmp_path)
    assert (tmp_path / "items.parquet").read_bytes() == (out / "items.parquet").read_bytes()


def test_the_neutral_cell_is_the_article_itself(tiny):
    ids = tiny.items.ids("discover")
    cells = np.repeat(cell(tiny), len(ids), axis=0)
    table = tiny.items.table.set_index("id").loc[ids]
    assert tiny.changed(ids, cells) == table["article"].tolist()
    assert tiny.probe(ids, cells).outputs == table["summary"].tolist()
    assert tiny.probe(ids, cells, repeats=np.full(len(ids), 3)).outputs == table["summary"].tolist()


def test_an_answer_depends_on_its_probe_alone(home, prepared, tiny):
    ids, cells = tiny.items.ids("discover")[:6], tiny.concepts.cells()
    together = tiny.probe(ids, cells)
    other = Summarization.load(news_context(home / "inputs"), prepared[0])
    alone = [other.probe([item], cells[i : i + 1]) for i, item in reversed(list(enumerate(ids)))][::-1]
    assert [a.outputs[0] for a in alone] == together.outputs
    assert np.array_equal(np.concatenate([a.discrepancy for a in alone]), together.discrepancy)
    first, repeated = tiny.changed(ids, cells), tiny.changed(ids, cells, repeats=np.ones(6, dtype=int))
    assert [a == b for a, b in zip(first, repeated, strict=True)] == [True] * 2 + [False] * 4


ABSOLUTE = {"measure": "unsupported", "validity": -1}


def test_a_summarizer_that_invents_fails_on_unchanged_articles(lead):
    model = InventingModel()
    task = lead(model, discrepancy=ABSOLUTE)
    assert task.fails_unchanged().mean() >= 0.8
    ids = task.items.ids("discover")
    neutral = task.probe(ids, np.repeat(cell(task), len(ids), axis=0))
    assert np.array_equal(neutral.failed, task.fails_unchanged())  # the same as probing each
    (shown,) = task.exhibit(ids[:1], cell(task))
    assert "a failure above 0.50; name not supported: " in shown.caption
    known = task.probe(ids[:1], cell(task))
    task.query = lambda _: pytest.fail("the model was asked")
    task._answers.clear()
    assert task.recalled(ids[:1], cell(task), known) == [shown]
    relative = lead(model)
    assert relative.fails_unchanged().size == 0
    assert not relative.probe(ids, np.repeat(cell(relative), len(ids), axis=0)).failed.any()
    told = "10 of 10 summaries of unchanged articles seem to say what their article does not support"
    assert told in relative.notes()[0]


def test_a_summarizer_that_copies_does_not(lead):
    task = lead(discrepancy=ABSOLUTE)
    assert task.fails_unchanged().mean() <= 0.1 and task.false_alarms() == {}
    assert task.threshold == support.THRESHOLD  # independent of the model
    assert task.probe(task.items.ids("discover")[:1], cell(task, letter_case=1)).failed.all()  # it refuses


def test_known_answers(lead):
    task = lead()
    item = task.items.ids("discover")[0]
    clean = task.probe([item], cell(task))
    assert clean.discrepancy[0] == 0 and not clean.failed[0]
    typos = task.probe([item], cell(task, typos=2))
    assert typos.outputs == [sentences(task.changed([item], cell(task, typos=2))[0])[0]]
    row = task.items.table.set_index("id").loc[item]
    before, after = (task.embedder.cosine(said, row["article"]) for said in (row["summary"], typos.outputs[0]))
    assert typos.discrepancy[0] == pytest.approx(before - after, abs=1e-6)
    upper = task.probe([item], cell(task, letter_case=1))
    assert (upper.outputs, upper.discrepancy[0], upper.failed[0]) == (["I cannot read this."], 1, True)


def test_a_change_that_leaves_nothing_is_not_held_against_the_model(lead):
    task = lead(discrepancy={"threshold": 0.1, "validity": 0.999})
    ids = task.items.ids("discover")[:4]
    neutral, changed = (np.repeat(cell(task, **c), 4, axis=0) for c in ({}, {"typos": 2, "letter_case": 1}))
    assert task.probe(ids, neutral).valid.all()
    answer = task.probe(ids, changed)
    assert set(answer.outputs) == {"I cannot read this."} and not (answer.valid | answer.failed).any()
    assert answer.discrepancy == pytest.approx(0.1)


def test_nothing_is_asked_twice(lead):
    task = lead()
    ids = task.items.ids("discover")[:2]
    cells = np.concatenate([cell(task, typos=1), cell(task, typos=1)])
    task.probe(ids, cells)
    assert len(task.summarizer.asked) == 2
    task.probe([*ids, *ids], np.concatenate([cells, cells]))
    task.exhibit(ids, cells)
    task.clean_quality("discover")
    task.measure(ids, cells, task.probe(ids, cells).outputs)
    assert len(task.summarizer.asked) == 2


def test_references_are_used_where_there_are_any(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_summarizer", lambda *_, **__: LeadModel())
    inputs = write_news(tmp_path / "inputs", references=True)
    context = news_context(inputs, discrepancy={"measure": "reference_loss", "threshold": 0.2})
    with pytest.raises(UsageError, match=r"reference_loss needs reference summaries, .* prepare\.data\.summary"):
        Summarization.prepare(context, tmp_path)
    data = {**context.config["data"], "summary": "summary"}
    context = dataclasses.replace(context, config={**context.config, "data": data})
    metrics = Summarization.prepare(context, tmp_path)
    task = Summarization.load(context, tmp_path)
    ids = task.items.ids("discover")[:1]
    found = task.measure(ids, cell(task), task.probe(ids, cell(task)).outputs)
    assert [found[f"{name} with the reference"][0] for name in ("ROUGE-L", "BLEU")] == pytest.approx([1, 1])
    assert task.items.table["label"].equals(task.items.table["reference"]) and metrics["clean_degenerate"] == 0


def test_the_threshold_is_what_a_benign_edit_exceeds_as_often_as_asked(lead):
    task = lead(discrepancy={"false_alarms": 0.2})
    records = task.calibration.records
    chosen = records[(records["condition"] == "benign") & (records["split"] == "discover")]
    values = np.sort(chosen["faithfulness_loss"])
    assert task.threshold == pytest.approx(max(values[8], 0))  # the 9th of 10: ceil(11 * .8)
    alarms = {name: told["articles"] for name, told in task.false_alarms().items()}
    assert alarms == {"typos 0.05": 6, "a space doubled": 6}
    assert task.false_alarms()["a space doubled"]["rate"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discrepancy": {"false_alarms": 0.01}}, "0.01 needs 99 articles to calibrate on, discover has 10"),
        ({"discrepancy": {"treshold": 0.1}}, "did you mean 'threshold'?"),
        ({"config": {"generation": {"prompt": "Go!"}}}, "expected {article} exactly once"),
    ],
)
def test_bad_settings(home, changes, message):
    context = news_context(home / "inputs")
    changes = {**changes, "config": {**context.config, **changes.get("config", {})}}
    assert any(message in error for error in Summarization.check(dataclasses.replace(context, **changes)))


def test_a_repair_needs_items_and_references_if_they_are_to_be_learnt(home):
    context = news_context(home / "inputs")
    without = dataclasses.replace(context, config={**context.config, "items": {"discover": 5}})
    for split, error in zip(("repair", "test"), Summarization.check_repair(without, {"method": "lora"}), strict=True):
        assert error.startswith(f"restructure: a repair needs items of the split {split};")
    assert any("restructure.settings.method" in e for e in Summarization.check_repair(without, {"method": "prayer"}))
    settings = {"method": "lora", "targets": "reference"}
    (error,) = Summarization.check_repair(context, settings)
    assert error.startswith("restructure.settings.targets: reference needs reference summaries")
    data = {**context.config["data"], "summary": "summary"}
    named = dataclasses.replace(context, config={**context.config, "data": data})
    assert Summarization.check_repair(named, settings) == Summarization.check_repair(context, {"method": "lora"}) == []
