"""Judges read pictures only, abstain if they are unsure, and report errors before they are used."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from stages.core.errors import UsageError
from stages.tasks.sources import parse_source, source_errors
from stages.tasks.text_to_image.judge_models import JUDGE_LOADERS, AttributeJudge, load_judge, load_judge_form
from stages.tasks.text_to_image.judges import (
    ClipIqa,
    Reading,
    Realism,
    attribute_values,
    expected_values,
    load_quality,
    quality_errors,
)
from tests.tiny_judges import ATTRIBUTES, RED, noisy, plain, tiny_clip, tiny_judge


def reading(colours: list[list[float]], unsure: list[bool] | None = None) -> Reading:
    """A possible reading by a judge of ATTRIBUTES: probabilities of red, green, blue; no other shape anywhere."""
    n = len(colours)
    none = np.tile([1.0, 0.0], (n, 1))
    abstained = {"colour": np.array(unsure or [False] * n), "other_shape": np.zeros(n, dtype=bool)}
    return Reading({"colour": np.array(colours), "other_shape": none}, abstained, np.zeros((n, 8)))


GENDER = {"gender": {"woman": "a photo of a woman", "man": "a photo of a man"}}


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> AttributeJudge:
    return load_judge(tiny_judge(tmp_path_factory.mktemp("judge")), "cpu")


@pytest.fixture(scope="module")
def clip_inputs(tmp_path_factory) -> Path:
    inputs = tmp_path_factory.mktemp("inputs")
    tiny_clip(inputs / "clip")
    return inputs


@pytest.fixture(scope="module")
def clip(clip_inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    parse_source({"clip": "clip", "prompts": GENDER}, JUDGE_LOADERS, "judge").build(clip_inputs, folder)
    return load_judge(folder, "cpu")


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


def test_what_is_read_of_a_picture_depends_on_no_other_picture(judge, clip):
    pictures = noisy(70)
    for reader, attribute, most_off in ((judge, "colour", 0), (clip, "gender", 1e-6)):
        together, alone, empty = reader.read(pictures), reader.read(pictures[41:42]), reader.read([])
        assert np.array_equal(together.features[41], alone.features[0])
        off = together.probabilities[attribute][41] - alone.probabilities[attribute][0]
        assert np.abs(off).max() <= most_off and empty.features.shape == (0, together.features.shape[1])
        assert empty.probabilities[attribute].shape == (0, len(reader.attributes[attribute]))
        assert attribute_values(reader, empty, attribute) == []


def test_a_judge_is_the_same_after_it_was_built_from_inputs(tmp_path):
    tiny_judge(tmp_path / "inputs" / "mine")
    source = parse_source({"attributes": "mine"}, JUDGE_LOADERS, "prepare.judge")
    source.build(tmp_path / "inputs", tmp_path / "built")
    before, after = (load_judge(folder, "cpu") for folder in (tmp_path / "inputs" / "mine", tmp_path / "built"))
    assert np.array_equal(before.read(noisy(3)).features, after.read(noisy(3)).features)
    assert after.note == {"pictures": 12}


def lose(path: Path, weight: str) -> None:
    state = {name: tensor for name, tensor in load_file(path).items() if name != weight}
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda mine: (mine / "model.safetensors").rename(mine / "model.pt"), "model.pt is a pickle"),
        (lambda mine: lose(mine / "model.safetensors", "heads.0.bias"), "heads.0.bias"),
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
        assert len(told) >= 8 and max(told) <= 0.03


def test_pictures_of_any_size_are_read_as_at_the_judges_own(judge):
    same = judge.read([plain(RED, 16), plain(RED, 50), np.full((20, 44, 3), RED, dtype=np.uint8)])
    assert np.allclose(same.features, same.features[0], atol=1e-5)


def test_a_judge_abstains_below_its_threshold_and_a_temperature_above_one_makes_it_less_sure(tmp_path):
    plain = load_judge(tiny_judge(tmp_path / "plain"), "cpu").read(noisy(20))
    best = plain.probabilities["colour"].max(1)
    middle = float(np.median(best))
    changes = {"thresholds": {"colour": middle, "other_shape": 0.0}}
    unsure = load_judge(tiny_judge(tmp_path / "unsure", **changes), "cpu").read(noisy(20)).abstained["colour"]
    assert np.array_equal(unsure, best < middle) and 0 < unsure.sum() < 20
    changes = {"temperatures": {"colour": 5.0, "other_shape": 1.0}}
    cool = load_judge(tiny_judge(tmp_path / "cool", **changes), "cpu").read(noisy(20))
    assert (cool.probabilities["colour"].max(1) < best).all()
    assert np.array_equal(cool.probabilities["other_shape"], plain.probabilities["other_shape"])


def test_a_picture_is_aligned_if_all_that_is_expected_is_read(judge):
    read = reading([[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.2, 0.5, 0.3]])
    expected = [{"colour": "red", "other_shape": "none"}, {"colour": "red"}, {}]
    assert judge.aligned(read, ["", "", ""], expected).tolist() == [1, 0, 1]
    unread = reading([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], unsure=[True, True])
    assert judge.aligned(unread, ["", ""], [{"colour": "red"}, {"other_shape": "none"}]).tolist() == [0, 1]


def test_clip_sees_what_its_model_sees(clip, clip_inputs):
    from transformers import CLIPModel, CLIPProcessor

    model, processor = (c.from_pretrained(clip_inputs / "clip") for c in (CLIPModel, CLIPProcessor))
    pictures = noisy(3, side=40)
    texts = list(GENDER["gender"].values())
    with torch.inference_mode():
        out = model(**processor(text=texts, images=pictures, return_tensors="pt", padding=True))
    read = clip.read(pictures)
    assert np.allclose(read.features, functional.normalize(out.image_embeds, dim=1), atol=1e-5)
    assert np.allclose(read.probabilities["gender"], out.logits_per_image.softmax(1), atol=1e-4)


def test_clip_abstains_where_no_prompt_is_certain(clip, clip_inputs, tmp_path):
    best = clip.read(noisy(20)).probabilities["gender"].max(1)
    middle = float(np.median(best))
    source = parse_source({"clip": "clip", "prompts": GENDER, "certainty": middle}, JUDGE_LOADERS, "judge")
    source.build(clip_inputs, tmp_path)
    abstained = load_judge(tmp_path, "cpu").read(noisy(20)).abstained["gender"]
    assert np.array_equal(abstained, best < middle) and 0 < abstained.sum() < 20


def test_clip_alignment_is_clipscore_within_0_and_1_and_a_prompt_too_long_is_cut(clip):
    read, prompts = clip.read(noisy(4)), ["a photo of a woman", "rain", "the bridge will open in March " * 20, "rain"]
    cosines = (read.features * clip.embed_texts(prompts)).sum(1)
    assert clip.aligned(read, prompts, [{}] * 4) == pytest.approx(np.clip(2.5 * cosines, 0, 1), abs=1e-6)


def test_clip_without_a_choice_or_weights_that_are_safe_is_told(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text("{}")
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(b"")
    block = {"clip": "clip", "prompts": GENDER}
    assert "pytorch_model.bin is a pickle" in source_errors(block, JUDGE_LOADERS, "prepare.judge", tmp_path)[0]
    block = {"clip": "clip", "prompts": {"gender": {"woman": "a person", "man": "a person"}}}
    assert "two values or more" in source_errors(block, JUDGE_LOADERS, "prepare.judge", tmp_path)[0]


def test_a_clip_model_that_lacks_a_weight_or_is_nowhere_is_told(tmp_path):
    lose(tiny_clip(tmp_path / "clip") / "model.safetensors", "visual_projection.weight")
    source = parse_source({"clip": "clip", "prompts": GENDER}, JUDGE_LOADERS, "prepare.judge")
    with pytest.raises(UsageError, match=r"the weights of the CLIP model do not fit: visual_projection\.weight"):
        source.build(tmp_path, tmp_path / "built")
    source = parse_source({"clip": "nobody/nothing", "prompts": GENDER}, JUDGE_LOADERS, "prepare.judge")
    with pytest.raises(UsageError, match=r"nobody/nothing is not a folder in .*faded prefetch"):
        source.build(tmp_path, tmp_path / "built")


def test_realism_is_the_ratio_of_radius_to_distance_at_its_largest():
    # On a line from 0 to 7, the radii to the third nearest are 3 2 2 2 2 2 2 3; the six of 2 are kept.
    realism = Realism(np.arange(8.0)[:, None])
    ratio = np.array([2 / 2.5, 2 / 14.0, 2 / 0.5])
    assert realism(np.array([[-1.5], [20.0], [3.5]])) == pytest.approx(ratio / (1 + ratio))

    assert Realism(np.zeros((10, 3)))(np.zeros((1, 3))).tolist() == [1.0], "a copy of a real picture"
    with pytest.raises(UsageError, match="8 real pictures or more"):
        Realism(np.zeros((7, 3)))


def test_clip_iqa_is_the_probability_of_the_good_prompt():
    iqa = ClipIqa(lambda texts: np.eye(2, dtype=np.float32)[: len(texts)])
    features = np.array([[1, 0], [0, 1], [0.71, 0.7]], dtype=np.float32)
    assert iqa(features) == pytest.approx([1, 0, 1 / (1 + np.exp(-1))], abs=1e-4)


def test_clip_iqa_is_asked_of_a_clip_judge_only(judge, clip):
    assert load_quality("clip_iqa", clip, [])(clip.read(noisy(2)).features).shape == (2,)
    with pytest.raises(UsageError, match="clip_iqa needs a judge of the kind clip"):
        load_quality("clip_iqa", judge, [])
    assert quality_errors("clip_iqa", {"attributes": "mine"}) and not quality_errors("clip_iqa", {"clip": "x"})
