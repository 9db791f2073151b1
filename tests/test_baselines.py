"""Explorers without a network: how each differs from random draws, and that all fulfil the contract."""

from __future__ import annotations

import sys

import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.explorers.prober import Prober
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


@pytest.mark.parametrize(("name", "library"), [("bayesian", "optuna"), ("map_elites", "ribs")])
def test_a_missing_library_is_named_with_what_to_install(name: str, library: str, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=r"pip install 'faded\[explorers\]'"):
        explore(name, make_task(), 10)
