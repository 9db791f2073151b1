"""Model-based search and its rivals on planted failures: finds, budgets, and the proposer they leave behind."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace, Region
from stages.explorers.acquisition import Acquisition, Weights
from stages.explorers.candidates import Archive, EvenDraws, Mutations, Pairs, Portfolio
from stages.explorers.kernel import ProbeArrays
from stages.explorers.model_based import CandidatePool, LocalSearch, ModelBased
from stages.explorers.prober import Prober, torch_threads
from stages.explorers.proposer import Trainer
from stages.explorers.surrogate import Belief
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
    [(ModelBased, "process"), (CandidatePool, "process"), (LocalSearch, "boosting")],
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
    assert table["uniform"].sum() >= found.details["random_probes"] == 40 + 6 * 6  # some draws repeat earlier probes


@pytest.mark.parametrize("cls", [ModelBased, LocalSearch])
def test_the_same_seed_asks_the_same_and_a_larger_budget_begins_alike(cls) -> None:
    tables = [explore(make(cls), make_task(), budget, seed)[0].table() for budget, seed in ((90, 1), (120, 1), (60, 2))]
    longer = tables[1].head(70)  # the last batch of the shorter run was cut to the budget
    pd.testing.assert_frame_equal(tables[0].head(70), longer)
    assert not tables[0].head(60).equals(tables[2])


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

    assert inside(policy.propose(unseen, 5)) > 0.95
    assert inside(policy.sample(unseen, 5, seed=0)) > 0.7


def test_the_entropy_is_held_to_its_target() -> None:
    space = ConceptSpace(tuple(Concept(name, tuple(range(7))) for name in "abcdef"))
    with torch_threads(1):
        trainer = Trainer(space, np.zeros((1, 1)), objective="balance")

        def score(items: np.ndarray, cells: np.ndarray) -> np.ndarray:
            return (np.abs(cells[:, :2] - 6).max(axis=1) <= 1) + 0.1 * cells[:, 2] / 6  # 8% of the grid, and a slope

        trainer.train(score, 80, target=0.6)
        items, cells = np.zeros(2000, dtype=int), trainer.draw(np.zeros(2000, dtype=int))
    assert 0.5 < trainer.entropy < 0.7
    assert (score(items, cells) >= 1).mean() > 0.8
    assert len(np.unique(space.flat(cells))) > 500  # neither one cell nor any


@pytest.mark.parametrize("surrogate", ["process", "boosting"])
def test_one_item_and_hardly_a_failure_is_no_obstacle(surrogate: str) -> None:
    prober, found = explore(make(ModelBased, surrogate=surrogate), make_task(1, []), 70)
    assert prober.spent == 70
    assert found.details["gradient_updates"] > 0
    p = found.policy.cell_probabilities(prober.task.embed(prober.item_ids), SPACE.cells())
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)


class ByItem:
    """A surrogate that expects later items to fail more, in any cell."""

    noise = 1.0

    def believe(self, items: np.ndarray, cells: np.ndarray) -> Belief:
        return Belief(items.astype(float), np.zeros(len(items)))

    def rates(self, cells: np.ndarray, n_items: int) -> np.ndarray:
        return np.full(len(cells), 0.5)


def test_a_budget_below_the_first_batch_is_random_and_still_trains() -> None:
    prober, found = explore(make(ModelBased, surrogate="boosting"), make_task(), 1)
    assert prober.spent == 1 == found.details["random_probes"]
    assert found.details["gradient_updates"] > 0


# --- generators compete


class Names:
    """A generator that proposes cells of one level of concept a, where either all fail or none does."""

    def __init__(self, level: int) -> None:
        self.level, self.named = level, []

    def propose(self, worth: Acquisition, size: int) -> Pairs:
        self.named.append(size)
        cells = SPACE.sample(size, np.random.default_rng(len(self.named)))
        cells[:, 0] = self.level
        return Pairs(np.zeros(size, int), cells)


def compete(portfolio: Portfolio, rounds: int, earns) -> None:
    """Probe twenty candidates of each of two generators; `earns` (round, by) -> (failed, reward)."""
    for n in range(rounds):
        by = portfolio.propose(worth=None).by
        chosen = np.concatenate([np.flatnonzero(by == k)[:20] for k in (0, 1)])
        portfolio.credit(by[chosen], *earns(n, by[chosen]))


@pytest.mark.parametrize(
    "earns",
    [
        lambda n, by: (by == 1, np.ones(len(by))),
        lambda n, by: (np.ones(len(by), bool), np.where(by == 1, 1.0, 0.05)),  # failures in new places
    ],
)
def test_credit_moves_to_the_generator_whose_candidates_are_worth_more(earns) -> None:
    poor, good = Names(5), Names(5)
    portfolio = Portfolio({"poor": poor, "good": good}, 1200, np.random.default_rng(0))
    compete(portfolio, 15, earns)
    assert good.named[0] == poor.named[0] == 600
    assert sum(good.named[5:]) > 3 * sum(poor.named[5:])
    told = portfolio.told()
    assert told["good"]["failures"] == told["good"]["probes"] > 0


@pytest.mark.parametrize("kind", [Mutations, Archive])
def test_candidates_lie_near_known_failures(kind) -> None:
    rng = np.random.default_rng(0)
    cells = np.repeat(np.array([[5, 1, 0, 0, 0], [0, 2, 4, 1, 5]]), [30, 1], axis=0)
    seen = ProbeArrays(np.arange(31), cells, np.ones(31), np.ones(31, bool))
    worth = Acquisition(ByItem(), seen, SPACE, 40, Weights(0, 1, 1, 0, 0), seed=0)
    pairs = kind(EvenDraws(SPACE, 40, rng)).propose(worth, 600)
    assert len(pairs.items) == len(pairs.cells) == 600
    often, rare = [(pairs.cells == cell).mean(axis=1) >= 0.8 for cell in (cells[0], cells[-1])]
    assert (often | rare).mean() > 0.75
    if kind is Archive:  # the offspring of a niche do not depend on its failures
        assert 0.5 < often.sum() / rare.sum() < 2
    nothing = Acquisition(ByItem(), seen.take(np.zeros(0, int)), SPACE, 40, Weights(0, 1, 1, 0, 0), seed=0)
    assert len(kind(EvenDraws(SPACE, 40, rng)).propose(nothing, 7).items) == 7


@pytest.mark.parametrize("goal", ["places", "landscape"])
def test_a_goal_gets_what_it_asks_for(goal: str) -> None:
    _, found = explore(ModelBased(ModelBased.Settings(goal=goal, final_generations=2)), make_task(), 250)
    drawn = {"places": 100 + 5 + 4 + 4, "landscape": 100 + 75}
    assert found.details["random_probes"] == drawn[goal]
    named = found.details["generators"]
    assert list(named) == ["policy", "archive", "mutations", "uniform"]
    assert sum(one["probes"] for one in named.values()) == 250 - drawn[goal]
