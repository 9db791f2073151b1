"""Model-based search and its rivals on planted failures: finds, budgets, and the proposer they leave behind."""

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace, Region
from stages.explorers.model_based import CandidatePool, LocalSearch, ModelBased
from stages.explorers.prober import Prober, torch_threads
from stages.tasks.contract import Items
from tests.planted import PlantedTask

A, B, D = (Concept(name, tuple(range(n))) for name, n in (("a", 6), ("b", 5), ("d", 6)))
SPACE = ConceptSpace((A, Concept("kind", ("x", "y", "z"), ordered=False), B, Concept("c", (0.0, 1.0)), D))
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


SURROGATES = [(ModelBased, "process"), (CandidatePool, "process"), (LocalSearch, "boosting")]


@pytest.mark.parametrize(("cls", "surrogate"), SURROGATES)
def test_it_finds_more_than_chance_and_forgets_no_region(cls, surrogate: str) -> None:
    task = make_task()
    prober, found = explore(make(cls, surrogate=surrogate), task, 220)
    assert prober.spent == 220 == task.queries
    assert prober.failures > 2 * 0.2 * 220  # 20% of the grid fail, planted or by chance
    table = prober.table()
    cells = table[SPACE.names].to_numpy()
    for region in REGIONS:
        assert Region.from_json(region).contains(SPACE, cells[table["failed"]]).sum() >= 10
    assert table["uniform"].sum() >= found.details["random_probes"] == 40 + 6 * 6  # some draws repeat earlier probes


@pytest.mark.parametrize("cls", [ModelBased, CandidatePool, LocalSearch])
def test_the_same_seed_asks_the_same_and_a_larger_budget_begins_alike(cls) -> None:
    tables = [explore(make(cls), make_task(), budget, seed)[0].table() for budget, seed in ((80, 1), (100, 1), (50, 2))]
    longer = tables[1].head(70)  # the last batch of the shorter run was cut to the budget
    assert [len(table.drop_duplicates(["item", *SPACE.names])) for table in tables] == [80, 100, 50]
    pd.testing.assert_frame_equal(tables[0].head(70), longer)
    assert not tables[0].head(50).equals(tables[2])


def test_the_policy_names_failures_of_items_never_seen() -> None:
    task = make_task(items=40)
    seen = Prober(task, task.items.ids("discover")[:20], 250)
    with torch_threads(1):
        policy = make(ModelBased, final_generations=40).explore(seen, 0).policy
    unseen = task.embed(task.items.ids("discover")[20:])
    regions = [Region.from_json(region) for region in REGIONS]

    def inside(cells: np.ndarray) -> float:
        flat = cells.reshape(-1, len(SPACE))
        return float(np.logical_or(*[region.contains(SPACE, flat) for region in regions]).mean())

    assert inside(policy.propose(unseen, 5)) > 0.95 and inside(policy.sample(unseen, 5, seed=0)) > 0.7


@pytest.mark.parametrize("surrogate", ["process", "boosting"])
def test_one_item_and_hardly_a_failure_is_no_obstacle(surrogate: str) -> None:
    prober, found = explore(make(ModelBased, surrogate=surrogate), make_task(1, []), 70)
    assert prober.spent == 70
    assert found.details["gradient_updates"] > 0
    p = found.policy.cell_probabilities(prober.task.embed(prober.item_ids), SPACE.cells())
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


def test_a_budget_below_the_first_batch_is_random_and_still_trains() -> None:
    prober, found = explore(make(ModelBased, surrogate="boosting"), make_task(), 1)
    assert prober.spent == 1 == found.details["random_probes"] and found.details["gradient_updates"] > 0


@pytest.mark.parametrize("goal", ["places", "landscape"])
def test_a_goal_gets_what_it_asks_for(goal: str) -> None:
    _, found = explore(ModelBased(ModelBased.Settings(goal=goal, final_generations=2)), make_task(), 250)
    drawn = {"places": 100 + 5 + 4 + 4, "landscape": 100 + 75}
    assert found.details["random_probes"] == drawn[goal]
    named = found.details["generators"]
    assert list(named) == ["policy", "archive", "mutations", "uniform"]
    assert sum(one["probes"] for one in named.values()) == 250 - drawn[goal]
