"""Very many items and probes: samples, and intervals that allow for them. Limits are lowered to make tests quick."""

import re
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.explorers import kernel, surrogate
from stages.explorers.surrogate import Learner
from stages.landscape.calibrate import CalibrationProbes, choose_estimator
from stages.landscape.estimate import as_data
from stages.pages.landscape_report import _trust
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
    assert landscape.averaged == SOME and np.abs(landscape.rates - model.truth).mean() < 0.06
    covered = (landscape.table["low"] <= model.truth) & (model.truth <= landscape.table["high"])
    assert covered.mean() > 0.9
    assert landscape.table["probes"].sum() == len(probes), "probes of all items are counted"
    mean = landscape.mean_rate()  # all cells share the sample of items, so its error does not average out
    assert mean.low <= model.truth.mean() <= mean.high
    told = _trust(recorded(model, items=MANY, items_averaged=SOME), landscape.table)
    assert any(f"over a sample of {SOME} of the {MANY} items" in sentence for sentence in told)


@pytest.mark.slow
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
    assert np.corrcoef(belief.rates(model.concepts.cells(), len(model.ids)), model.truth)[0, 1] > 0.9


def recorded(model: Smooth, **changes: Any) -> Landscape:
    """A landscape over the model's concepts, with these values for what matters here."""
    return Landscape.from_json(make_inputs(*model.concepts.concepts, images=False)["summary"] | changes, "")


def test_of_many_probes_those_of_items_averaged_over_stay(few_landmarks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    estimation = import_module("stages.landscape.estimate")
    monkeypatch.setattr(estimation, "MAX_PROBES", 800)
    learnt: list[kernel.ProbeArrays] = []

    def recorded(evidence: CalibrationProbes) -> Any:
        learnt.append(evidence.data)
        return choose_estimator(evidence)

    monkeypatch.setattr(estimation, "choose_estimator", recorded)
    model = Smooth(items=MANY)
    probes = model.probes(3000, greedy=False)
    landscape = model.landscape(probes)
    some = kernel.landmarks(MANY)
    (data,) = learnt
    theirs = as_data(probes, model.ids, model.concepts, 0.0)
    assert len(data) == landscape.diagnostics["held_out_probes"] == 800
    assert landscape.table["probes"].sum() == len(probes)
    assert np.isin(data.items, some).sum() == np.isin(theirs.items, some).sum()
    assert np.abs(landscape.rates - model.truth).mean() < 0.06


def test_on_a_sampled_grid_probes_count_once_and_its_cells_are_said_to_be_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("stages.landscape.estimate"), "MAX_CELLS", 20)
    model = Smooth()
    probes = pd.concat([model.probes(400, greedy=False), model.probes(400, greedy=False)], ignore_index=True)
    landscape = model.landscape(probes)
    assert landscape.sampled and len(landscape.table) == 20 and landscape.table["probes"].sum() < 400
    assert abs(landscape.rates.mean() - model.truth.mean()) < 0.1
    told = _trust(recorded(model, sampled=landscape.sampled), landscape.table)
    assert re.search(r"% of these cells, which make up [\d.]+% of use, were probed at least once", " ".join(told))
