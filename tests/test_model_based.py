"""Model-based search and its rivals on planted failures: they find more, keep the books, leave a proposer behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from stages.concepts import Concept, ConceptSpace, Region
from stages.explorers import Prober, load_policy
from stages.explorers.model_based import LocalSearch, ModelBased, Pool
from stages.explorers.prober import torch_threads
from stages.explorers.proposer import Autoregressive, Trainer
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
    [(ModelBased, "process"), (ModelBased, "boosting"), (Pool, "process"), (LocalSearch, "boosting")],
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
