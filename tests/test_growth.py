"""Very many items and probes: samples, and intervals that allow for them. Limits are lowered to make tests quick."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.explorers import kernel, surrogate
from stages.explorers.surrogate import Learner
from stages.landscape.estimate import as_data
from stages.records import Landscape
from tests.report_samples import make_inputs
from tests.test_landscape import Smooth

MANY, SOME = 600, 60


@pytest.fixture
def few_landmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "LANDMARKS", SOME)


def test_a_landscape_of_many_items_is_averaged_over_some_and_near_the_truth(few_landmarks: None) -> None:
    model = Smooth(items=MANY)
    probes = model.probes(1500, greedy=False)
    landscape = model.landscape(probes)
    assert landscape.averaged == SOME
    assert np.abs(landscape.rates - model.truth).mean() < 0.06
    covered = (landscape.table["low"] <= model.truth) & (model.truth <= landscape.table["high"])
    assert covered.mean() > 0.9
    assert landscape.table["probes"].sum() == len(probes), "probes of all items are counted"


def test_a_surrogate_learns_from_a_sample_of_a_long_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogate, "LEARNT", 300)
    fitted: list[int] = []

    def recorded(features: kernel.Features, data: kernel.ProbeArrays, noise: float) -> kernel.Posterior:
        fitted.append(len(data))
        return kernel.fit_regression(features, data, noise)

    monkeypatch.setattr(surrogate, "fit_regression", recorded)
    model = Smooth()
    data = as_data(model.probes(1000, greedy=False), model.ids, model.concepts, 0.0)
    belief = Learner(model.concepts, model.embeddings, "process").fit(data, seed=1)
    assert fitted[-1] == 300
    rates = belief.rates(model.concepts.cells(), len(model.ids))
    assert np.corrcoef(rates, model.truth)[0, 1] > 0.9


def recorded(model: Smooth, **changes: Any) -> Landscape:
    """A landscape over the model's concepts, with these values for what matters here."""
    return Landscape.from_json(make_inputs(*model.concepts.concepts, images=False)["summary"] | changes, "")
