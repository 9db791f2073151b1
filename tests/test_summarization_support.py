"""Claims of a summary that its article does not support are found, on sentences and on pairs with known labels."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.summary_errors import ARTICLES, RIGHT, WRONG, false_alarms, make_pairs, seen
from stages.tasks.sources import parse_source
from stages.tasks.summarization.support import (
    CHANCE,
    ENTAILMENT_LOADERS,
    Claim,
    unsupported,
    unsupported_claims,
)

ARTICLE = (
    "The United States government has said it wants to see President Robert Mugabe removed from power. Scores of white"
    " farmers went into hiding to escape Zimbabwean police. Britain did not recognise the vote. Police arrested six men"
    " in Harare after a 48 hour stand-off, and 1,200 others were released by the courts."
)


@pytest.mark.parametrize(
    "summary",
    [
        ARTICLE,
        ARTICLE.lower(),
        "The farmers escaped Zimbabwe's police.",  # another form of a word,
        "Farmers escaped Zimbabwaen police.",  # a typing error,
        "Six men were arrested by police in Harare.",  # the agent follows the verb,
        "",
    ],
)
def test_what_the_article_supports(summary):
    assert unsupported(summary, ARTICLE) <= CHANCE["relation"]


@pytest.mark.parametrize(
    ("summary", "claims"),
    [
        ("France did not recognise the vote.", [Claim("name", "France")]),
        ("Police arrested 12 men.", [Claim("number", "12")]),
        ("Police did not arrest six men.", [Claim("negation", "not arrest")]),
        ("Police never arrested six men.", [Claim("negation", "not arrested")]),
        (
            "Robert Mugabe wants the United States removed.",
            [Claim("relation of a name", "Mugabe ... wants"), Claim("relation of a name", "wants ... United")],
        ),
        (
            "Men arrested six police.",
            [Claim("relation", "Men ... arrested"), Claim("relation of a name", "six ... police")],
        ),
    ],
)
def test_what_it_does_not(summary, claims):
    found = unsupported_claims(summary, ARTICLE)
    assert set(claims) <= set(found)
    chance = 1.0
    for claim in found:
        chance *= 1 - CHANCE[claim.kind]
    assert unsupported(summary, ARTICLE) == pytest.approx(1 - chance)


# Pairs with known labels


@pytest.fixture(scope="module")
def pairs():
    if find_spec("gensim") is None:
        pytest.skip("the package gensim, which carries the articles, is not installed")
    articles = ARTICLES.load(Path("data/news/inputs"))[0]
    made = make_pairs(500, articles)
    assert made[:50] == make_pairs(50, articles)
    return made


def test_pairs_hold_what_they_say(pairs):
    for half in (True, False):
        some = [pair for pair in pairs if pair.chosen_on == half]
        for kinds, wrong in ((RIGHT, False), (WRONG, True)):
            counts = [sum(pair.kind == kind for pair in some) for kind in kinds]
            assert sum(counts) == sum(pair.wrong == wrong for pair in some)
            assert max(counts) - min(counts) <= 2
    assert {p.id for p in pairs if p.chosen_on}.isdisjoint(p.id for p in pairs if not p.chosen_on)
    for pair in pairs:
        assert pair.kind != "lead sentence" or pair.article.startswith(pair.summary)
        assert not pair.wrong or pair.summary not in pair.article


def test_errors_are_told_from_right_summaries(pairs):
    judged = [pair for pair in pairs if not pair.chosen_on]
    found = {row.kind: row for row in seen(judged, unsupported)}
    assert found["all"].low > 0.9
    assert all(row.auroc > 0.85 for row in found.values())
    assert found["all"].failing > 0.75
    assert false_alarms(judged, unsupported)["all"] <= 0.05


# A model of entailment instead of the rules


def entailment(folder):
    return parse_source({"transformers": folder.name}, ENTAILMENT_LOADERS, "prepare.entailment").load(
        folder.parent, "cpu"
    )
