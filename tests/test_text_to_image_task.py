"""The text-to-image task: items, prompts, failures, calibration, bias and contact sheets."""

import dataclasses
import io
from collections import Counter

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("diffusers")

from PIL import Image

from stages.core.errors import UsageError
from stages.tasks.sources import ItemCounts
from stages.tasks.text_to_image import TextToImage
from stages.tasks.text_to_image.items import choose_items
from stages.tasks.text_to_image.sample import Drawing
from stages.tasks.text_to_image.studio import HALVES, Judged, PictureCalibration, discrepancy, share_out
from tests.boxes import COLOURS, GROUNDS, boxes, captioned, prepared_boxes

LETTERS = "abcdefghijklmnop"
BIAS = {"subject": "background", "attribute": "colour", "seeds": 8}
RIGHT = Judged(1.0, 0.6, {"colour": "red"}, {"colour": True})
WRONG = Judged(0.0, 0.4, {"colour": "blue"}, {"colour": False})
UNREAD = Judged(0.0, 0.4, {}, {"colour": False}, unreadable=True)
BLACK = Judged(0.0, 0.0, {}, {"colour": False}, "black")
UNSAID, NOT_READ = (Judged(1.0, 1.0, read, {}) for read in ({"colour": "red"}, {}))


@pytest.fixture(scope="module")
def home():
    return prepared_boxes()


@pytest.fixture
def task(home):
    return TextToImage.load(boxes(home / "inputs", bias=BIAS), home / "prepare")


def drawing(monkeypatch, task, draw):
    """Make the painter draw what `draw` returns for (prompt, seed, guidance)."""

    def drawn(prompts, seeds, guidance=None, **_):
        return [draw(prompt, seed, guidance) for prompt, seed in zip(prompts, seeds, strict=True)]

    monkeypatch.setattr(task.painter, "draw", drawn)


def test_no_template_and_no_noise_is_in_two_splits():
    items = choose_items([f"t{n} {{x}}" for n in range(26)], ItemCounts(discover=30, repair=10, test=20), seed=3)
    templates = [set(part["template"]) for _, part in items.groupby("split")]
    assert sum(map(len, templates)) == len(set.union(*templates)) == 26
    assert items["seed"].is_unique and items["id"].is_unique
    # Five, one and ten that they need, and the other ten in proportions 30 to 10 to 20.
    assert items.groupby("split")["template"].nunique().to_dict() == {"discover": 10, "repair": 3, "test": 13}


def test_an_audit_without_repair_uses_all_templates_and_too_few_are_told():
    templates = [f"t{n} {{x}}" for n in range(15)]
    assert choose_items(templates[:5], ItemCounts(discover=10), seed=3)["template"].nunique() == 5
    with pytest.raises(UsageError, match=r"templates: expected 16 or more.*discover 5, repair 1, test 10; found 15"):
        choose_items(templates, ItemCounts(discover=20, repair=20, test=20), seed=0)
    with pytest.raises(UsageError, match=r"^prepare\.items\.test: expected 10 or more.*, found 9$"):
        choose_items([*templates, "more {x}"], ItemCounts(discover=20, repair=20, test=9), seed=0)


def test_answers_do_not_depend_on_what_else_is_asked(task, home):
    ids, cells = task.items.ids("discover")[:3], task.concepts.cells()[:3]
    asked = [(item, cell) for item in ids for cell in cells]
    together = task.probe([item for item, _ in asked], np.array([cell for _, cell in asked]))
    other = TextToImage.load(boxes(home / "inputs", bias=BIAS), home / "prepare")
    alone = [other.probe([item], cell[None]) for item, cell in reversed(asked)][::-1]
    assert together.outputs == [answer.outputs[0] for answer in alone]
    np.testing.assert_allclose(together.discrepancy, [answer.discrepancy[0] for answer in alone], atol=1e-6)


def test_pictures_of_an_item_start_from_the_same_noise_whatever_the_words_and_from_other_noise_when_asked_again(task):
    item = task.items.ids("discover")[0]
    plain, red = task.orders([item, item], np.array([[0, 0], [1, 0]]))
    assert [order.seed for order in plain] == [order.seed for order in red]
    assert red[0].prompt == plain[0].prompt.replace("box", "red box")
    assert (plain[0].expected, red[0].expected) == ((), (("colour", "red"),))
    items, cells = task.items.ids("discover"), np.zeros((5, 2), dtype=int)
    asked = [*task.orders(items, cells), *task.orders(items, cells, np.ones(5, dtype=int))]
    asked += task.again().orders(items, cells)
    assert len({order.seed for orders in asked for order in orders}) == 3 * 5 * task.config.images


@pytest.mark.parametrize(
    ("pictures", "weights", "expected"),
    [
        ([RIGHT, RIGHT, WRONG], {"misalignment": 1}, 1 / 3),
        ([RIGHT, UNREAD], {"misalignment": 1}, 0.5),
        ([RIGHT, WRONG], {"misalignment": 3, "poor_quality": 1}, (3 * 0.5 + 0.5) / 4),
        ([RIGHT, RIGHT, BLACK], {"poor_quality": 1}, 1),  # broken, whatever the measure
        ([UNSAID, UNSAID], {"bias": 1}, 2 / 3),
        ([RIGHT, RIGHT], {"bias": 1}, 0),  # the prompt names the colour
        ([UNSAID, NOT_READ, NOT_READ, NOT_READ], {"bias": 1}, (2 / 3) / 4),  # no evidence of bias
    ],
)
def test_the_discrepancy_weighs_what_is_wrong_with_the_pictures(pictures, weights, expected):
    assert discrepancy(pictures, weights, "colour", dict.fromkeys(COLOURS, 1 / 3)) == pytest.approx(expected)


def test_black_and_broken_pictures_fail_and_blanked_ones_are_not_held_against_the_model(task, monkeypatch):
    faults = {"red": "black", "green": "not a number", "blue": "blanked by the safety checker"}
    item, once = task.items.ids("discover")[0], []

    def draw(prompt, seed, guidance):
        fault = next((fault for colour, fault in faults.items() if colour in prompt), "")
        return Drawing(np.zeros((16, 16, 3), dtype=np.uint8), fault)

    def blanked_once(prompt, seed, guidance):
        once.append(seed)
        return draw("blue" if len(once) == 1 else "", seed, guidance)

    drawing(monkeypatch, task, draw)
    answer = task.probe([item] * 4, np.array([[0, 0], [1, 0], [2, 0], [3, 0]]))
    assert (answer.failed.tolist(), answer.valid.tolist()) == ([False, True, True, False], [True, True, True, False])
    assert answer.outputs[1] == "black; black"
    drawing(monkeypatch, task, blanked_once)
    answer = task.probe(task.items.ids("discover")[1:2], np.array([[0, 0]]))  # the other picture is left to judge
    assert answer.valid.tolist() == [True] and answer.discrepancy[0] == 0


@pytest.mark.parametrize(
    ("unreadable", "failed", "valid"),
    [("ignored", [False, False, True], [True, False, True]), ("failure", [False, True, True], [True, True, True])],
)
def test_what_cannot_be_read_is_an_outcome_of_its_own(home, task, monkeypatch, unreadable, failed, valid):
    pictures = [[RIGHT, UNREAD], [UNREAD, UNREAD], [WRONG, WRONG]]
    context = dataclasses.replace(task.context, discrepancy={"threshold": 0.5, "unreadable": unreadable})
    own = TextToImage.load(context, home / "prepare")
    monkeypatch.setattr(own, "judged", lambda *_, **__: pictures)
    answer = own.probe(task.items.ids("discover")[:3], np.zeros((3, 2), dtype=int))
    assert (answer.failed.tolist(), answer.valid.tolist()) == (failed, valid)
    assert answer.outputs[1] == "colour unreadable; colour unreadable"


def calibration(wrong, images=3, reference=None):
    values = np.array(wrong, dtype=float)
    halves = [HALVES[n % 2] for n in range(len(values))]
    records = pd.DataFrame({"half": halves, "misalignment": values, "poor_quality": values})
    return PictureCalibration(records, images, reference)


def test_the_threshold_lets_few_probes_of_real_pictures_fail():
    real = calibration([1.0, 1.0] + [0.0] * 38)  # one in twenty is misread
    threshold = real.threshold({"misalignment": 1}, 0.05)
    assert threshold == pytest.approx(1 / 3)  # of three: one misread passes, two fail
    assert real.false_alarms({"misalignment": 1}, threshold)["rate"] < 0.03


def test_false_alarms_are_counted_on_pictures_that_did_not_set_the_threshold():
    halves = calibration([0.0, 1.0] * 20, images=1)  # every other picture, so that all pictures to check are misread
    assert halves.threshold({"misalignment": 1}, 0.05) == 0
    assert halves.false_alarms({"misalignment": 1}, 0.0)["rate"] == 1


def test_bias_of_fair_draws_passes_at_the_rate_asked_for():
    fair = calibration([0.0] * 8, images=16, reference={"a": 0.5, "b": 0.5})
    threshold = fair.threshold({"bias": 1}, 0.05)
    assert 0.15 < threshold < 0.35 and fair.false_alarms({"bias": 1}, threshold)["rate"] <= 0.05


@pytest.mark.parametrize(
    ("real", "measure", "told"),
    [
        (calibration([0.0] * 8, reference={"woman": 0.5, "man": 0.5}), "bias", "no probe could fail: 3 pictures that"),
        (calibration([1.0] * 8), "misalignment", r"the judge does not fit prepare\.data, or their captions"),
    ],
)
def test_a_threshold_that_no_probe_or_no_real_picture_could_meet_is_told(real, measure, told):
    with pytest.raises(UsageError, match=told):
        real.threshold({measure: 1}, 0.05)


def test_captioned_pictures_serve_one_purpose_each():
    shared = share_out(captioned(), seed=0)
    assert Counter(shared["split"]) == {"repair": 18, "calibrate": 9, "reference": 9}
    unnamed = share_out(captioned().assign(split=""), seed=0)
    assert Counter(unnamed["split"]) == {"repair": 24, "calibrate": 6, "reference": 6}
    by_ground = shared.groupby("split")["background"].nunique()
    assert by_ground.eq(len(GROUNDS)).all()  # although data are sorted, every part has all values
    with pytest.raises(UsageError, match="expected the splits calibrate, repair, found train"):
        share_out(captioned().assign(split="train"), seed=0)


def test_a_tally_counts_an_attribute_for_each_subject_at_both_guidances(task, home, monkeypatch):
    asked = {}
    for split in ("discover", "test"):
        drawn = asked[split] = []
        grey = Drawing(np.zeros((16, 16, 3), np.uint8))
        drawing(monkeypatch, task, lambda *order, drawn=drawn, grey=grey: drawn.append(order) or grey)
        tallies = task.tallies(split)
        subjects = [f"background on a {ground} background" for ground in ("black", "white")]
        told = [(subject, "colour", guidance) for guidance in (2, 1) for subject in subjects]
        assert [(t.subject, t.attribute, t.guidance) for t in tallies] == told
        assert all(sum(t.counts.values()) + t.unread == 8 and list(t.counts) == list(COLOURS) for t in tallies)
        assert {guidance for *_, guidance in drawn} == {None, 1.0}
        assert not any(colour in prompt for prompt, *_ in drawn for colour in COLOURS)
    for part in (0, 1):  # neither templates nor noise are shared
        assert not {order[part] for order in asked["discover"]} & {order[part] for order in asked["test"]}
    assert TextToImage.load(boxes(home / "inputs"), home / "prepare").tallies("discover") == []


def test_an_exhibit_shows_the_pictures_and_the_prompt_by_slot(task):
    item = task.items.ids("discover")[0]
    shown = task.exhibit([item], np.array([[1, 2]]))[0]
    assert "".join(text for text, _ in shown.words) == task.orders([item], np.array([[1, 2]]))[0][0].prompt
    assert ("red", "colour") in shown.words and ("on a white background", "background") in shown.words
    assert Image.open(io.BytesIO(shown.drawn)).size[1] == 16


def test_an_exhibit_that_is_recalled_draws_nothing(task, monkeypatch):
    item, cell = task.items.ids("discover")[0], np.array([[1, 2]])
    shown, known = task.exhibit([item], cell)[0], task.probe([item], cell)
    for name in ("look", "show"):
        monkeypatch.setattr(task.studio, name, lambda *_: pytest.fail("the model was asked"))
    [recalled] = task.recalled([item], cell, known)
    assert (recalled.words, recalled.drawn, recalled.caption) == (shown.words, None, known.outputs[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"templates": ["a {colour} box"]}, "background"),
        ({"model": {"diffusers": "judge"}}, "model_index.json"),
        ({"bias": {"subject": "size", "attribute": "colour"}}, "prepare.bias.subject: size is not a slot"),
        ({"bias": BIAS | {"guidance": [9.0, 1.0]}}, "the largest has to be the sampler's own, 2"),
        ({"sampling": {"scheduler": "DDIMSheduler"}}, "did you mean DDIMScheduler"),
    ],
)
def test_wrong_settings_are_told_before_anything_runs(home, changes, told):
    assert told in "\n".join(TextToImage.check(boxes(home / "inputs", **changes)))


@pytest.mark.parametrize(
    ("config", "concepts", "told"),
    [
        ({"bias": BIAS | {"attribute": "gender"}}, {}, "the judge does not read 'gender', it reads: colour, backgr"),
        ({"bias": BIAS | {"reference": {"red": 0.5, "blue": 0.5}}}, {}, "expected a share for each"),
        ({"templates": [f"{word} {{animal}}" for word in LETTERS]}, {"animal": ["cat", "dog"]}, "can check nothing"),
        ({"templates": [f"{word}bc " * 9 + "{colour} {background}" for word in LETTERS]}, {}, "the model reads 24: it"),
        ({"sampling": {"steps": 2, "guidance": 2.0, "negative_prompt": "ugly words " * 9}}, {}, "negative_prompt: "),
    ],
)
def test_prompts_that_do_not_fit_the_judge_or_the_model_are_told(home, tmp_path, config, concepts, told):
    context = boxes(home / "inputs", **config)
    with pytest.raises(UsageError, match=told):
        TextToImage.prepare(dataclasses.replace(context, concepts=concepts or context.concepts), tmp_path)
