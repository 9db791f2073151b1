"""Explorers without a network: how each differs from random draws, and that all fulfil the contract."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.explorers.ask_tell import AskTell, NextProbes, embedding_order
from stages.explorers.bandits import MAX_EFFECTS, LinearModel
from stages.explorers.contract import NoSettings
from stages.explorers.prober import Prober
from stages.explorers.quality_diversity import niches
from stages.explorers.registry import make_explorer
from stages.tasks.contract import Items
from tests.planted import PlantedTask
from tests.test_explorers import ids, make_task

DESIGNS = ("sobol", "latin_hypercube")
LEARNERS = ("epsilon_greedy", "thompson", "ucb", "bayesian", "map_elites")
ALL = (*DESIGNS, *LEARNERS, "threshold_search")


def explore(name: str, task: PlantedTask, budget: int, seed: int = 0, **settings) -> pd.DataFrame:
    """The probes of an explorer."""
    prober = Prober(task, ids(task), budget)
    make_explorer(name, settings).explore(prober, seed)
    return prober.table()


def uneven_task(items: int = 3, **model) -> PlantedTask:
    space = ConceptSpace(
        (Concept("kind", ("x", "y", "z"), ordered=False), Concept("force", tuple(range(6))), Concept("on", (0, 1)))
    )
    rows = [{"id": f"i{n}", "split": "discover", "label": "0"} for n in range(items)]
    return PlantedTask(Items(pd.DataFrame(rows)), space, {"regions": [], "noise": 0.0, **model}, seed=0)


@pytest.mark.parametrize("name", ALL)
def test_a_long_search_begins_with_the_short_one_of_its_seed(name: str) -> None:
    task = make_task()
    long = explore(name, task, 190, seed=5)
    assert len(long) == 190
    pd.testing.assert_frame_equal(explore(name, task, 155, seed=5), long.head(155))
    assert not explore(name, task, 155, seed=6).equals(long.head(155))


@pytest.mark.parametrize("name", [name for name in LEARNERS if name != "epsilon_greedy"])  # see below
def test_what_learns_finds_more_than_chance_does(name: str) -> None:
    task = make_task(items=100)
    assert explore(name, task, 400)["failed"].mean() > 1.6 * 0.26  # 24% of the grid fail, and 3% of the rest


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("items", "regions"), [(3, []), (3, [{}]), (1, [{"force": [4, 5]}])])
def test_a_grid_may_be_uneven_and_is_exhausted_to_the_last_pair(name: str, items: int, regions: list) -> None:
    task = uneven_task(items, regions=regions)  # 36 cells
    found = explore(name, task, 36 * items)
    assert len(found) == 36 * items == len(found.drop_duplicates(["item", *task.concepts.names]))


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_takes_every_level_about_equally_often(name: str) -> None:
    task = make_task(levels=4, concepts="abc", items=64)
    found = explore(name, task, 250)
    counts = np.stack([np.bincount(found[column], minlength=4) for column in "abc"])
    assert counts.min() > 50 and counts.max() < 75  # 62.5 on average; at random they spread twice as far


@pytest.mark.parametrize(
    ("name", "settings", "first"),
    [
        ("sobol", {}, 90),
        ("latin_hypercube", {}, 90),
        ("epsilon_greedy", {"epsilon": 1.0}, 90),
        ("epsilon_greedy", {"epsilon": 0.0, "batch": 16}, 16),  # no arm has been opened yet
        ("bayesian", {"startup": 30, "batch": 10}, 30),
        ("bayesian", {"startup": 30, "batch": 20}, 40),  # the startup ends between two batches
        ("map_elites", {"startup": 30, "batch": 10}, 30),
        ("thompson", {}, 0),
        ("threshold_search", {}, 0),
    ],
)
def test_uniform_draws_are_marked_and_no_others(name: str, settings: dict, first: int) -> None:
    task = make_task(concepts="abcdefg", items=1000)  # large enough that no pair is drawn twice
    assert explore(name, task, 90, **settings)["uniform"].tolist() == [True] * first + [False] * (90 - first)


def test_what_fills_the_budget_of_a_strategy_that_repeats_itself_is_marked() -> None:
    class Same:
        def propose(self) -> NextProbes:
            return NextProbes(np.zeros(1, int), np.zeros((1, 7), int))

        def learn(self, *_answers) -> None: ...

    class Stuck(AskTell[NoSettings]):
        name, Settings = "stuck", NoSettings

        def start(self, _prober, _rng) -> Same:
            return Same()

    task = make_task(concepts="abcdefg", items=1000)
    prober = Prober(task, ids(task), 40)
    assert Stuck().explore(prober, 0).details == {"filled_at_random": 39}
    assert prober.table()["uniform"].tolist() == [False] + [True] * 39


@pytest.mark.parametrize(
    "decompose",
    [
        lambda task: embedding_order(Prober(task, ids(task), 10)),
        lambda task: explore("pool", task, 120, surrogate="boosting"),
    ],
)
def test_components_of_embeddings_do_not_depend_on_threads(monkeypatch, decompose) -> None:
    threads, svd = [], np.linalg.svd

    def watched(*args, **kwargs):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return svd(*args, **kwargs)

    monkeypatch.setattr(np.linalg, "svd", watched)
    task = make_task()
    monkeypatch.setattr(task, "embed", lambda ids: np.random.default_rng(0).normal(size=(len(ids), 40)))
    with threadpool_limits(2):
        decompose(task)
    assert set(threads) == {1}


def test_epsilon_greedy_stays_with_the_cells_that_fail() -> None:
    task = make_task(items=100, noise=0.0)
    mostly_greedy, uniform = (explore("epsilon_greedy", task, 600, epsilon=e) for e in (0.1, 1.0))
    assert mostly_greedy["failed"].mean() > 1.5 * uniform["failed"].mean()
    assert len(mostly_greedy.drop_duplicates(["a", "b", "c"])) < 0.8 * len(uniform.drop_duplicates(["a", "b", "c"]))


def test_threshold_search_leaves_an_item_after_so_many_passes() -> None:
    task = make_task(concepts="abcdefg", noise=0.0)  # large enough that no cell is drawn twice
    found = explore("threshold_search", task, 300, lanes=1, patience=3)
    visit = (found["item"] != found["item"].shift()).cumsum()
    passes = (~found["failed"]).groupby(visit).sum()
    # The budget cut the last visit short, and an item may be drawn twice in a row.
    assert passes.iloc[:-1].mod(3).eq(0).all() and passes.iloc[:-1].min() == 3


def test_the_linear_model_learns_effects_and_how_sure_it_is() -> None:
    rng = np.random.default_rng(0)
    model = LinearModel(5, [3, 4], pairs=True, noise=0.1, prior=1.0)
    assert model.n_effects == 1 + 5 + 3 + 4 + 12
    items, cells = rng.integers(5, size=2000), np.column_stack([rng.integers(3, size=2000), rng.integers(4, size=2000)])
    seen = cells[:, 0] < 2  # the last level of the first concept is never tried
    items, cells = items[seen], cells[seen]

    def truth(items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        return 0.1 * items - 0.3 * cells[:, 0] + 0.5 * (cells[:, 0] * cells[:, 1] == 3)

    for half in (slice(0, 600), slice(600, None)):
        noisy = truth(items[half], cells[half]) + rng.normal(0, 0.1, len(items[half]))
        model.update(items[half], cells[half], noisy)
    mean, draws = model.draw(400, rng)
    grid = np.array([[0, 0], [1, 3], [2, 0]])
    design = model.design(np.full(3, 2), grid)
    np.testing.assert_allclose((design @ mean)[:2], truth(np.full(2, 2), grid[:2]), atol=0.05)
    spread = (design @ draws.T).std(axis=1)
    assert spread[:2].max() < 0.05 and spread[2] > 0.3
    np.testing.assert_allclose((design @ draws.T).mean(axis=1)[:2], (design @ mean)[:2], atol=0.02)


def test_bandits_refuse_more_effects_than_they_can_hold() -> None:
    with pytest.raises(UsageError, match=r"here 5,003, more than 5,000: take model_based, pairs: false, or fewer"):
        LinearModel(MAX_EFFECTS, [2], pairs=False, noise=0.1, prior=1.0)


def test_the_upper_bound_is_above_the_mean_for_one_probe_at_a_time_too() -> None:
    bold, sober = (explore("ucb", make_task(), 40, batch=1, optimism=o) for o in (3.0, 0.0))
    assert not bold.equals(sober)


def test_bandits_tell_pairs_apart_on_the_largest_grids() -> None:
    space = ConceptSpace(tuple(Concept(f"c{j}", (0, 1)) for j in range(62)))  # 4 * 2^62 is 0 in int64
    rows = [{"id": f"i{n}", "split": "discover", "label": "0"} for n in range(5)]
    task = PlantedTask(Items(pd.DataFrame(rows)), space, {"regions": [], "noise": 0.0}, seed=0)
    bandit = make_explorer("thompson", {"pairs": False}).start(Prober(task, ids(task), 100), np.random.default_rng(0))
    bandit.learn(np.zeros(1, int), np.zeros((1, 62), int), np.ones(1), np.ones(1, bool))
    items, cells = bandit._candidates()  # half of them are the known failure with one change
    assert set(items[(cells == 0).all(axis=1)].tolist()) == {1, 2, 3, 4}


def test_niches_are_cells_until_they_are_too_many() -> None:
    assert niches([7, 7, 7, 7], 10_000) == [7, 7, 7, 7]
    assert niches([7] * 8, 10_000) == [4, 3, 3, 3, 3, 3, 3, 3]
    assert niches([2] * 5 + [6], 16) == [2, 2, 2, 2, 1, 1]


@pytest.mark.parametrize(("name", "library"), [("bayesian", "optuna"), ("map_elites", "ribs")])
def test_a_missing_library_is_named_with_what_to_install(name: str, library: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'faded\[explorers\]'"):
        explore(name, make_task(), 10)
