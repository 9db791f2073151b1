"""Repairs of a text-to-image pipeline: training data, and an adapter that learns, resumes and is read back."""

import copy
import dataclasses
import functools
import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.concepts import Region
from stages.concepts.prompts import prompt_space
from stages.core.errors import BugError, UsageError
from stages.tasks.contract import Compute, Pair, RepairPlan, TargetMode

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from stages.params import checked
from stages.tasks.text_to_image import TextToImage
from stages.tasks.text_to_image.album import NOT_SHOWN, PictureWords, build_album, vocabulary
from stages.tasks.text_to_image.config import SamplingConfig, TextToImageRepair
from stages.tasks.text_to_image.lessons import PictureLesson, PictureLessons, PicturePair, PicturePairs
from stages.tasks.text_to_image.models import LORA
from stages.tasks.text_to_image.repair import pixels, verify
from stages.tasks.text_to_image.sample import Painter
from stages.tasks.text_to_image.training import AdapterTraining, DpoTraining, LoraTraining, check_trainable
from tests.alone import load_alone
from tests.boxes import ATTRIBUTES, COLOURS, GROUNDS, LEVELS, box, boxes, captioned, prepared_boxes
from tests.tiny_pipelines import tiny_pipeline
from tests.weights import same

pytestmark = pytest.mark.usefixtures("read_here")
RED_ON_BLACK = TargetMode("M1", Region({"colour": (1,), "background": (1,)}))
BLUE = TargetMode("M2", Region({"colour": (3,)}), severity=3.0)
QUICK = {"method": "lora", "steps": 4, "batch_size": 4, "rank": 2}


@functools.cache
def read_once():
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(prepared_boxes() / "inputs" / "model", safety_checker=None)


def tiny(prediction="epsilon", channels=4):
    """The pipeline of the boxes, with another objective or number of channels of its UNet."""
    from diffusers import DDIMScheduler, UNet2DConditionModel

    pipeline = copy.deepcopy(read_once())
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=prediction)
    if channels != pipeline.unet.config.in_channels:
        pipeline.register_modules(unet=UNet2DConditionModel.from_config(pipeline.unet.config, in_channels=channels))
    return pipeline


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return shutil.copytree(prepared_boxes(), tmp_path_factory.mktemp("boxes") / "home")


@pytest.fixture(scope="module")
def loaded(home):
    return TextToImage.load(boxes(home / "inputs"), home / "prepare")


@pytest.fixture
def task(loaded):
    """The task, fresh for each test, which may change it."""
    own = copy.copy(loaded)
    own.studio = dataclasses.replace(loaded.studio)
    return own


def plan(modes=(RED_ON_BLACK,), control=None, examples=(), scratch=None, **settings):
    return RepairPlan(list(modes), {**QUICK, **settings}, 7, control, examples=examples, scratch=scratch)


def lessons(task, asked, steps=30):
    """The data of `steps` training steps: (what the pictures show, by attribute), the lessons, and the album."""
    settings, words = checked(TextToImageRepair, asked.settings, "restructure.settings"), vocabulary(task)
    album = build_album(task, asked, settings, words)
    give = PictureLessons(task, asked, settings, album, words)
    return [lesson for step in range(steps) for lesson in give(step)], album, words


def shown(album, words, lesson):
    return [words.attributes[n][v] for n, v in zip(words.names, album.shows[lesson.picture], strict=True)]


@pytest.mark.parametrize(
    ("region", "colour", "background", "strictly", "inside"),
    [
        ({"colour": (1,)}, 0, 1, True, True),
        ({"colour": (1,), "background": (1,)}, 0, 1, True, False),
        ({"colour": (1,)}, 0, NOT_SHOWN, False, True),
    ],
)
def test_a_picture_belongs_to_a_region_whose_words_are_true_of_it(region, colour, background, strictly, inside):
    words = PictureWords(prompt_space(LEVELS), ATTRIBUTES)
    assert words.inside(Region(region), np.array([[colour, background]]), strictly=strictly).tolist() == [inside]


def test_aimed_lessons_show_a_target_and_say_nothing_that_is_not_true(task):
    learnt, album, words = lessons(task, plan(replay=0.25))
    aimed = [lesson for lesson in learnt if not lesson.replayed]
    assert len(aimed) == 0.75 * len(learnt)
    assert {tuple(shown(album, words, lesson)) for lesson in aimed} == {("red", "black")}
    assert not any(word in lesson.caption for lesson in aimed for word in ("blue", "green", "white"))
    starts = {template.split()[0] for template in task.items.table.query("split == 'repair'")["label"]}
    said = {lesson.caption for lesson in aimed if not lesson.caption.startswith("see")}
    assert said == {f"{start} red box on a black background" for start in starts}


def test_replayed_lessons_are_of_no_target(task):
    learnt, album, words = lessons(task, plan(replay=0.5))
    seen = {tuple(shown(album, words, lesson)) for lesson in learnt if lesson.replayed}
    assert seen == {(c, g) for c in COLOURS for g in GROUNDS} - {("red", "black")}


def test_severity_weights_the_targets_and_a_control_learns_as_many_pictures_of_everything(task):
    learnt, album, words = lessons(task, plan([RED_ON_BLACK, BLUE], replay=0.0))
    assert 0.65 < np.mean([shown(album, words, lesson)[0] == "blue" for lesson in learnt]) < 0.85
    control, album, words = lessons(task, plan(control="as_used"))
    assert len(control) == len(learnt)
    assert {tuple(shown(album, words, lesson)) for lesson in control} == {(c, g) for c in COLOURS for g in GROUNDS}


def test_what_nobody_can_learn_is_an_error(task):
    with pytest.raises(UsageError, match=r"balance: size is not an attribute.*colour, background"):
        lessons(task, plan(balance="size"))
    task.pictures = task.pictures[task.pictures["colour"] != "red"]
    with pytest.raises(UsageError, match=r"no picture of pictures shows M1 \(colour is red"):
        lessons(task, plan())


def test_a_folder_of_ones_own_is_learnt_beside_the_pictures_of_the_audit(task, home):
    folder = home / "inputs" / "mine"
    folder.mkdir(exist_ok=True)
    (folder / "one.png").write_bytes(box("red", "black"))
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "one.png", "text": "my own red box"}) + "\n")
    asked = plan(sources={"pictures": 1, "folder": 3}, folder={"imagefolder": "mine"}, replay=0.0)
    learnt, album, _ = lessons(task, asked)
    own = [lesson.caption for lesson in learnt if album.table["source"][lesson.picture] == "folder"]
    assert set(own) == {"my own red box"} and 0.65 < len(own) / len(learnt) < 0.85


def judging(monkeypatch, task, change):
    """Make the judge say of the n-th drawing of each call what `change(n)` says."""
    judged = task.studio.judged

    def changed(drawings, orders):
        return [dataclasses.replace(one, **change(n)) for n, one in enumerate(judged(drawings, orders))]

    monkeypatch.setattr(task.studio, "judged", changed)


@pytest.fixture
def lenient(task, monkeypatch):
    """A task whose judge accepts every second drawing, and reads all of them as red on black."""
    read = {"colour": "red", "background": "black"}
    judging(monkeypatch, task, lambda n: {"alignment": 0.9, "read": read, "right": {"colour": n % 2 == 0}})
    return task


def test_own_drawings_are_learnt_under_their_prompts_where_the_judge_finds_them_right(lenient):
    learnt, album, _ = lessons(lenient, plan(sources={"own": 1}, samples=16, replay=0.25))
    assert album.counts == {"own": 8, "own_drawn": 16, "own_accepted": 8, "own_praised": 0}
    assert {lesson.caption for lesson in learnt} <= set(album.table["text"])
    aimed = {lesson.caption for lesson in learnt if not lesson.replayed}
    assert all("red box on a black background" in caption for caption in aimed)
    replayed = {lesson.caption for lesson in learnt if lesson.replayed}
    assert not any("red box on a black background" in caption for caption in replayed)
    with pytest.raises(UsageError, match="no picture of own shows M1"):
        lessons(lenient, plan(sources={"own": 1}, samples=16, accept=0.95))


@pytest.mark.parametrize("control", [None, "as_used"])
def test_what_was_right_of_pairs_that_must_pass_is_learnt_and_changes_no_other_lesson(lenient, control):
    pairs = [Pair(item, [2, 1]) for item in lenient.items.ids("test")[:4]]
    asked = plan(batch_size=8, replay=0.25, control=control)
    without, within = (dataclasses.replace(asked, must_pass=must) for must in ((), pairs))
    (without, *_), (within, album, _) = lessons(lenient, without), lessons(lenient, within)
    kept = [lesson for lesson in within if lesson.picture >= len(album.table)]
    orders = lenient.orders([pair.item for pair in pairs], np.array([[2, 1]] * 4))
    assert {lesson.caption for lesson in kept} == {order.prompt for [order, _] in orders}
    assert len({lesson.picture for lesson in kept}) == 4 and all(lesson.replayed for lesson in kept)
    assert [lesson in kept for lesson in within] == [n % 8 >= 6 for n in range(len(within))], "a quarter, the last"
    assert all(now == before for now, before in zip(within, without, strict=True) if now not in kept)


def test_a_pair_that_must_pass_but_never_did_is_not_learnt_and_one_takes_no_more_than_its_place(task, monkeypatch):
    asked = dataclasses.replace(plan(batch_size=8), must_pass=[Pair(task.items.ids("test")[0], [2, 1])])
    judging(monkeypatch, task, lambda n: {"alignment": 0.9, "right": {"colour": n == 1}})
    learnt, album, _ = lessons(task, asked)
    assert sum(lesson.picture >= len(album.table) for lesson in learnt) == 30, "its one right picture, in each step"
    judging(monkeypatch, task, lambda _: {"right": {"colour": False}})
    assert lessons(task, asked)[0] == lessons(task, plan(batch_size=8))[0]


@pytest.fixture(scope="module")
def repaired(loaded, tmp_path_factory):
    task, out = loaded, tmp_path_factory.mktemp("repaired")
    before = {name: tensor.clone() for name, tensor in task.painter.pipeline.unet.state_dict().items()}
    return task, out, task.repair(plan(steps=20, learning_rate=3e-2, rank=8), out), before


def test_the_loss_falls_and_the_model_under_test_stays_as_it_was(repaired):
    task, _, record, before = repaired
    assert (record.method, record.steps) == ("lora", 20) and list(record.curve["step"]) == list(range(1, 21))
    assert record.details["loss_last"] < 0.8 * record.details["loss_first"]
    after = task.painter.pipeline.unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_repaired_model_loads_as_any_lora_does_and_draws_otherwise(repaired, home):
    task, out, _, _ = repaired
    again = TextToImage.load(boxes(home / "inputs"), home / "prepare", out)
    assert not np.array_equal(pixels(again.painter, ["a red box"], [1]), pixels(task.painter, ["a red box"], [1]))
    pipeline = tiny()
    pipeline.load_lora_weights(out)
    plain = Painter(pipeline, task.painter.sampling, task.painter.compute)
    drawn = [pixels(painter, ["a red box"], [1]).astype(int) for painter in (plain, again.painter)]
    np.testing.assert_allclose(*drawn, atol=1)  # merged weights may differ in the last bit


def test_a_repaired_model_goes_part_of_the_way(repaired, home, tmp_path):
    task, learnt, _, _ = repaired
    states = torch.randn(5, 2, 16).transpose(0, 1)  # not in order, which torch multiplies with in several ways

    def drawn(folder):
        painter = TextToImage.load(task.context, home / "prepare", folder).painter
        with torch.inference_mode():
            predicted = painter.pipeline.unet(torch.ones(2, 4, 8, 8), 5, states).sample
        weights = painter.pipeline.unet.state_dict()
        return pixels(painter, ["a red box", "a blue box"], [1, 2]).astype(int), predicted, weights

    for share in (0.0, 0.5, 1.0):
        task.move(learnt, share, out := tmp_path / str(share))
        assert {path.name for path in out.iterdir()} == {path.name for path in learnt.iterdir()}
    assert (tmp_path / "1.0" / LORA).read_bytes() == (learnt / LORA).read_bytes()
    before, start, half, end = (drawn(folder) for folder in (None, tmp_path / "0.0", tmp_path / "0.5", learnt))
    assert same(start[2], before[2])
    assert np.array_equal(start[0], before[0]) and torch.allclose(start[1], before[1], atol=1e-5)
    assert 0 < np.abs(half[0] - start[0]).sum() < np.abs(end[0] - start[0]).sum()


@pytest.mark.slow
def test_a_repaired_model_is_loaded_and_asked_without_faded(repaired, home, tmp_path):
    task, out, _, _ = repaired
    prompts = ["a red box", "a blue box on a black background"]
    load_alone(out, home / "prepare" / "model", *prompts, cwd=tmp_path)
    found = np.stack([np.asarray(Image.open(tmp_path / f"{number}.png")) for number in (1, 2)]).astype(int)
    again = TextToImage.load(boxes(home / "inputs"), home / "prepare", out)
    np.testing.assert_allclose(found, pixels(again.painter, prompts, [1, 2]), atol=1)  # unmerged weights
    assert np.abs(found - pixels(task.painter, prompts, [1, 2])).max() > 5


def test_all_trained_layers_are_written_and_read_back(tmp_path):
    pipeline = tiny()
    training = trained(pipeline, layers="all", learning_rate=1e-2, alpha=4)
    training.save(tmp_path)
    pipeline.load_lora_weights(tmp_path)
    noisy, states = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    with torch.inference_mode():
        assert torch.equal(pipeline.unet(noisy, 5, states).sample, training.unet(noisy, 5, states).sample)
    assert any("conv" in name for name in load_file(tmp_path / LORA))


def training_of(pipeline, checkpoint=None, prediction=None, **settings):
    images = captioned()["image"].tolist()
    asked = TextToImageRepair.model_validate({**QUICK, **settings})
    batch = [PictureLesson(0, "a red box"), PictureLesson(5, "a blue box")]
    batch += [PictureLesson(9, "a box", True), PictureLesson(3, "one box", True)]
    return LoraTraining(pipeline, images, [batch] * asked.steps, asked, Compute(threads=1, batch_size=3), 7, checkpoint)


def trained(pipeline, **settings):
    training = training_of(pipeline, **settings)
    training.run("test")
    return training


def pairs_of(task, asked):
    settings = checked(TextToImageRepair, asked.settings, "restructure.settings")
    return PicturePairs(task, asked, settings, vocabulary(task))


def dpo(**settings):
    return plan(method="dpo", samples=16, tries=2, **settings)


def test_a_pair_is_two_drawings_for_one_prompt_that_the_judge_tells_apart(lenient):
    pairs = pairs_of(lenient, dpo())
    assert pairs.numbers() == {"pairs": 8, "pairs_with_captioned": 0, "available": {"own_drawn": 16, "own_accepted": 8}}
    assert all(pair.right % 2 == 0 and pair.wrong % 2 == 1 for pair in pairs.pairs)  # as the lenient judge decides
    assert all("red box on a black background" in pair.caption for pair in pairs.pairs)
    assert len(pairs(0)) == 2, "batch_size pictures"
    assert pairs(3) == pairs(3) != pairs(4)


def test_of_a_prompt_never_drawn_right_a_captioned_picture_is_the_better_one(task, monkeypatch):
    judging(monkeypatch, task, lambda n: {"right": {"colour": False}})
    pairs = pairs_of(task, dpo())
    assert pairs.numbers()["pairs_with_captioned"] == len(pairs.pairs) == 16
    red_on_black = {box("red", "black", n % 4) for n in range(3, 6)}
    assert {pairs.images[pair.right] for pair in pairs.pairs} <= red_on_black


def test_a_pair_that_must_pass_is_preferred_to_a_drawing_that_does_not_show_it(lenient):
    must = [Pair(item, [3, 1]) for item in lenient.items.ids("test")[:3]]  # blue, and all is read as red
    without, within = (pairs_of(lenient, dataclasses.replace(dpo(batch_size=16), must_pass=m)) for m in ((), must))
    now, before, drawn = within(5), without(5), len(without.images)
    assert now[:6] == before[:6] and all(pair.right >= drawn > pair.wrong for pair in now[6:])
    assert all("blue box on a black background" in pair.caption for pair in now[6:])
    assert within.numbers() == without.numbers() | {"pairs_must_pass": 3} and len(within.images) == drawn + 3


def dpo_training(pipeline, checkpoint=None, **settings):
    """Training in which red boxes on black are better than blue ones, for all prompts."""
    asked = TextToImageRepair.model_validate({**QUICK, "method": "dpo", **settings})
    red, blue = (captioned().query(f"colour == '{c}' and background == 'black'").index for c in ("red", "blue"))
    batch = [PicturePair(int(r), int(b), "a box") for r, b in zip(red, blue, strict=True)]
    images, compute = captioned()["image"].tolist(), Compute(threads=1, batch_size=3)
    return DpoTraining(pipeline, images, [batch] * asked.steps, asked, compute, 7, checkpoint)


def test_the_loss_of_an_untrained_adapter_is_that_of_a_coin():
    assert dpo_training(tiny()).backward(0) == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
def test_pictures_get_more_like_the_better_ones():
    def redness(pipeline):
        painter = Painter(pipeline, SamplingConfig(steps=4, guidance=1.0), Compute(threads=1, batch_size=4))
        drawn = pixels(painter, ["a box"] * 16, list(range(16))).astype(float)
        return (drawn[..., 0] - drawn[..., 2]).mean(axis=(1, 2))

    pipeline = tiny()
    training = dpo_training(pipeline, steps=60, rank=8, learning_rate=1e-2, beta=100)
    losses = training.run("test")["loss"]
    assert losses.tail(10).mean() < 0.8 * np.log(2) and (redness(training.repaired()) > redness(pipeline)).mean() > 0.9


def test_a_killed_repair_goes_on_and_writes_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(AdapterTraining, "save_every", 2)
    whole, broken = training_of(tiny(), steps=4), training_of(tiny(), tmp_path / "unfinished.safetensors", steps=4)
    losses = whole.run("test")["loss"].tolist()
    stepped = broken.backward
    monkeypatch.setattr(broken, "backward", lambda step: stepped(step) if step < 3 else pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        broken.run("test")
    resumed = training_of(tiny(), tmp_path / "unfinished.safetensors", steps=4)
    monkeypatch.setattr(resumed, "backward", counted := Mock(side_effect=resumed.backward))
    assert resumed.run("test")["loss"].tolist() == losses
    assert [call.args for call in counted.call_args_list] == [(2,), (3,)]
    for name, training in (("whole", whole), ("resumed", resumed)):
        training.save(tmp_path / name)
    whole_file, resumed_file = (tmp_path / name / LORA for name in ("whole", "resumed"))
    assert whole_file.read_bytes() == resumed_file.read_bytes()


def test_what_the_network_is_to_predict_gives_back_picture_and_noise():
    clean, noise, times = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 990])
    wanted = {}
    for prediction in ("epsilon", "sample", "v_prediction"):
        training = training_of(tiny(prediction=prediction))
        wanted[prediction] = training.wanted(clean, noise, times)
    signal = training.noise.alphas_cumprod[times].sqrt().view(3, 1, 1, 1)
    noisy = training.noise.add_noise(clean, noise, times)
    torch.testing.assert_close(wanted["epsilon"], noise)
    torch.testing.assert_close(wanted["sample"], clean)
    rebuilt = signal * noisy - (1 - signal**2).sqrt() * wanted["v_prediction"]  # Salimans and Ho 2022, appendix D
    torch.testing.assert_close(rebuilt, clean, rtol=1e-4, atol=1e-4)


def test_with_a_whole_prior_replayed_pictures_teach_what_the_model_predicts_already():
    training = training_of(tiny(), replay=0.5, prior=1.0)
    training.batches = [[dataclasses.replace(lesson, replayed=True) for lesson in training.batches[0]]]
    assert training.backward(0) < 1e-10  # untrained, so the network predicts what its base does
    training.settings = training.settings.model_copy(update={"prior": 0.0})
    assert training.backward(0) > 0.1


def test_an_xl_pipeline_is_told_pooled_texts_and_sizes_and_reads_its_adapter_back(tmp_path):
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_pipeline(tmp_path / "xl", kind="sdxl"))
    training = trained(pipeline, learning_rate=1e-2)
    asked = training.conditions(["a red box", ""])
    assert asked["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    assert asked["encoder_hidden_states"][1].abs().max() == 0  # as SDXL is called without a prompt
    assert asked["added_cond_kwargs"]["text_embeds"].abs().amax(1).gt(0).tolist() == [True, False]
    training.save(tmp_path / "lora")
    pipeline.load_lora_weights(tmp_path / "lora")
    noisy = torch.randn(2, 4, 8, 8)
    with torch.inference_mode():
        assert torch.equal(pipeline.unet(noisy, 5, **asked).sample, training.unet(noisy, 5, **asked).sample)


def test_a_pipeline_without_a_unet_that_reads_latents_alone_is_refused():
    pipeline = SimpleNamespace(components={"transformer": torch.nn.Linear(1, 1), "scheduler": None})
    with pytest.raises(UsageError, match=r"pipelines with a UNet and an autoencoder.*SimpleNamespace has transformer"):
        check_trainable(pipeline)
    with pytest.raises(UsageError, match="reads latents alone, 4 channels; that of StableDiffusionPipeline reads 9"):
        check_trainable(tiny(channels=9))


def test_a_damaged_adapter_is_found_out(repaired, tmp_path):
    task, out, _, _ = repaired
    pipeline = tiny()
    pipeline.load_lora_weights(out)
    after = Painter(pipeline, task.painter.sampling, task.painter.compute)
    shutil.copytree(out, tmp_path / "copy")
    path = tmp_path / "copy" / LORA
    save_file({name: tensor * 0.5 for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    base = task.painter.pipeline.name_or_path
    with pytest.raises(BugError, match="its pixels differ by"):
        verify(tmp_path / "copy", base, task.painter, after, ["a red box", "a box"], [1, 2])


def test_a_repair_that_changed_nothing_is_an_error(task, tmp_path):
    with pytest.raises(UsageError, match="draws exactly as before"):
        task.repair(plan(learning_rate=1e-12, steps=1), tmp_path)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sources": {}}, "at least one source"),
        ({"sources": {"folder": 1}}, "needs `folder:`"),
        ({"beta": 9.0}, "beta: no effect with the method lora"),
        ({"prior": 0.5, "replay": 0.0}, "an effect on replayed pictures only"),
    ],
)
def test_settings_without_effect_or_sense_are_told(settings, told, tmp_path):
    with pytest.raises(UsageError, match=told):
        asked = checked(TextToImageRepair, {"method": "lora", **settings}, "restructure.settings")
        raise UsageError("\n".join(TextToImage.repair_conflicts(SimpleNamespace(inputs=tmp_path), asked)))
