"""Judges read pictures only, abstain if they are unsure, and report errors before they are used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.core.errors import UsageError
from stages.tasks.sources import parse_source
from stages.tasks.text_to_image.judge_models import JUDGE_LOADERS, AttributeJudge, load_judge, load_judge_form, make_net
from stages.tasks.text_to_image.judges import (
    attribute_values,
    expected_values,
)
from tests.tiny_judges import ATTRIBUTES, BLUE, GREEN, RED, noisy, plain, tiny_clip, tiny_judge

GENDER = {"gender": {"woman": "a photo of a woman", "man": "a photo of a man"}}


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> AttributeJudge:
    return load_judge(tiny_judge(tmp_path_factory.mktemp("judge")), "cpu")


@pytest.fixture(scope="module")
def clip_inputs(tmp_path_factory) -> Path:
    """Inputs with a CLIP model in the folder clip."""
    inputs = tmp_path_factory.mktemp("inputs")
    tiny_clip(inputs / "clip")
    return inputs


@pytest.fixture(scope="module")
def clip(clip_inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    parse_source({"clip": "clip", "prompts": GENDER}, JUDGE_LOADERS, "judge").build(clip_inputs, folder)
    return load_judge(folder, "cpu")


# What prompts lead people to expect


@pytest.mark.parametrize(
    ("attributes", "words", "expected"),
    [
        (ATTRIBUTES, {"colour": "red"}, {"colour": "red"}),
        (ATTRIBUTES, {"colour": "reddish"}, {}),
        (ATTRIBUTES, {"colour": "red and blue"}, {}),
        (ATTRIBUTES, {"other shape": "circle"}, {"other_shape": "circle"}),
        ({"colour": ("blue", "light blue")}, {"colour": "a light blue hat"}, {"colour": "light blue"}),
    ],
)
def test_an_expected_value_is_the_only_one_in_the_text_of_the_slot_of_its_attribute(attributes, words, expected):
    assert expected_values(attributes, words) == expected


# The attribute judge


def test_what_is_read_of_a_picture_depends_on_no_other_picture(judge, clip):
    pictures = noisy(70)
    for reader, attribute, most_off in ((judge, "colour", 0), (clip, "gender", 1e-6)):
        together, alone, empty = reader.read(pictures), reader.read(pictures[41:42]), reader.read([])
        assert np.array_equal(together.features[41], alone.features[0])
        off = together.probabilities[attribute][41] - alone.probabilities[attribute][0]
        assert np.abs(off).max() <= most_off
        assert empty.features.shape == (0, together.features.shape[1])
        assert empty.probabilities[attribute].shape == (0, len(reader.attributes[attribute]))
        assert attribute_values(reader, empty, attribute) == []


def test_a_network_that_knows_colours_names_them(judge):
    net = make_net(judge.form)
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    convolutions = [layer for layer in net.body if isinstance(layer, torch.nn.Conv2d)]
    for layer in convolutions:  # pass each channel through: red, green, blue
        for channel in range(3):
            layer.weight.data[channel, channel, 1, 1] = 1
    for layer in net.body:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.weight.data.fill_(1)
    hidden = next(layer for layer in net.body if isinstance(layer, torch.nn.Linear))
    for channel in range(3):
        hidden.weight.data[channel, channel * 4 : (channel + 1) * 4] = 1
        net.heads[0].weight.data[channel, channel] = 1
    sighted = AttributeJudge(judge.form, net)
    assert attribute_values(sighted, sighted.read([plain(GREEN), plain(BLUE), plain(RED)]), "colour") == [
        "green",
        "blue",
        "red",
    ]


def test_a_judge_is_the_same_after_it_was_built_from_inputs(tmp_path):
    tiny_judge(tmp_path / "inputs" / "mine")
    source = parse_source({"attributes": "mine"}, JUDGE_LOADERS, "prepare.judge")
    source.build(tmp_path / "inputs", tmp_path / "built")
    before, after = (load_judge(folder, "cpu") for folder in (tmp_path / "inputs" / "mine", tmp_path / "built"))
    assert np.array_equal(before.read(noisy(3)).features, after.read(noisy(3)).features)
    assert after.note == {"pictures": 12}


def _without_bias(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if name != "heads.0.bias"}, folder / "model.safetensors"
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda mine: (mine / "model.safetensors").rename(mine / "model.pt"), "model.pt is a pickle"),
        (_without_bias, "heads.0.bias"),
        (lambda mine: mine.rename(mine.with_name("other")), "found there: other"),
    ],
)
def test_a_damaged_judge_is_told(tmp_path, damage, told):
    damage(tiny_judge(tmp_path / "mine"))
    with pytest.raises(UsageError, match=told):
        parse_source({"attributes": "mine"}, JUDGE_LOADERS, "prepare.judge").build(tmp_path, tmp_path / "built")


def test_the_default_judges_were_wrong_in_3_percent_at_most_of_what_they_told():
    for kind in ("digits", "scenes"):
        note = load_judge_form(Path("data/images/inputs") / f"judge-{kind}").note
        told = [errors["error"] for part in ("real", "reconstructed") for errors in note[part].values()]
        assert len(told) >= 8
        assert max(told) <= 0.03


# The CLIP judge


# Quality
