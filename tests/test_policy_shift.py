"""Moves of the policy: measured on its draws, relative to the noise between items, and only for equal grids."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

import faded as door
from stages.concepts import Concept, ConceptSpace
from stages.explorers.search import SearchResult
from stages.landscape.shift import policy_shift
from stages.re_evaluate import DRAWN, draw_cells
from stages.records import audit_folder
from tests.finished import inside, quick_audit, run_stages
from tests.workspace import make_workspace, repair_params

TILT = Concept("tilt", (0, 10, 30, 60), "°")
SKY = Concept("sky", ("sun", "rain", "fog"), ordered=False)
SPACE = ConceptSpace((TILT, SKY))
ITEMS, EACH = [f"test-{k}" for k in range(40)], 50


def drawn(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """The draws of both policies: (items, draws, concepts) each."""
    tables = [
        pd.DataFrame(cells.reshape(-1, 2), columns=SPACE.names).assign(model=model, item=np.repeat(ITEMS, EACH))
        for model, cells in (("before", before), ("after", after))
    ]
    return pd.concat(tables, ignore_index=True)


def draws(tilt: list[float], sky: list[float], seed: int) -> np.ndarray:
    rng, shape = np.random.default_rng(seed), (len(ITEMS), EACH)
    return np.stack([rng.choice(len(p), shape, p=p) for p in (tilt, sky)], axis=2)


def test_each_concept_has_its_own_distance():
    before, after = draws([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.5], 1), draws([0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.5], 2)
    tilt, sky = policy_shift(SPACE, drawn(before, after), seed=0)
    levels = [np.arange(4) / 3, np.arange(4) / 3]
    assert tilt.distance == pytest.approx(wasserstein_distance(*levels, tilt.before, tilt.after))
    assert sky.distance == pytest.approx(0.5 * np.abs(np.subtract(sky.before, sky.after)).sum())
    assert tilt.beyond_noise and not sky.beyond_noise
    assert tilt.mean_before == pytest.approx(np.mean([0, 10, 30, 60] @ np.array(tilt.before)))
    assert tilt.mean_before > 30 and tilt.mean_after < 20 and sky.mean_before is sky.mean_after is None
    assert sum(tilt.before) == pytest.approx(1.0) and [len(tilt.after), len(sky.after)] == [4, 3]


def test_a_policy_is_at_no_distance_from_itself():
    cells = draws([0.25] * 4, [0.3, 0.3, 0.4], 1)
    assert [(moved.distance, moved.beyond_noise) for moved in policy_shift(SPACE, drawn(cells, cells), 0)] == [
        (0.0, False)
    ] * 2


def test_where_items_differ_a_small_move_is_noise():
    """The policy draws one end for half of the items, the other end for the rest: halves of items differ by chance."""
    cells = np.zeros((len(ITEMS), EACH, 2), dtype=np.int64)
    cells[::2, :, 0] = 3
    after = cells.copy()
    after[:2, :, 0] = 3
    moved = policy_shift(SPACE, drawn(cells, after), seed=0)[0]
    assert moved.distance == pytest.approx(1 / 40) and moved.noise_floor.max > 0.1 and not moved.beyond_noise


def test_nothing_is_said_without_policies_and_of_one_item_no_noise():
    assert policy_shift(SPACE, pd.DataFrame(columns=["model", "item", *SPACE.names]), seed=0) == []
    one = drawn(draws([0.25] * 4, [1, 0, 0], 1), draws([1, 0, 0, 0], [1, 0, 0], 1))
    moved = policy_shift(SPACE, one[one["item"] == "test-0"], seed=0)[0]
    assert moved.noise_floor.max is None and moved.beyond_noise is None and moved.distance > 0


class Drawer:
    """A policy that draws the level given by an item's embedding."""

    def __init__(self, algorithm: str) -> None:
        self.algorithm = algorithm

    def sample(self, embedding: np.ndarray, k: int, seed: int) -> np.ndarray:
        return np.repeat(embedding[:, None, :].astype(np.int64), k, axis=1)


def searched(*policies: Any) -> pd.DataFrame:
    models = ("before", "after")
    items = SimpleNamespace(ids=lambda split: ITEMS)
    tasks: dict[str, Any] = {
        model: SimpleNamespace(
            concepts=SPACE, items=items, embed=lambda ids, level=level: np.full((len(ids), 2), level, dtype=float)
        )
        for level, model in enumerate(models)
    }
    results = {
        model: SearchResult(pd.DataFrame(), policy, {}, {}, False)
        for model, policy in zip(models, policies, strict=True)
    }
    return draw_cells(tasks, results, seed=0)


def test_each_policy_draws_for_the_embeddings_of_its_own_model():
    found = searched(Drawer("ppo"), Drawer("ppo"))
    assert list(found.columns) == ["model", "item", "tilt", "sky"] and len(found) == 2 * DRAWN
    assert found.groupby("model")["tilt"].unique().map(list).to_dict() == {"before": [0], "after": [1]}
    assert set(found.groupby(["model", "item"]).size()) == {DRAWN // len(ITEMS)}


@pytest.mark.parametrize("policies", [(None, None), (Drawer("ppo"), None), (Drawer("ppo"), Drawer("dqn"))])
def test_policies_that_cannot_be_compared_draw_nothing(policies):
    found = searched(*policies)
    assert found.empty and list(found.columns) == ["model", "item", "tilt", "sky"]


@pytest.mark.slow
def test_the_report_and_the_result_have_it(tmp_path):
    learns = {"explorer": "ppo", "baseline": "random", "budget": 150, "microscopic": {"method": "none"}}
    workspace = make_workspace(tmp_path / "ws", {"tiny": quick_audit(discover=learns)}, {"tiny": repair_params()})
    run_stages(workspace, "tiny")
    with inside(workspace):
        here = audit_folder("tiny")
        moved = here.compare.comparison.policy
        assert moved is not None and [one.concept for one in moved] == ["tilt", "fog"]
        assert "Where the search has learnt to look" in here.conclude.page
        table = door.load("tiny").policy_shift
    assert sorted(table["concept"]) == ["fog", "tilt"] and table["distance"].is_monotonic_decreasing
    assert list(table.columns) == ["concept", "mean_before", "mean_after", "distance", "floor", "beyond_noise"]
