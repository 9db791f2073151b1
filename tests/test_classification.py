"""The image classification task fulfils the contract, and refuses what it cannot work with."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.concepts import Region
from stages.core.environment import ALIKE
from stages.core.errors import UsageError
from stages.params import load_params
from stages.tasks.classification import ImageClassification, repair
from stages.tasks.classification.families import FAMILIES, Form
from stages.tasks.classification.models import Classifier, load_model, save_model
from stages.tasks.classification.repair import FineTuning
from stages.tasks.contract import RepairPlan, TargetMode
from stages.tasks.training import PairSampler, rate
from tests.images import CLASSES, image_context, stripes, write_images
from tests.workspace import ROOT

TARGET = TargetMode("M1", Region({"rotation": (2,), "darkening": (1, 2)}))


@pytest.fixture(scope="module")
def home():
    return stripes()


@pytest.fixture(scope="module")
def task(home):
    return ImageClassification.load(image_context(home / "inputs"), home / "prepare")


def probes(task, n=40, split="discover", seed=0):
    rng = np.random.default_rng(seed)
    return rng.choice(task.items.ids(split), n).tolist(), task.concepts.sample(n, rng)


def test_prepare_learns_and_counts(home):
    assert ImageClassification.check(image_context(home / "inputs")) == []
    metrics = json.loads((home / "metrics.json").read_text())
    assert metrics["items"] == {"discover": 60, "repair": 150, "test": 150}
    assert min(metrics["clean_accuracy"].values()) > 0.9 and metrics["skipped"] == 0


def test_prepare_gives_the_same_bytes(home, tmp_path):
    ImageClassification.prepare(image_context(home / "inputs"), tmp_path)
    for name in ("items.parquet", "model/faded.json", "model/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (home / "prepare" / name).read_bytes()


def test_probe_by_its_definition(task):
    items, cells = probes(task)
    batch = task.probe(items, cells)
    with torch.inference_mode():
        logits = task.model(task.inputs(items, cells)).numpy()
    for i, item in enumerate(items):
        true = CLASSES.index(task.items.table.set_index("id").loc[item, "label"])
        margin = np.delete(logits[i], true).max() - logits[i, true]
        assert batch.discrepancy[i] == pytest.approx(np.tanh(margin / 5), abs=1e-5) and batch.failed[i] == (margin > 0)
        assert batch.outputs[i].startswith(CLASSES[logits[i].argmax()] + " (")
    assert batch.discrepancy.dtype == np.float32 and 0 < batch.failed.mean() < 1


def test_answers_do_not_depend_on_the_batch(task):
    items, cells = probes(task, 40)
    together = task.probe(items, cells)
    alone = [task.probe([item], cell[None]).discrepancy[0] for item, cell in zip(items, cells, strict=True)]
    assert np.allclose(alone, together.discrepancy, atol=1e-5)


def test_pictures_are_shown_with_known_answers_without_the_model(task):
    ids = task.items.ids("discover")[:3]
    cells = task.concepts.sample(3, np.random.default_rng(1))
    shown, known = task.exhibit(ids, cells), task.probe(ids, cells)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "logits", lambda *_: pytest.fail("the model was asked"))
        assert task.recalled(ids, cells, known) == shown


def test_the_neutral_cell_is_the_clean_item(task):
    ids = task.items.ids("test")
    quality = task.clean_quality("test")
    neutral = np.tile(task.concepts.neutral, (len(ids), 1))
    assert quality.item_ids == ids and np.array_equal(quality.values, 1.0 - task.probe(ids, neutral).failed)


def fix(task, out, **settings):
    control = settings.pop("control", None)
    scratch = settings.pop("scratch", None)
    settings = {"method": "all-layers", "epochs": 3, "batch_size": 30, "as_used": 0.2, "replay": 0.3, **settings}
    return task.repair(RepairPlan([TARGET], settings, seed=1, control=control, scratch=scratch), out)


def target_failures(home, model):
    task = ImageClassification.load(image_context(home / "inputs"), home / "prepare", model)
    rng = np.random.default_rng(5)
    cells = TARGET.region.sample(task.concepts, 400, rng)
    items = rng.choice(task.items.ids("test"), 400).tolist()
    return task.probe(items, cells).failed.mean(), task.clean_quality("test").values.mean()


@pytest.fixture(scope="module")
def repaired(task, tmp_path_factory):
    ids, cells = probes(task)
    out, before = tmp_path_factory.mktemp("repaired"), task.logits(ids, cells)
    return fix(task, out), out, before


def test_repair_helps_items_it_never_saw(home, repaired):
    record, out, _ = repaired
    (before, clean_before), (after, clean_after) = target_failures(home, None), target_failures(home, out)
    assert before > 0.2 and after < before - 0.1 and clean_after > clean_before - 0.05
    assert len(record.curve) == record.steps == 3 * 10


def test_repair_leaves_the_model_under_test(task, repaired):
    assert torch.equal(task.logits(*probes(task)), repaired[2])


def test_a_repaired_model_goes_part_of_the_way(home, task, repaired, tmp_path):
    _, learnt, before = repaired
    answers = {}
    for share in (0.0, 0.5, 1.0):
        task.move(learnt, share, out := tmp_path / str(share))
        assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in learnt.iterdir())
        answers[share] = ImageClassification.load(task.context, home / "prepare", out).logits(*probes(task))
    assert torch.equal(answers[0.0], before)
    after = ImageClassification.load(task.context, home / "prepare", learnt)
    assert torch.equal(answers[1.0], after.logits(*probes(task)))
    halves = [float((answers[0.5] - answers[end]).norm()) for end in (0.0, 1.0)]
    assert 0 < max(halves) < float((answers[1.0] - answers[0.0]).norm())


def test_control_has_as_many_steps_and_other_cells(task, repaired, tmp_path):
    record, control = repaired[0], fix(task, tmp_path, control="as_used")
    assert record.steps == control.steps and control.details["failures_before"] < record.details["failures_before"]
    assert "control" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("method", "labelled"), [("all-layers", 15), ("self-distilled", 0), ("last-layer", 30)])
def test_changed_images_learn_their_labels_and_clean_ones_the_answers_of_before(
    home, task, tmp_path, monkeypatch, method, labelled
):
    seen = set()
    entropy = repair.functional.cross_entropy
    monkeypatch.setattr(repair.functional, "cross_entropy", lambda *a, **b: (seen.add(len(a[0])), entropy(*a, **b))[1])
    fix(task, tmp_path, epochs=1, batch_size=30, replay=0.5, method=method, candidates=1)
    assert seen | {0} == {labelled, 0}
    before, after = (load_file(p / "model.safetensors") for p in (home / "prepare" / "model", tmp_path))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert (moved == {"9.weight", "9.bias"}) == (method == "last-layer")


def test_with_own_answers_images_that_were_right_keep_their_answers(home, task, repaired, tmp_path):
    _, out, before = repaired
    own = fix(task, tmp_path, own_answers=True)
    # At first the copy is the teacher, so what is right costs nothing.
    assert 0 < own.curve["loss"][0] < repaired[0].curve["loss"][0]
    ids, cells = probes(task)
    right = before.argmax(1) == task.targets(task.rows(ids))

    def moved(model):
        after = ImageClassification.load(task.context, home / "prepare", model).logits(ids, cells)
        return float((after.softmax(1) - before.softmax(1)).abs()[right].mean())

    assert moved(tmp_path) < moved(out)


def test_the_learning_rate_warms_up_and_decays_to_nothing():
    rates = [rate(step, 100, 2.0) for step in range(100)]
    assert rates[0] == 0.2 and max(rates) == rates[10] == 2.0
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(1.0) and rates[-1] < 0.01


def test_cells_are_drawn_by_severity_and_risk(task):
    rng = np.random.default_rng(0)
    often = TargetMode("M1", Region({"rotation": (0,)}), severity=3.0)
    seldom = TargetMode("M2", Region({"rotation": (2,)}))
    items = pd.DataFrame({"label": [str(k % 4) for k in range(40)]})
    rows, cells = PairSampler(task.concepts, [often, seldom], items).draw(2000, rng)
    assert (cells[:, 0] == 0).mean() == pytest.approx(0.75, abs=0.05)
    assert np.ptp(np.bincount(rows)) <= 2, "every item as often as any other"
    risk = lambda asked: 1.0 + 9.0 * (asked[:, 1] == 0)  # noqa: E731
    _, weighted = PairSampler(task.concepts, [often], items, risk).draw(2000, rng)
    assert (weighted[:, 1] == 0).mean() > 2 * (cells[:, 1] == 0).mean()


def test_a_killed_repair_resumes_to_the_same_bytes(task, repaired, tmp_path, monkeypatch):
    whole, out, _ = repaired
    epoch = FineTuning._epoch

    def killed(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return epoch(self, number)

    monkeypatch.setattr(FineTuning, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        fix(task, tmp_path / "cut", scratch=tmp_path / "scratch")
    ran = []
    monkeypatch.setattr(FineTuning, "_epoch", lambda self, number: (ran.append(number), epoch(self, number))[1])
    resumed = fix(task, tmp_path / "resumed", scratch=tmp_path / "scratch")
    assert ran == [2] and resumed.curve.equals(whole.curve)
    name = "model.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (out / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "all-layers", "epoch": 3}, "did you mean 'epochs'?"),
        ({"method": "all-layers", "as_used": 0.5, "replay": 0.5}, "found 0.5 + 0.5, expected less than 1"),
        ({"method": "all-layers", "reinitialise": True}, "with method last-layer only"),
        ({"method": "last-layer", "own_answers": True}, "with method all-layers only"),
    ],
)
def test_bad_repair_settings(task, tmp_path, settings, message):
    assert message in ImageClassification.check_repair(task.context, settings)[0]
    with pytest.raises(UsageError, match=r"restructure\.settings"):
        task.repair(RepairPlan([TARGET], settings, seed=1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def check(inputs, **config):
    context = image_context(inputs)
    return ImageClassification.check(dataclasses.replace(context, config={**context.config, **config}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model": {"trian": "small_cnn"}}, "prepare.model: expected exactly one of the keys train, package, timm, "),
        ({"data": {"parquet": "/tmp/images.parquet"}}, "put the file or a link to it there"),
        ({"data": {"package": "torch", "files": "*.jpg"}}, "*.jpg matches no file in the package torch"),
        ({"model": {"package": "torch", "file": "no.pth", "timm": "resnet18"}}, "package torch has no file no.pth"),
    ],
)
def test_bad_prepare(home, config, message):
    errors = check(home / "inputs", **config)
    assert len(errors) == 1 and message in errors[0]


def test_all_errors_are_told_at_once(home):
    config = {"model": {}, "data": {"parquet": "x"}, "items": {"discover": 5}}
    wrong = {"config": config, "concepts": {"rotation": [0, 999]}, "discrepancy": {"threshold": 2}}
    context = image_context(home / "inputs", **wrong)
    wheres = [error.split(":")[0] for error in ImageClassification.check(context)]
    assert wheres == ["discrepancy.threshold", "prepare.model", "prepare.data.parquet", "concepts.rotation"]


def prepare(inputs, out, **changes):
    context = image_context(inputs)
    config = {**context.config, "model": {"train": "small_cnn", "epochs": 1}, **changes}
    return ImageClassification.prepare(dataclasses.replace(context, config=config), out)


def test_few_corrupt_images_are_skipped_and_listed(tmp_path):
    write_images(tmp_path / "images.parquet", corrupt=3)
    assert prepare(tmp_path, tmp_path, items={"discover": 30})["skipped"] == 3
    listed = pd.read_parquet(tmp_path / "items.parquet").attrs["skipped"]
    assert [s["file"] for s in listed] == [f"images.parquet: test-{i}" for i in (147, 148, 149)]
    assert ImageClassification.load(image_context(tmp_path), tmp_path).items.table.attrs["skipped"] == listed


def test_weights_of_an_earlier_training_replace_it(tmp_path):
    write_images(tmp_path / "images.parquet")
    prepare(tmp_path, tmp_path)
    trained = (tmp_path / "model" / "model.safetensors").rename(tmp_path / "trained.safetensors")
    prepare(tmp_path, tmp_path, model={"train": "small_cnn", "epochs": 1, "weights": trained.name})
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == trained.read_bytes()
    save_file({"head.weight": torch.zeros(3, 2)}, trained)
    with pytest.raises(UsageError, match=r"prepare\.model\.weights: the weights do not fit: missing "):
        prepare(tmp_path, tmp_path, model={"train": "small_cnn", "weights": trained.name})


@pytest.mark.slow
@pytest.mark.skipif(not ALIKE, reason="this CPU trains other weights: it has no AVX2, or is no x86-64")
def test_shipped_weights_are_what_their_training_gives(tmp_path):
    audit, inputs = load_params(ROOT / "params.yaml").audit("mnist"), ROOT / "data/mnist/inputs"
    config = {**audit.prepare, "model": {**audit.prepare["model"], "weights": None}}
    context = image_context(inputs, audit="mnist", seed=audit.seed, config=config, concepts=audit.concepts)
    ImageClassification.prepare(context, tmp_path)
    assert (tmp_path / "model/model.safetensors").read_bytes() == (inputs / "mnist.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        ({"corrupt": 100}, {}, r"100 of 960 pictures cannot be read, .* allows 5%: .*255 bytes, expected 256"),
        ({"classes": ["flat", "upright"]}, {}, r"labels \['slanted'\] outside its 2 classes"),
        ({}, {"items": {"discover": 60, "test": 999}}, r"prepare\.items\.test: 999 items wanted, the data have 150"),
    ],
)
def test_data_that_cannot_be_used(tmp_path, made, changes, message):
    write_images(tmp_path / "images.parquet", **made)
    with pytest.raises(UsageError, match=message):
        prepare(tmp_path, tmp_path, **changes)


def test_weights_that_are_missing_broken_or_do_not_fit_are_refused(tmp_path):
    form = Form(family="small_cnn", architecture="small_cnn", classes=["a", "b", "c"], shape=(1, 16, 16), origin="")
    model = Classifier(form, FAMILIES["small_cnn"](form))
    save_model(model, tmp_path)
    state = dict(model.net.state_dict())
    state["9.weight"] = torch.zeros(7, 64)
    state["extra"] = state.pop("0.bias")
    weights = tmp_path / "model.safetensors"
    save_file(state, weights)
    with pytest.raises(UsageError, match=r"missing 0\.bias; unexpected extra; 9\.weight has shape \(7, 64\), expected"):
        load_model(tmp_path)
    weights.write_bytes(b"junk")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(UsageError, match="the model has no weights"):
        load_model(tmp_path)
