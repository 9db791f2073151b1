"""Mining: hidden weaknesses are found, others are not named, and the result can be audited."""

import json
import random
import re
import time
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import yaml

pytest.importorskip("textblob")
pytest.importorskip("lemminflect")

from flows.choosing.mine import EXAMPLES, catalogue
from stages.mining.facts import facts, level_wise
from stages.mining.mine import mine
from stages.mining.record import MinedExample, MineSettings, Mining
from stages.pages.words import interval, percent
from stages.params import AuditConfig
from tests.endpoints import completion, served
from tests.finished import faded
from tests.planted_words import SPACE, Planted, hide, questions, texts
from tests.report_samples import HOSTILE
from tests.test_explorer import check
from tests.test_kill import all_gone, family
from tests.workspace import ROOT, audit_params, make_workspace

SETTINGS = MineSettings(probes=2000)


@pytest.fixture(scope="module")
def ten() -> tuple[list[frozenset[str]], Mining, int]:
    """Ten weaknesses, what mining finds of them, and how many probes it asked."""
    items = texts(240, 0)
    model = Planted(items, hide(items, 0, put_in=5, said=3, attributes=2))
    return list(model.hidden), mine(items, SPACE, model, SETTINGS, seed=0), model.asked


def test_most_of_ten_hidden_weaknesses_are_found_and_hardly_anything_else_is_named(ten):
    hidden, found, asked = ten
    named = [set(one.facts) for one in found.confirmed]
    true = [one for one in hidden if any(one <= facts for facts in named)]
    false = [facts for facts in named if not any(one <= facts for one in hidden)]
    assert len(true) >= 7, [one for one in hidden if one not in true]
    assert not false and asked == found.probes <= SETTINGS.probes
    assert found.unchanged == 50 and 0 < found.proposing <= 0.4 * SETTINGS.probes


def test_of_a_model_without_weakness_nothing_is_named():
    items = texts(150, 0)
    found = mine(items, SPACE, Planted(items, [], noise=0.1), MineSettings(probes=600), seed=0)
    assert found.confirmed == [] and 0 < found.now.value < 0.25


def test_combinations_that_fail_only_together_are_found_and_are_minimal():
    items = texts(240, 4)
    hidden = [frozenset({"says large", "tone is rude"})]
    found = mine(items, SPACE, Planted(items, hidden, noise=0.02), MineSettings(probes=1000), seed=4)
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


def test_level_wise_counts_what_counting_all_would_and_stops_where_a_set_is_reliable():
    rng = np.random.default_rng(0)
    holds = rng.random((300, 8)) < 0.5
    failed = (holds[:, 1] & holds[:, 4]) | (rng.random(300) < 0.1)
    keys = list("abcdefgg")
    found, _, cut = level_wise(holds, failed, keys, support=3, largest=3, most=10**5)
    counted = {one.facts: (one.probes, one.failures) for one in found}
    for size in (1, 2):
        for facts_ in combinations(range(8), size):
            inside_ = holds[:, facts_].all(axis=1)
            expected = (inside_.sum(), (inside_ & failed).sum())
            assert counted.get(facts_) == (None if facts_ == (6, 7) else expected)
    assert counted[1, 4][0] == counted[1, 4][1] and not any({1, 4} < set(one) for one in counted)
    best = min(found, key=lambda one: one.p)
    assert best.facts == (1, 4) and not cut and level_wise(holds, failed, keys, support=3, largest=3, most=10)[2]


def test_attributes_are_what_people_see():
    for text, held in (
        ("Did 3 dogs bark?", {"has a number"}),
        ("The man saw London.", {"has a name"}),
        ("It rained. (Of all!)", {"has several sentences", "has brackets", "has an exclamation mark"}),
        ("They sell a zugzwang.", {"has a rare word"}),
    ):
        assert held <= facts(text) and not (facts("The man goes home.") & held)


AUDIT = AuditConfig.model_validate(audit_params(task="chat"))


@pytest.fixture(scope="module")
def mining(ten) -> Mining:
    """The mining of a model with ten weaknesses, plus a candidate for each of two further verdicts."""
    found = ten[1]
    last = found.findings[-1]
    untested = {"verdict": "no probes left", "fails": None, "without": [], "examples": [], "probes": 0}
    more = [last.model_copy(update=change) for change in ({"verdict": "not confirmed", "probes": 0}, untested)]
    return found.model_copy(update={"findings": [*found.findings, *more]})


@pytest.fixture(scope="module")
def page(mining, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(catalogue("support", AUDIT, 0.0, mining), encoding="utf-8")
    return path


def test_it_is_one_small_file_that_says_what_the_record_says(mining, page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text) and "default-src 'none'" in text
    assert len(text) < 1_000_000
    cards = re.findall(r'<article class="mode".*?</article>', text, re.DOTALL)
    assert len(cards) == len(mining.findings) and mining.findings[0].verdict == "confirmed"
    for card, one in zip(cards, mining.findings, strict=True):
        assert one.verdict in card and all(fact.replace('"', "&#34;") in card for fact in one.facts)
        rates = [one.fails, *(contrast.fails for contrast in one.without)] if one.fails else []
        assert card.count('class="bar"') == len(rates)
        for rate in rates:
            assert percent(rate.value) in card and interval(rate.low, rate.high) in card
        assert all(f"{contrast.p:.2g}" in card for contrast in one.without)
        assert card.count("<figure") == min(EXAMPLES, len(one.examples))
    spent = [int(n) for n in re.findall(r'<td class="n">([\d]+)</td></tr>', text[text.index('id="probes"') :])]
    assert sum(spent) == mining.probes and catalogue("support", AUDIT, 0.0, mining) == text


def test_it_is_open_to_everybody_and_filters_by_verdict(browser, mining, page):
    context = browser.new_context(viewport={"width": 400, "height": 900}, color_scheme="dark", offline=True)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(page.as_uri())
    check(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    cards = opened.locator("article:visible")
    assert cards.count() == len(mining.findings)
    for verdict in {one.verdict for one in mining.findings}:
        opened.get_by_label("verdict").select_option(verdict)
        count = sum(one.verdict == verdict for one in mining.findings)
        assert cards.count() == count
        assert opened.get_by_role("status").inner_text() == f"{count} of {len(mining.findings)} candidates"
    assert errors == []
    context.close()


def test_hostile_texts_are_shown_as_texts(browser, mining, tmp_path):
    parts = dict.fromkeys(("item", "text", "given", "expected", "answered"), HOSTILE)
    example = MinedExample(original="", holds=[HOSTILE], **parts)
    one = mining.findings[0].model_copy(update={"facts": [HOSTILE], "replaced": [HOSTILE], "examples": [example]})
    text = catalogue(HOSTILE, AUDIT, 0.0, mining.model_copy(update={"findings": [one]}))
    assert "<script>alert" not in text and len(re.findall("<script", text)) == len(re.findall("</script>", text))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    opened = browser.new_page()
    opened.on("dialog", lambda dialog: pytest.fail(dialog.message))
    opened.goto((tmp_path / "page.html").as_uri())
    assert opened.locator("h1").inner_text() == HOSTILE
    opened.close()


PAGE = (ROOT / "docs" / "choosing-concepts.md").read_text(encoding="utf-8")


def customers(request):
    said = facts(request["messages"][-1]["content"])
    return completion("Nobody knows." if said & {"has a negation", "says response"} else "It is known.")


def support(path, url):
    pytest.importorskip("transformers")
    from tests.tiny_models import tiny_embedder

    audit = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])["audits"]["support"]
    audit["prepare"] |= {"embedder": {"transformers": "embedder"}, "prompt": "{question}", "items": {"discover": 150}}
    audit["prepare"]["model"] |= {"openai": f"{url}/v1"}
    audit["discrepancy"] |= {"validity": -1}  # the tiny encoder finds no texts similar
    workspace = make_workspace(path, {"support": audit}, {})
    inputs = workspace.path / "data/support/inputs"
    tiny_embedder(inputs / "embedder")
    asked = [question for question in questions(200, 7) if "response" not in question]
    lines = [{"id": f"q{n}", "question": text, "answers": ["known"]} for n, text in enumerate(asked)]
    (inputs / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workspace


def record_of(workspace, audit="support"):
    """Read the record, with a fixed time."""
    return json.loads((workspace.path / f".faded/mine/{audit}.json").read_text()) | {"when": 0}


def questions_asked(requests):
    """Count how often each question of the data, changed or not, was asked."""
    asked = Counter(json.dumps(one["messages"]) for one in requests)
    return Counter({question: n for question, n in asked.items() if "near the" in question})


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """The mined example of the page: (workspace, output, requests)."""
    with served(customers, whole=True) as model:
        workspace = support(tmp_path_factory.mktemp("mined") / "ws", model.url)
        code, told = faded(workspace, "mine", "support")
        assert code == 0, told
        asked = len(model.requests)
        assert faded(workspace, "mine", "support")[0] == 0 and not questions_asked(model.requests[asked:])
        yield workspace, told, model.requests[:asked]


@pytest.mark.slow
def test_the_example_of_the_page_finds_what_the_page_says(mined):
    workspace, told, _ = mined
    record = record_of(workspace)
    confirmed = {" and ".join(one["facts"]) for one in record["mining"]["findings"] if one["verdict"] == "confirmed"}
    assert confirmed == {"has a negation", "says response", "politeness is polite"}  # polite: "If you do not mind"
    shown = re.search(r"```text\n(.*?)```", PAGE.partition("## Mine texts")[2], re.DOTALL)[1]
    assert " ".join(shown.split()) in " ".join(told.split()), told
    assert told.splitlines()[-1] == "page: .faded/mine/support.html"
    page = (workspace.path / ".faded/mine/support.html").read_text()
    assert "<del>reply</del> <ins>response</ins>" in page and "Nobody knows." in page


@pytest.mark.slow
def test_killed_at_a_random_moment_it_asks_nothing_twice_and_ends_with_the_same_record(mined, tmp_path):
    undisturbed, _, requests = mined
    moment, concurrency = random.Random(7).randrange(int(0.9 * len(requests))), 4
    with served(customers, lambda _: time.sleep(0.02), whole=True) as model:
        workspace = support(tmp_path / "ws", model.url)
        process = workspace.start("mine", "support")
        while len(model.requests) <= moment and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, (workspace.path / ".faded-test.log").read_text()
        relatives = family(process)
        process.kill()
        process.wait()
        assert all_gone(relatives)
        code, told = faded(workspace, "mine", "support")
        assert code == 0, told
        asked = questions_asked(model.requests)
    assert record_of(workspace) == record_of(undisturbed) and asked.keys() == questions_asked(requests).keys()
    assert asked.total() - len(asked) <= concurrency  # only requests in flight at the kill
