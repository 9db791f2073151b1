"""Model-based search and its rivals on planted failures: they find more, keep the books, leave a proposer behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError
from threadpoolctl import threadpool_info, threadpool_limits

from stages.concepts import Concept, ConceptSpace, Region
from stages.explorers.acquisition import ENUMERABLE, Acquisition, Weights
from stages.explorers.model_based import LocalSearch, ModelBased, Pool, _Book
from stages.explorers.policies import load_policy
from stages.explorers.prober import Prober, torch_threads
from stages.explorers.proposer import Autoregressive, Trainer
from stages.explorers.surrogate import Belief
from stages.kernel import Data
from stages.tasks.contract import Items
from tests.planted import PlantedTask

SPACE = ConceptSpace(
    (
        Concept("a", tuple(range(6))),
        Concept("kind", ("x", "y", "z"), ordered=False),
        Concept("b", tuple(range(5))),
        Concept("c", (0.0, 1.0)),
        Concept("d", tuple(range(6))),
    )
)
REGIONS = [{"a": [4, 5], "kind": [1]}, {"b": [0], "d": [4, 5]}]  # 17% of the grid
SMALL = {"random_share": 0.2, "first": 40, "batch": 30, "candidates": 600, "final_generations": 10}


def make_task(items: int = 20, regions: list | None = None, space: ConceptSpace = SPACE) -> PlantedTask:
    rows = [{"id": f"i{n}", "split": "discover", "label": "0"} for n in range(items)]
    model = {"regions": REGIONS if regions is None else regions, "noise": 0.03}
    return PlantedTask(Items(pd.DataFrame(rows)), space, model, seed=0)


def make(cls, **settings):
    known = {key: value for key, value in (SMALL | settings).items() if key in cls.Settings.model_fields}
    return cls(cls.Settings(**known))


def explore(explorer, task: PlantedTask, budget: int, seed: int = 0):
    prober = Prober(task, task.items.ids("discover"), budget)
    with torch_threads(1):
        found = explorer.explore(prober, seed)
    return prober, found


@pytest.mark.parametrize(
    ("cls", "surrogate"),
    [(ModelBased, "process"), (Pool, "process"), (LocalSearch, "boosting")],
)
def test_it_finds_more_than_chance_and_forgets_no_region(cls, surrogate: str) -> None:
    task = make_task()
    prober, found = explore(make(cls, surrogate=surrogate), task, 220)
    assert prober.spent == 220 == task.queries
    assert prober.failures > 2 * 0.2 * 220  # 20% of the grid fail, planted or by chance
    table = prober.table()
    cells = table[SPACE.names].to_numpy()
    for region in REGIONS:
        assert Region.from_json(region).contains(SPACE, cells[table["failed"]]).sum() >= 10
    assert (
        table["uniform"].sum() >= found.details["random_probes"] == 40 + 6 * 6
    )  # some are drawn that were asked before


@pytest.mark.parametrize("cls", [ModelBased, Pool, LocalSearch])
def test_the_same_seed_asks_the_same_and_a_larger_budget_begins_alike(cls) -> None:
    tables = [explore(make(cls), make_task(), budget, seed)[0].table() for budget, seed in ((90, 1), (120, 1), (90, 2))]
    longer = tables[1].head(70)  # the last batch of the shorter run was cut to what was left
    pd.testing.assert_frame_equal(tables[0].head(70), longer)
    assert not tables[0].equals(tables[2])
    pd.testing.assert_frame_equal(tables[0], explore(make(cls), make_task(), 90, 1)[0].table())


def test_the_policy_names_failures_of_items_never_seen_and_survives_the_disk(tmp_path) -> None:
    task = make_task(items=40)
    seen = Prober(task, task.items.ids("discover")[:20], 250)
    with torch_threads(1):
        policy = make(ModelBased, final_generations=40).explore(seen, 0).policy
    unseen = task.embed(task.items.ids("discover")[20:])
    cells = SPACE.cells()
    p = policy.cell_probabilities(unseen, cells)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    regions = [Region.from_json(region) for region in REGIONS]

    def inside(cells: np.ndarray) -> float:
        flat = cells.reshape(-1, len(SPACE))
        return float(np.logical_or(*[region.contains(SPACE, flat) for region in regions]).mean())

    picks = policy.propose(unseen, 5)
    assert inside(picks) > 0.95
    assert inside(policy.sample(unseen, 5, seed=0)) > 0.7
    assert all(len(np.unique(SPACE.flat(row))) == 5 for row in picks)
    top = np.sort(p, axis=1)[:, -5:].sum(axis=1)  # beam search finds the likeliest cells of so small a grid
    np.testing.assert_allclose(np.take_along_axis(p, SPACE.flat(picks), axis=1).sum(axis=1), top, rtol=1e-4)

    policy.save(tmp_path)
    again = load_policy(tmp_path)
    np.testing.assert_array_equal(again.cell_probabilities(unseen, cells), p)
    np.testing.assert_array_equal(again.sample(unseen, 3, seed=1), policy.sample(unseen, 3, seed=1))


def test_probabilities_of_some_cells_are_those_of_all() -> None:
    torch.manual_seed(0)
    network = Autoregressive(3, SPACE.sizes, hidden=8)
    torch.nn.init.normal_(network.out)
    observations, cells = torch.randn(7, 3), torch.from_numpy(SPACE.sample(7, np.random.default_rng(0)))
    both = network(observations, cells).sum(dim=1)
    for j in range(len(SPACE)):  # what comes later must not matter
        changed = cells.clone()
        changed[:, j] = (changed[:, j] + 1) % SPACE.sizes[j]
        torch.testing.assert_close(network(observations, changed)[:, :j], network(observations, cells)[:, :j])
    step = torch.stack(
        [network.conditional(j, observations @ network.item[j], cells[:, :j])[range(7), cells[:, j]] for j in range(5)]
    )
    torch.testing.assert_close(step.sum(dim=0), both)


@pytest.mark.parametrize("objective", ["ppo", "balance"])
def test_the_entropy_is_held_to_its_target(objective: str) -> None:
    space = ConceptSpace(tuple(Concept(name, tuple(range(7))) for name in "abcdef"))
    with torch_threads(1):
        trainer = Trainer(space, np.zeros((1, 1)), objective=objective)

        def score(items: np.ndarray, cells: np.ndarray) -> np.ndarray:
            return (np.abs(cells[:, :2] - 6).max(axis=1) <= 1) + 0.1 * cells[:, 2] / 6  # 8% of the grid, and a slope

        trainer.train(score, 80, target=0.6)
        items, cells = np.zeros(2000, dtype=int), trainer.draw(np.zeros(2000, dtype=int))
    assert 0.5 < trainer.entropy < 0.7
    assert (score(items, cells) >= 1).mean() > 0.8
    assert len(np.unique(space.flat(cells))) > 500  # neither one cell nor any


@pytest.mark.parametrize(
    ("items", "regions", "surrogate"),
    [(1, REGIONS, "process"), (5, [], "boosting"), (5, [{"a": list(range(6))}], "process")],
)
def test_one_item_no_failure_or_nothing_else_is_no_obstacle(items: int, regions: list, surrogate: str) -> None:
    prober, found = explore(make(ModelBased, surrogate=surrogate), make_task(items, regions), 120)
    assert prober.spent == 120
    assert found.details["gradient_updates"] > 0
    p = found.policy.cell_probabilities(prober.task.embed(prober.item_ids), SPACE.cells())
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


def test_a_grid_that_is_nearly_used_up_is_used_up() -> None:
    space = ConceptSpace((Concept("a", tuple(range(6))), Concept("b", tuple(range(5)))))
    task = make_task(3, [{"a": [5]}], space)
    for cls in (ModelBased, Pool, LocalSearch):
        prober, _ = explore(make(cls), task, 88)  # of 90 pairs
        assert prober.spent == 88


class ByItem:
    """A surrogate that expects later items to fail more, whatever the cell."""

    noise = 1.0

    def believe(self, items: np.ndarray, cells: np.ndarray) -> Belief:
        return Belief(items.astype(float), np.zeros(len(items)))

    def rates(self, cells: np.ndarray, n_items: int) -> np.ndarray:
        return np.full(len(cells), 0.5)


@pytest.mark.parametrize("concepts", ["ab", "abcdefgh"], ids=["small grid", "large grid"])
def test_a_batch_goes_round_the_cells_until_it_is_full(concepts: str) -> None:
    space = ConceptSpace(tuple(Concept(name, tuple(range(5))) for name in concepts))
    rng = np.random.default_rng(0)
    seen = Data(np.full(30, 9), space.sample(30, rng), rng.normal(size=30), np.zeros(30, bool))
    worth = Acquisition(ByItem(), seen, space, 10, Weights(0, 1, 1, 0, 0), seed=0)
    assert (worth.regions is None) == (space.n_cells <= ENUMERABLE)
    items = np.tile(np.repeat(np.arange(4), 3), 2)  # 4 items under 3 cells, and all of it twice
    which = np.tile(np.arange(3), 8)
    chosen = worth.batch(items, space.cells(np.arange(3))[which], 8)
    assert [sorted(which[chosen[k : k + 3]]) for k in (0, 3)] == [[0, 1, 2]] * 2
    assert items[chosen].tolist() == [3, 3, 3, 2, 2, 2, 1, 1]  # a cell's best first
    assert len(worth.batch(items, space.cells(np.arange(3))[which], 50)) == 12  # no pair twice
    assert len(worth.batch(items, space.cells(np.arange(3))[which], 0)) == 0


@pytest.mark.parametrize("cls", [ModelBased, Pool, LocalSearch])
def test_a_grid_of_few_cells_is_searched_and_not_drawn_at_random(cls) -> None:
    task = make_task(200, [{"a": [5]}], ConceptSpace((Concept("a", tuple(range(7))),)))
    _, found = explore(make(cls), task, 100)
    assert found.details["random_probes"] == 40 + 2 * 6  # its share of two batches of 30


def test_batches_grow_no_further_than_there_are_candidates_for() -> None:
    settings = {"first": 900, "growth": 1.0, "random_share": 0.0, "candidates": 3000, "surrogate": "boosting"}
    prober, _ = explore(make(Pool, **settings), make_task(), 1800)
    spent = [n for n, _ in prober.curve if n >= 900]
    assert spent == [900, 1700, 1800]


def test_only_the_policy_that_is_kept_needs_a_last_fit() -> None:
    fits = [explore(make(cls), make_task(), 70)[1].details["fits"] for cls in (Pool, LocalSearch, ModelBased)]
    assert fits == [1, 1, 2]  # one for the batch after the first 40 probes


def test_a_question_without_news_costs_the_books_nothing() -> None:
    task = make_task()
    book = _Book(Prober(task, task.items.ids("discover"), 10), np.random.default_rng(0))
    book.ask(np.zeros(1, int), np.zeros((1, 5), int))
    before = book.data
    book.ask(np.zeros(1, int), np.zeros((1, 5), int))
    assert book.data is before and len(before) == 1


def test_components_of_embeddings_do_not_depend_on_threads(monkeypatch) -> None:
    threads, svd = [], np.linalg.svd

    def watched(*args, **kwargs):
        threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return svd(*args, **kwargs)

    monkeypatch.setattr(np.linalg, "svd", watched)
    task = make_task()
    monkeypatch.setattr(task, "embed", lambda ids: np.random.default_rng(0).normal(size=(len(ids), 40)))
    with threadpool_limits(2):
        explore(make(Pool, surrogate="boosting"), task, 45)
    assert set(threads) == {1}


@pytest.mark.parametrize("budget", [1, 25])
def test_a_budget_below_the_first_batch_is_random_and_still_trains(budget: int) -> None:
    prober, found = explore(make(ModelBased, surrogate="boosting"), make_task(), budget)
    assert prober.spent == budget == found.details["random_probes"]
    assert found.details["gradient_updates"] > 0


@pytest.mark.parametrize(
    ("settings", "named"), [({"goal": "fame"}, "goal"), ({"entropy": 1.5}, "entropy"), ({"batches": 3}, "batches")]
)
def test_bad_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        ModelBased.Settings(**settings)
