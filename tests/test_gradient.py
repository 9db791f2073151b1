"""The smallest noise along the gradient is found where it is known, and refused if there is no gradient."""

import numpy as np
import pandas as pd
import pytest
import torch

from stages.check import check_audits
from stages.core.errors import UsageError
from stages.landscape.robustness import summarize_robustness
from stages.microscopic.search import UNCHANGED, measure_robustness
from stages.params import DiscoverConfig, MicroscopicConfig, Params
from stages.records import search
from stages.tasks.classification import ImageClassification, gradient
from stages.tasks.classification.models import Classifier
from tests.images import SIDE, image_context, write_images
from tests.workspace import audit_params

SPACING = 0.01
EPSILONS = [round(SPACING * k, 6) for k in range(1, 31)]  # up to 0.3


class Linear(torch.nn.Module):
    """The first two classes are separated by a plane; the third never occurs."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.plane = torch.nn.Parameter(torch.randn(SIDE * SIDE, generator=draw) / SIDE)

    def forward(self, pixels):
        side = (pixels.flatten(1) - 0.5) @ self.plane
        return torch.stack([side, -side, torch.full_like(side, -1e3)], 1)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A linear classifier on pictures far from black and white, so that nothing is clipped."""
    home = tmp_path_factory.mktemp("linear")
    write_images(home / "images.parquet", pools={"train": 60, "discover": 45})
    config = {"model": {"train": "small_cnn", "epochs": 1}, "data": {"parquet": "images.parquet"}}
    context = image_context(home, config={**config, "items": {"discover": 45}})
    (home / "prepare").mkdir()
    ImageClassification.prepare(context, home / "prepare")
    task = ImageClassification.load(context, home / "prepare")
    task.model = Classifier(task.model.form.model_copy(update={"mean": 0.0, "std": 1.0}), Linear()).eval()
    draw = torch.Generator().manual_seed(4)
    shift = torch.linspace(-30, 30, 45)[:, None] * task.model.net.plane.sign()[None]  # towards either class
    pixels = 128 + torch.randint(-8, 9, (45, SIDE * SIDE), generator=draw) + shift
    task._pixels = pixels.detach().reshape(45, 1, SIDE, SIDE).to(torch.uint8)
    task._targets = (torch.arange(45) % 2).long()
    return task


def truth(task):
    """The smallest sufficient noise: the right class's margin over the sum of the plane's weights; 0 if it fails."""
    net = task.model.net
    with torch.no_grad():
        side = (task.clean(np.arange(45)).flatten(1) - 0.5) @ net.plane
        return (torch.where(task._targets == 0, side, -side) / net.plane.abs().sum()).clamp_min(0).numpy()


def explored(task, **settings):
    given = {"items": 45, "budget": 200, "gradient": {"epsilons": EPSILONS}, **settings}
    config = DiscoverConfig(budget=10, microscopic=MicroscopicConfig.model_validate(given))
    return measure_robustness(task, task.items.ids("discover"), config, seed=0)


def test_the_least_noise_of_a_linear_model_is_found(task):
    found, least = explored(task).table, truth(task)
    rows = task.rows(found["item"].tolist())
    assert ((least[rows] == 0) == (found["status"] == UNCHANGED)).all()
    passing = least[rows] > 0
    for attack in ("fgsm", "pgd"):
        noise = found[f"epsilon_{attack}"].astype(float)
        assert 10 < passing.sum() < 35 and (noise[~passing] == 0).all()
        beyond = noise[passing] - least[rows][passing]
        assert (beyond > -1e-5).all() and (beyond <= SPACING + 1e-5).all()
    table = explored(task, gradient={"epsilons": [1e-5, 2e-5], "attacks": ["fgsm"]}).table
    assert table["epsilon_fgsm"].isna().sum() == passing.sum(), "too little noise is told as such"
    assert [name for name in table if name.startswith("epsilon")] == ["epsilon_fgsm"]
    pd.testing.assert_frame_equal(found, explored(task).table)


def test_it_is_summed_up_beside_the_steps(task):
    found = explored(task, gradient={"epsilons": [0.01, 0.03, 0.05]})
    walks = search.Walks.computed(found.metrics)
    summary = summarize_robustness(found.table, task.concepts, walks)
    assert [attack.attack for attack in summary.gradient] == ["fgsm", "pgd"]
    first, least = summary.gradient[0], np.sort(truth(task))
    for at in first.within:
        assert at.value == pytest.approx((least <= at.epsilon).mean(), abs=1 / 45) and at.low < at.value <= at.high
    assert first.not_found == found.table["epsilon_fgsm"].isna().sum()
    assert first.low <= first.median <= (first.high or 1)
    without = summarize_robustness(found.table, task.concepts, walks.model_copy(update={"gradient": None}))
    assert without.gradient == [] and "gradient" not in without.to_json()


def refused(**changes):
    discover = {"explorer": "random", "baseline": "random", "budget": 60, "microscopic": {"gradient": {}}}
    params = Params.model_validate({"audits": {"tiny": audit_params(discover=discover, **changes)}, "repairs": {}})
    with pytest.raises(UsageError) as raised:
        check_audits(params, ["tiny"])
    return [line for line in str(raised.value).splitlines() if "gradient" in line]


def test_a_task_or_a_model_without_gradients_is_told_before_anything_runs(task, monkeypatch):
    assert "this task provides no gradients" in refused(task="tabular-classification")[0]
    pictures = {"task": "image-classification", "concepts": {"rotation": [0, 30]}, "discrepancy": {}}
    prepare = {"data": {"parquet": "x.parquet"}, "items": {"discover": 9}}
    network = {**prepare, "model": {"onnx": "net.onnx", "outputs": "logits"}}
    assert "prepare.model.onnx) provides no gradients" in refused(**pictures, prepare=network)[0]
    monkeypatch.setattr(gradient, "find_spec", lambda name: None)
    trained = {**prepare, "model": {"train": "small_cnn"}}
    assert "pip install 'faded[gradient]'" in refused(**pictures, prepare=trained)[0]
    with pytest.raises(UsageError, match=r"Foolbox or the eagerpy it needs is not installed.*faded\[gradient\]"):
        task.attacked(task.items.ids("discover"), "fgsm", 0.1, 1)
