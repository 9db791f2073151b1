"""A reference decides which changed pictures can be read: probes that it cannot read either are not valid."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from stages.core.environment import torch_threads
from stages.core.errors import UsageError
from stages.tasks.classification import ImageClassification
from stages.tasks.classification.reference import Reference
from tests.images import POOLS, SIDE, draw, image_context, write_images

REFERENCE = {"timm": "test_resnet", "weights": "strong.safetensors", "channels": 1, "mean": 0, "std": 1}
DIM, BLACK = 1, 2  # levels of darkening


def strong_weights(path, classes=3):
    """Weights of a network that was trained on dim pictures as well, as people save them."""
    import timm

    with torch.random.fork_rng(), torch_threads(1):
        torch.manual_seed(0)
        rng = np.random.default_rng(1)
        net = timm.create_model("test_resnet", num_classes=classes, in_chans=1)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(150):
            targets = torch.tensor(rng.integers(0, 3, 48))
            pixels = torch.tensor(np.stack([draw(t, rng) for t in targets.tolist()]))[:, None] / 255
            pixels *= torch.tensor(1 - rng.uniform(0, 0.96, (48, 1, 1, 1)), dtype=torch.float32)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(pixels), targets).backward()
            optimizer.step()
    save_file(net.state_dict(), path)


def context(inputs, reference=REFERENCE, **changes):
    given = image_context(inputs, concepts={"darkening": [0, 0.93, 1.0], "noise": [0, 0.02]}, **changes)
    config = {**given.config, "items": {"discover": 60}}
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
    return ImageClassification.load(context(home / "inputs"), home / "prepare")


def without_reference(home):
    """The same model and items, judged without a reference."""
    task = ImageClassification.load(context(home / "inputs"), home / "prepare")
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
    assert np.array_equal(judged.valid, ~plain.failed)
    assert not judged.failed.any()
    assert np.array_equal(judged.discrepancy[judged.valid], plain.discrepancy[judged.valid])
    assert judged.outputs == plain.outputs


def test_a_picture_is_told_from_one_of_another_label(home, task):
    ids = task.items.ids("discover")
    others = task._of_other_labels(ids)
    label = task.items.table.set_index("id")["label"]
    assert (label[ids].to_numpy() != label[others].to_numpy()).all() and set(others) <= set(ids)
    assert task._of_other_labels(ids[5:]) == others[5:]
    alone = ImageClassification.load(context(home / "inputs"), home / "prepare")
    alone._readable = (label == label[ids[0]]).to_numpy()
    with pytest.raises(UsageError, match="expected two labels"):
        alone._of_other_labels(ids[:1])


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
        ({"train": "small_cnn"}, "prepare.reference: expected exactly one of the keys package, timm, "),
        ({"timm": "test_resnet", "weights": "no.safetensors"}, "prepare.reference.weights: no "),
        ({"package": "no_such", "file": "a", "timm": "b"}, "prepare.reference: package no_such is not installed"),
        ("test_resnet", "prepare.reference"),
    ],
)
def test_a_bad_reference_is_told_before_anything_runs(home, reference, message):
    errors = ImageClassification.check(context(home / "inputs", reference))
    assert len(errors) == 1 and message in errors[0], errors
