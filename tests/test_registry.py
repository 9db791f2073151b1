"""Explorers by name: documented, buildable, and `auto` reports its choice and the reason."""

from __future__ import annotations

import re

import pytest

from stages.concepts import Concept, ConceptSpace
from stages.explorers.contract import Found
from stages.explorers.model_based import FEW, Auto, AutoSettings, ModelBased, choose_explorer
from stages.explorers.prober import Prober
from stages.explorers.registry import EXPLORERS, explorer_class, make_explorer
from tests.test_explorers import ids, make_task
from tests.workspace import ROOT

DOCS = (ROOT / "docs" / "explorers.md").read_text()


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_explorer_and_every_setting_is_in_the_docs(name):
    assert f"`{name}`" in DOCS.split("## Model-based search")[0]
    table = [line.split("|") for line in DOCS.split("## Settings")[1].splitlines() if line.startswith("| `")]
    documented = {s for row in table if f"`{name}`" in row[1] for s in re.findall(r"`(\w+)` \(", row[2])}
    if name == "thompson":
        documented -= {"optimism"}  # a setting of ucb, in the same row
    assert documented == set(explorer_class(name).Settings.model_fields)


def test_auto_draws_at_random_what_is_too_little_to_learn_from():
    task = make_task()
    prober = Prober(task, ids(task), FEW - 1)
    found = make_explorer("auto", {}).explore(prober, seed=0)
    assert found.details["chosen"] == "random"
    assert "too few" in found.details["why"]
    assert prober.spent == FEW - 1 and prober.table()["uniform"].all()


@pytest.mark.parametrize(("budget", "explorer"), [(FEW - 1, "random"), (FEW, "model_based"), (10**6, "model_based")])
def test_auto_learns_where_there_is_enough_to_learn_from(budget, explorer):
    assert choose_explorer(budget).explorer == explorer
    assert explorer in EXPLORERS


@pytest.mark.parametrize("concepts", [2, 8], ids=["small grid", "large grid"])
def test_auto_takes_one_explorer_for_every_grid_and_hands_its_goal_on(monkeypatch, concepts):
    """It goes by the budget of the whole search, of which the prober may have a share."""
    asked = []

    def explore(self, prober, seed):
        asked.append((self.name, self.settings.goal, prober.space.n_cells))
        return Found(None, {})

    monkeypatch.setattr(ModelBased, "explore", explore)
    task = make_task()
    task.concepts = ConceptSpace(tuple(Concept(name, tuple(range(7))) for name in "abcdefgh"[:concepts]))
    Auto(AutoSettings(goal="failures"), budget=FEW).explore(Prober(task, ids(task), FEW - 1), seed=0)
    assert asked == [("model_based", "failures", 7**concepts)]
