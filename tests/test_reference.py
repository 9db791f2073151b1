"""A reference decides which changed pictures can be read: probes that it cannot read either are not valid."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from stages.core.environment import torch_threads
from stages.core.errors import UsageError
from stages.explorers.prober import Prober
from stages.landscape.describe import invalid_probes
from stages.provenance import of_answers
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.models import load_model
from stages.tasks.classification.reference import Reference
from tests.images import CLASSES, POOLS, SIDE, draw, image_context, write_images

REFERENCE = {"timm": "test_resnet", "weights": "strong.safetensors", "channels": 1, "mean": 0, "std": 1}
DIM, BLACK = 1, 2  # levels of darkening


def strong_weights(path):
    """Weights of a network that was trained on dim pictures as well, as people save them."""
    import timm

    with torch.random.fork_rng(), torch_threads(1):
        torch.manual_seed(0)
        rng = np.random.default_rng(1)
        net = timm.create_model("test_resnet", num_classes=3, in_chans=1)
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for _ in range(60):
            targets = torch.tensor(rng.integers(0, 3, 32))
            pixels = torch.tensor(np.stack([draw(t, rng) for t in targets.tolist()]))[:, None] / 255
            pixels *= torch.tensor(1 - rng.uniform(0, 0.96, (32, 1, 1, 1)), dtype=torch.float32)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(pixels), targets).backward()
            optimizer.step()
    save_file(net.state_dict(), path)


def context(inputs, reference=REFERENCE, **changes):
    given = image_context(inputs, concepts={"darkening": [0, 0.93, 1.0], "noise": [0, 0.02]}, **changes)
    config = {**given.config, "items": {"discover": 60}, "model": {**given.config["model"], "epochs": 4}}
    return dataclasses.replace(given, config=config | ({"reference": reference} if reference else {}))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("reference")
    write_images(home / "inputs" / "images.parquet", pools={name: POOLS[name] for name in ("train", "discover")})
    strong_weights(home / "inputs" / "strong.safetensors")
    (home / "prepare").mkdir()
    metrics = ImageClassification.prepare(context(home / "inputs"), home / "prepare")
    assert "strong.safetensors" in metrics["origin"]["reference"]
    return home


@pytest.fixture(scope="module")
def task(home):
    return loaded(home)


def loaded(home):
    return ImageClassification.load(context(home / "inputs"), home / "prepare")


def without_reference(home):
    """The same model and items, judged without a reference."""
    task = loaded(home)
    task._seen = None
    return task


def at(task, level, **kwargs):
    ids = task.items.ids("discover")
    return task.probe(ids, np.tile([level, 0], (len(ids), 1)), **kwargs)


def test_what_nobody_can_read_is_invalid_and_no_failure(home, task):
    plain, judged = at(without_reference(home), BLACK), at(task, BLACK)
    assert plain.valid is None and plain.failed.mean() > 0.5
    # The reference always answers the same on black pictures: right for one class of three, but that is not reading.
    assert len(set(task.reference.answers(torch.zeros(9, 1, SIDE, SIDE)))) == 1
    assert np.array_equal(judged.valid, ~plain.failed) and not judged.failed.any()
    assert np.array_equal(judged.discrepancy[judged.valid], plain.discrepancy[judged.valid])
    assert judged.outputs == plain.outputs


def test_what_only_the_model_cannot_read_stays_a_failure(home, task):
    plain, judged = at(without_reference(home), DIM), at(task, DIM)
    assert plain.failed.mean() > 0.2  # the model has never seen dim pictures, the reference has
    assert judged.failed.sum() >= 0.95 * plain.failed.sum()
    assert np.array_equal(judged.valid, ~(plain.failed & ~judged.failed))


def test_the_reference_is_asked_about_failures_alone(home, task, monkeypatch):
    asked = []
    answers = Reference.answers
    monkeypatch.setattr(Reference, "answers", lambda self, p: asked.append(len(p)) or answers(self, p))
    readable = pd.read_parquet(home / "prepare" / "items.parquet")["readable"].to_numpy()
    at(task, DIM)
    failing = at(without_reference(home), DIM).failed
    assert sum(asked) == 2 * (failing & readable).sum() < 2 * len(readable)  # and one with another label for each


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"timm": "test_resnet", "weights": "no.safetensors"}, "prepare.reference.weights: no "),
        ({"package": "no_such", "file": "a", "timm": "b"}, "prepare.reference: package no_such is not installed"),
    ],
)
def test_a_bad_reference_is_told_before_anything_runs(home, reference, message):
    errors = ImageClassification.check(context(home / "inputs", reference))
    assert len(errors) == 1 and message in errors[0], errors


def test_a_picture_the_reference_never_could_read_stays_a_failure(home):
    """If it fails on the unchanged picture, its answer on the changed one shows nothing about the change."""
    task = loaded(home)
    task._readable, task.reference = np.zeros(len(task.items.table), dtype=bool), None  # it is not even used
    plain, judged = at(without_reference(home), BLACK), at(task, BLACK)
    assert judged.valid.all() and np.array_equal(judged.failed, plain.failed)


def test_the_book_keeps_what_was_invalid(task):
    prober = Prober(task, task.items.ids("discover"), 360)
    items, cells = np.divmod(np.arange(360), task.concepts.n_cells)
    prober.ask(items, task.concepts.cells(cells), uniform=True)
    probes = prober.table().assign(role="control")
    found = invalid_probes(task.concepts, probes)
    assert {(row.concept, row.label) for row in found.levels} >= {("darkening", "1")}
    n, invalid, failed = len(probes), int((~probes["valid"]).sum()), int(probes["failed"].sum())
    assert found.left_out.value == pytest.approx(failed / (n - invalid))
    assert found.as_failures.value == pytest.approx((failed + invalid) / n)
    assert found.as_failures.value > found.left_out.value > failed / n


def test_people_are_told(home, task):
    (note,) = task.notes()
    assert "strong.safetensors" in note and "Of 60 pictures under cells drawn uniformly the reference gets" in note
    assert "name another reference" not in note
    item = next(i for i, valid in zip(task.items.ids("discover"), at(task, BLACK).valid, strict=True) if not valid)
    assert "not held against the model" in task.exhibit([item], np.array([[BLACK, 0]]))[0].caption
    assert "not held" not in task.exhibit([item], np.array([[0, 0]]))[0].caption
    assert without_reference(home).notes() == ()
    assert "readable" not in task.attributes([item])


def test_a_reference_that_reads_changed_pictures_no_better_is_called_that(home):
    """However well it reads unchanged ones: here it is the model under test itself."""
    task = loaded(home)
    task.reference = Reference(task.model, CLASSES, CLASSES, task.context.compute)
    assert "no better than the model under test" in task.notes()[0]
    dim = at(task, DIM)
    assert not dim.failed.any() and not dim.valid.all()  # the probes that such a reference excuses


def test_the_same_reference_is_loaded_again_without_the_data(home, tmp_path):
    (tmp_path / "strong.safetensors").symlink_to(home / "inputs" / "strong.safetensors")
    form = ImageClassification.load(context(tmp_path), home / "prepare").reference.form
    assert form == loaded(home).reference.form and form.shape == (1, SIDE, SIDE)


def test_a_reference_in_another_size_colour_and_order(home, task):
    """Classes are matched by name; those that the model under test lacks are not answers."""
    form, strong, order = task.model.form, task.reference._backend.model, [2, 0, 1]

    class Wide(torch.nn.Module):
        def forward(self, pixels):
            assert pixels.shape[1:] == (3, 2 * SIDE, 2 * SIDE)
            grey = torch.nn.functional.avg_pool2d(pixels[:, :1], 2)
            return torch.cat([strong(grey)[:, order], torch.full((len(pixels), 1), 1e3)], 1)

    wide = load_model(home / "prepare" / "model")
    wide.net = Wide()
    classes = [*(CLASSES[k] for k in order), "anything else"]
    wide.form = form.model_copy(update={"classes": classes, "shape": (3, 2 * SIDE, 2 * SIDE)})
    wide.mean, wide.std = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    other = Reference(wide, form.classes, CLASSES, task.context.compute)
    rows = np.arange(30)
    both = [one.answers(task.clean(rows)) for one in (other, task.reference)]
    assert (both[1] == task.targets(rows).numpy()).mean() > 0.9 and (both[0] == both[1]).mean() > 0.9


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({**REFERENCE, "classes": ["flat", "upright", "dog"]}, r"1 label\(s\) of the items: 'slanted'.*flat, upright"),
        ({**REFERENCE, "timm": "test_efficientnet"}, r"prepare\.reference\.weights: strong\.safetensors has no"),
    ],
)
def test_a_reference_that_does_not_fit_is_told_by_prepare(home, tmp_path, reference, message):
    given = context(home / "inputs", reference)
    given.config["model"] |= {"epochs": 1}
    with pytest.raises(UsageError, match=message):
        ImageClassification.prepare(given, tmp_path)


def test_a_reference_that_only_answers_forbids_no_repair(home):
    answering = context(home / "inputs", {"endpoint": "http://localhost:1", "classes": CLASSES})
    answering.config["items"] = {"discover": 60, "repair": 9, "test": 9}
    assert ImageClassification.check_repair(answering, {"method": "last-layer"}) == []
    answering.config["model"] = answering.config["reference"]
    assert "behind HTTP" in ImageClassification.check_repair(answering, {"method": "last-layer"})[0]


def test_who_asks_a_reference_more_slowly_changes_no_answer():
    source = {"endpoint": "http://localhost:1", "classes": CLASSES}
    prepare = {"model": {"train": "small_cnn"}, "reference": source}
    assert of_answers({**prepare, "reference": {**source, "rate": 2.0}}) == of_answers(prepare) == prepare
