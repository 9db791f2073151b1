"""Mining: hidden weaknesses are found, others are not named, and the result can be audited."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import yaml

pytest.importorskip("textblob")
pytest.importorskip("lemminflect")

from stages.errors import UsageError
from stages.mining import MineSettings
from stages.mining.asked import Articles, Prompts
from stages.mining.mine import Ask, mine
from stages.mining.sets import level_wise
from stages.mining.wordings import alternatives, facts, other_levels, replaced, synonyms
from stages.params import load_params
from stages.tasks.chat import Chat
from stages.tasks.load import task_context
from stages.tasks.summarization import Summarization
from stages.tasks.text_to_image import TextToImage
from tests.boxes import boxes
from tests.endpoints import completion, served
from tests.finished import faded, inside
from tests.news import news_context, write_news
from tests.planted_words import SPACE, Planted, hide, questions, texts
from tests.workspace import ROOT, make_workspace

SETTINGS = MineSettings(probes=2000)


@pytest.mark.parametrize("seed", [0, 1])
def test_most_of_ten_hidden_weaknesses_are_found_and_hardly_anything_else_is_named(seed):
    items = texts(240, seed)
    hidden = hide(items, seed, put_in=5, said=3, attributes=2)
    model = Planted(items, hidden)
    found = mine(items, SPACE, model, SETTINGS, seed=seed)
    named = [set(one.facts) for one in found.confirmed]
    true = [one for one in hidden if any(one <= facts for facts in named)]
    false = [facts for facts in named if not any(one <= facts for one in hidden)]
    assert len(true) >= 7, [one for one in hidden if one not in true]
    assert not false
    assert model.asked == found.probes <= SETTINGS.probes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_of_a_model_without_weakness_nothing_is_named(seed):
    items = texts(150, seed)
    found = mine(items, SPACE, Planted(items, [], noise=0.1), MineSettings(probes=600), seed=seed)
    assert found.confirmed == [] and 0 < found.now.value < 0.25


def test_combinations_that_fail_only_together_are_found_and_are_minimal():
    items = texts(240, 4)
    hidden = [frozenset({"says large", "tone is rude"}), frozenset({"has a number", "says trip"})]
    found = mine(items, SPACE, Planted(items, hidden, noise=0.02), SETTINGS, seed=4)
    assert {frozenset(one.facts) for one in found.confirmed} >= {hidden[0]}
    one = next(one for one in found.confirmed if set(one.facts) == hidden[0])
    assert one.kind == "set" and one.fails.value > 0.9 and all(c.paired and c.fails.value < 0.3 for c in one.without)
    assert "large for big" in one.replaced
    assert not [one for one in found.confirmed if not any(h <= set(one.facts) for h in hidden)]


def test_a_finding_holds_on_items_that_did_not_propose_it_and_runs_are_alike():
    items = texts(150, 5)
    model = Planted(items, [frozenset({"has a negation"})])
    found = mine(items, SPACE, model, MineSettings(probes=600), seed=5)
    [one] = found.confirmed
    assert one.told == "has a negation" and one.kind == "attribute" and not one.without[0].paired
    assert one.proposed[1] > 0 and one.items <= found.items[1] == 100
    assert set(one.said_by) == {i for i, t in zip(items.ids, items.texts, strict=True) if "has a negation" in facts(t)}
    assert found == mine(items, SPACE, model, MineSettings(probes=600), seed=5)


def test_too_few_items_are_refused():
    items = texts(14, 0)
    with pytest.raises(UsageError, match="found 14 groups of items to discover on, expected 15 or more"):
        mine(items, SPACE, Planted(items, []), SETTINGS, seed=0)


def test_level_wise_counts_what_counting_all_would_and_stops_where_a_set_is_reliable():
    rng = np.random.default_rng(0)
    holds = rng.random((300, 8)) < 0.5
    failed = (holds[:, 1] & holds[:, 4]) | (rng.random(300) < 0.1)
    keys = list("abcdefgg")
    found = level_wise(holds, failed, keys, support=3, largest=3, most=10**5)
    counted = {one.facts: (one.probes, one.failures) for one in found.sets}
    for size in (1, 2):
        for facts_ in combinations(range(8), size):
            inside_ = holds[:, facts_].all(axis=1)
            expected = (inside_.sum(), (inside_ & failed).sum())
            assert counted.get(facts_) == (None if facts_ == (6, 7) else expected)
    assert counted[1, 4][0] == counted[1, 4][1] and not any({1, 4} < set(one) for one in counted)
    best = min(found.sets, key=lambda one: one.p)
    assert best.facts == (1, 4) and not found.cut
    assert level_wise(holds, failed, keys, support=3, largest=3, most=10).cut


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("Did 3 dogs bark?", {"has a number"}),
        ("Why did they not bark?", {"has a negation", 'has the question word "why"'}),
        ("The man saw London.", {"has a name"}),
        ("He is older than the NATO.", {"has a comparison", "has an acronym"}),
        (
            "It rained. It was the oldest (of all)!",
            {"has several sentences", "has brackets", "has an exclamation mark"},
        ),
        ('If you go today, say "no".', {"has a condition", "has a time", "has the second person", "has a quotation"}),
        ("They sell a zugzwang.", {"has a rare word"}),
    ],
)
def test_attributes_are_what_people_see(text, held):
    assert held <= facts(text)
    assert not (facts("The man goes home.") & held)


def test_words_are_replaced_in_their_inflection_and_slots_are_not_words():
    template = "a photograph of the big {dog} near big trees"
    assert synonyms(template)["big"] == ("large",) and "dog" not in alternatives(template)
    assert replaced(template, {"big": "large", "dog": "cat"}) == "a photograph of the large {dog} near large trees"
    assert "map" in alternatives(template)["photograph"]
    assert "wolf" in other_levels("dog") and "in the rain" in other_levels("in the snow") and other_levels("") == []


# How tasks are probed


def silent(_spent, _note):
    """Progress that is not shown."""


def test_words_of_articles_are_replaced_before_anything_else_and_the_summary_is_judged_by_the_article(tmp_path):
    pytest.importorskip("transformers")
    context = news_context(write_news(tmp_path / "inputs"))
    (tmp_path / "prepare").mkdir()
    Summarization.prepare(context, tmp_path / "prepare")
    asked = Articles(Summarization, context, tmp_path / "prepare", tmp_path, silent)
    item, words = next((n, one) for n, one in enumerate(asked.texts().options) if one)
    word, other = next((word, others[0]) for word, others in words.items())
    start = tuple(asked.concepts.start.tolist())
    asks = [Ask(item, ((word, other),), start), Ask(item, (), start)]
    task, ids, cells = asked.worded(asks)
    article = asked.texts().texts[item]
    assert task.changed(ids, cells) == [replaced(article, {word: other}), article]
    assert len(set(ids)) == 1  # so the measure compares with the unchanged article
    own = Summarization.load(context, tmp_path / "prepare")
    unchanged = own.probe(ids[:1], np.array([start])).failed
    assert asked(asks).tolist()[1] == unchanged[0] and asked.spent == 2


def test_words_of_templates_are_replaced_and_slots_get_levels_that_the_judge_can_read(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    context = boxes(tmp_path / "inputs")
    (tmp_path / "prepare").mkdir()
    TextToImage.prepare(context, tmp_path / "prepare")
    asked = Prompts(TextToImage, context, tmp_path / "prepare", tmp_path, silent)
    assert asked.levels() == context.concepts  # its judge reads attributes, and no other words
    start, texts_ = tuple(asked.concepts.start.tolist()), asked.texts()
    item, word = next((n, w) for n, text in enumerate(texts_.texts) for w in text.split() if w.isalpha())
    asks = [Ask(item, ((word, "sketch"),), start), Ask(item, (), start)]
    task, ids, cells = asked.worded(asks)
    new, old = (one[0].prompt for one in task.orders(ids, cells))
    assert new == replaced(old, {word: "sketch"}) != old and len(asked(asks)) == 2
    monkeypatch.setattr("stages.tasks.text_to_image.attribute_judge.AttributeJudge.reads_prompts", True)
    colours = asked.levels()["colour"]
    assert colours[: len(context.concepts["colour"])] == list(context.concepts["colour"])
    assert {"purple", "pink"} & set(colours)


# The command, and the example of its page

PAGE = (ROOT / "docs" / "mining.md").read_text(encoding="utf-8")


def customers(request):
    """The model of the example."""
    said = facts(request["messages"][-1]["content"])
    return completion("Nobody knows." if said & {"has a negation", "says response"} else "It is known.")


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """The mined example of the page: (workspace, output, url)."""
    pytest.importorskip("transformers")
    from tests.tiny_models import tiny_embedder

    audit = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["audits"]["support"]
    with served(customers, whole=True) as model:
        audit["prepare"] |= {"embedder": {"transformers": "embedder"}}
        audit["prepare"]["model"] |= {"openai": f"{model.url}/v1"}
        audit["discrepancy"] |= {"validity": -1}  # the tiny encoder finds no texts similar
        workspace = make_workspace(tmp_path_factory.mktemp("mined") / "ws", {"support": audit}, {})
        inputs = workspace.path / "data/support/inputs"
        tiny_embedder(inputs / "embedder")
        asked = [question for question in questions(200, 7) if "response" not in question]
        lines = [{"id": f"q{n}", "question": text, "answers": ["known"]} for n, text in enumerate(asked)]
        (inputs / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, told = faded(workspace, "mine", "support")
        assert code == 0, told
        asked_before = len(model.requests)
        assert faded(workspace, "mine", "support")[0] == 0
        assert all("near the" not in str(one) for one in model.requests[asked_before:])  # no question is sent twice
        yield workspace, told


@pytest.mark.slow
def test_the_example_of_the_page_finds_what_the_page_says(mined):
    workspace, told = mined
    record = json.loads((workspace.path / ".faded/mine/support.json").read_text())
    confirmed = {" and ".join(one["facts"]) for one in record["mining"]["findings"] if one["verdict"] == "confirmed"}
    assert confirmed == {"has a negation", "says response", "politeness is polite"}  # one phrase: "If you do not mind"
    shown = re.search(r"```text\n(.*?)```", PAGE, re.DOTALL)[1]
    assert " ".join(shown.split()) in " ".join(told.split()), told


@pytest.mark.slow
def test_what_is_proposed_is_an_audit_with_the_findings_as_attributes(mined):
    workspace, told = mined
    proposed = yaml.safe_load(told[told.index("audits:") : told.index("record:")])["audits"]["support"]["prepare"]
    lines = (workspace.path / ".faded/mine/support.jsonl").read_text()
    (workspace.path / "data/support/inputs" / proposed["data"]["jsonl"]).write_text(lines)
    with inside(workspace):
        context = task_context("support", load_params().audit("support"))
        source = Chat.source(replace(context, config={**context.config, **proposed}), "data")
        read, skipped = source.load(context.inputs)
    assert not skipped and len(read) == proposed["items"]["discover"]
    for name in ("says response", "has a negation"):
        assert {one.details[name] for one in read} == {"yes", "no"}
    assert sum("response" in one.question and one.details["says response"] == "yes" for one in read) > 3


def test_an_audit_without_texts_is_refused(tmp_path):
    workspace = make_workspace(tmp_path / "ws")
    code, told = faded(workspace, "mine", "tiny")
    assert code == 2 and "has no texts to mine; expected chat, summarization or text-to-image" in told
