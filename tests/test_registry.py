"""Explorers by name: documented, buildable, and `auto` says what it takes and why."""

from __future__ import annotations

import re

import pytest

from stages.explorers.auto import FEW, Auto, AutoSettings, choose
from stages.explorers.contract import Found
from stages.explorers.model_based import LocalSearch, ModelBased
from stages.explorers.prober import Prober
from stages.explorers.registry import EXPLORERS, explorer_class, make_explorer
from stages.explorers.surrogate import PROCESS_CELLS
from tests.test_explorers import ids, make_task
from tests.workspace import ROOT

DOCS = (ROOT / "docs" / "explorers.md").read_text()


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_explorer_and_every_setting_is_in_the_docs(name):
    assert f"`{name}`" in DOCS.split("## Model-based search")[0]
    table = [line.split("|") for line in DOCS.split("## Settings")[1].splitlines() if line.startswith("| `")]
    documented = {s for row in table if f"`{name}`" in row[1] for s in re.findall(r"`(\w+)` \(", row[2])}
    if name == "thompson":
        documented -= {"optimism"}  # of ucb, which shares the row
    assert documented == set(explorer_class(name).Settings.model_fields)


def test_auto_draws_at_random_what_is_too_little_to_learn_from():
    task = make_task()
    prober = Prober(task, ids(task), FEW - 1)
    found = make_explorer("auto", {}).explore(prober, seed=0)
    assert found.details["chosen"] == "random"
    assert "too few" in found.details["why"]
    assert prober.spent == FEW - 1 and prober.table()["uniform"].all()


@pytest.mark.parametrize(
    ("n_cells", "budget", "explorer"),
    [
        (100, FEW - 1, "random"),
        (7**8, FEW - 1, "random"),
        (100, FEW, "local_search"),
        (PROCESS_CELLS, 100_000, "local_search"),
        (PROCESS_CELLS + 1, FEW, "model_based"),
    ],
)
def test_auto_takes_what_the_study_shows_for_grid_and_budget(n_cells, budget, explorer):
    assert choose(n_cells, budget).explorer == explorer
    assert explorer in EXPLORERS


@pytest.mark.parametrize(("budget", "cls"), [(FEW, "LocalSearch"), (10**9, "ModelBased")])
def test_auto_hands_its_goal_on(monkeypatch, budget, cls):
    """Of the whole search it may be told, of which the prober has a share."""
    monkeypatch.setattr("stages.explorers.auto.PROCESS_CELLS", 10**6 if cls == "LocalSearch" else 1)
    asked = []

    def explore(self, prober, seed):
        asked.append((type(self).__name__, self.settings.goal))
        return Found(None, {})

    for one in (LocalSearch, ModelBased):
        monkeypatch.setattr(one, "explore", explore)
    task = make_task()
    Auto(AutoSettings(goal="failures"), budget=budget).explore(Prober(task, ids(task), FEW - 1), seed=0)
    assert asked == [(cls, "failures")]
