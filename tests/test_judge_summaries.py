"""A language model as judge of summaries: calibrated on falsified ones, and used near the threshold."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")

from stages.concepts.texts import sentences
from stages.tasks.language.articles import Article
from stages.tasks.summarization import Summarization
from stages.tasks.summarization.labelled import RIGHT, WRONG, make_pairs
from tests.endpoints import served
from tests.news import articles, news_context, write_news
from tests.scripted_judges import judge


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_news(tmp_path_factory.mktemp("judge") / "inputs")


def truth():
    """The answers that `prepare` calibrates a judge on, with their labels."""
    texts = [Article(f"news-{n}", text) for n, text in enumerate(articles(40), start=1)]
    return {(pair.article, pair.summary): not pair.wrong for pair in make_pairs(100, texts)}


TRUTH = truth()


def knows(parts):
    """Right about all falsified summaries; accepts no other, whatever its text."""
    return "acceptable" if TRUTH.get((parts.get("article"), parts["answer"])) else "unacceptable"


def context(inputs, block, **discrepancy):
    config = {**news_context(inputs).config, "judge": block, "calibrate": {"articles": 4}}
    return news_context(inputs, config=config, discrepancy={"validity": -1, **discrepancy})


@pytest.fixture
def prepare(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def prepared(model, **discrepancy):
        given = context(inputs, {"openai": model.url, "model": "wise"}, **discrepancy)
        assert Summarization.check(given) == []
        return given, tmp_path, Summarization.prepare(given, tmp_path)

    return prepared


def test_a_judge_that_sees_what_was_falsified_decides_all_summaries_that_can_be_used(prepare):
    with served(judge(knows), whole=True) as model:
        given, out, metrics = prepare(model, measure="judge")
        found = metrics["judge"]
        assert found["kappa"]["value"] == 1 and set(found["kinds"]) == {*RIGHT, *WRONG} - {"number"}
        task = Summarization.load(given, out)
        assert task.threshold == 0.5 and task.false_alarms() == {}
        usable = [not task.broken(text) for text in task.items.table["summary"]]
        assert found["decided"] == sum(usable) and found["unchanged"] == 21
        assert task.fails_unchanged().all(), "of random weights, which say nothing that was falsified"
        ids = task.items.ids("discover")[:4]
        cells = np.ones((4, len(task.concepts)), dtype=int)
        answer = task.probe(ids, cells)
        assert set(answer.discrepancy) == {1.0} and answer.valid.all()
        table = task.measure(ids, cells, answer.outputs)
        assert table["decided by the judge"].tolist() == [float(not task.broken(text)) for text in answer.outputs]
        assert (table["left open by the judge"] == 0).all()
        assert any("Of 100 labelled answers the judge abstains from 0%" in note for note in task.notes())


def test_near_the_threshold_the_judge_decides_and_elsewhere_the_measure(prepare):
    def asked():
        return sum("<article>" in request["messages"][-1]["content"] for request in model.requests)

    def first_sentence(texts):
        return [sentences(text)[0] for text in texts]

    with served(judge(knows), whole=True) as model:
        given, out, metrics = prepare(model, measure="faithfulness_loss", threshold=0.1, near=[0.05, 0.15])
        assert asked() == len(TRUTH) and metrics["judge"]["decided"] == 0, "unchanged summaries lose nothing"
        task = Summarization.load(given, out)
        ids, task.query, task.judge = task.items.ids("discover"), first_sentence, None
        cells = np.ones((len(ids), len(task.concepts)), dtype=int)
        measured = task.probe(ids, cells).discrepancy
        low, high = (float(end) for end in np.quantile(measured, [0.25, 0.75]))
        task = Summarization.load(context(given.inputs, given.config["judge"], threshold=0.1, near=[low, high]), out)
        task.query = first_sentence
        found = task.probe(ids, cells)
        near = (measured >= np.float32(low)) & (measured <= np.float32(high))
        assert near.any() and not near.all() and asked() == len(TRUTH) + near.sum()
        assert np.array_equal(found.discrepancy, np.where(near, 1, measured))
        [shown] = task.exhibit(np.array(ids)[near][:1].tolist(), cells[:1])
        assert shown.caption.endswith("; the judge rejects it: I was made to say so.")


def test_what_is_wrong_is_told_before_anything_runs(inputs):
    told = "\n".join(Summarization.check(context(inputs, {"transformers": "model"}, measure="judge")))
    assert "the judge is the model under test" in told
    told = "\n".join(Summarization.check(context(inputs, None, measure={"judge": 1, "unsupported": 1})))
    assert "judge is no part of a mean" in told


def test_labels_of_people_take_the_place_of_falsified_summaries(inputs, prepare, tmp_path):
    said = [text.split(". ")[0] if n % 2 else "It was sold." for n, text in enumerate(articles(40))]
    rows = [{"item": f"news-{n + 1}", "answer": told, "acceptable": n % 2 == 1} for n, told in enumerate(said)]
    (inputs / "people.jsonl").write_text("".join(json.dumps(row | {"by": "ann"}) + "\n" for row in rows))
    with served(judge(lambda p: "unacceptable" if "sold" in p["answer"] else "acceptable"), whole=True) as model:
        given = context(inputs, {"openai": model.url, "model": "wise", "labelled": "people.jsonl"}, measure="judge")
        found = Summarization.prepare(given, tmp_path)["judge"]
    assert found["answers"] == 40 and found["kinds"] == {}
    assert found["table"][0]["raters"] == ["judge", "ann"] and found["table"][0]["kappa"]["value"] == 1
