"""Explorers by name: documented, buildable, and `auto` says what it takes and why."""

from __future__ import annotations

import re

import pytest

from stages.explorers import EXPLORERS, Prober, make_explorer
from stages.explorers.auto import FEW, choose
from stages.explorers.registry import explorer_class
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


@pytest.mark.parametrize("n_cells", [100, 2401, 7**8])
@pytest.mark.parametrize("budget", [1, FEW, 1000, 100_000])
def test_what_auto_takes_exists_and_it_says_why(n_cells, budget):
    choice = choose(n_cells, budget)
    assert choice.explorer in EXPLORERS and choice.explorer != "auto"
    assert len(choice.why.split()) > 3


def test_auto_hands_its_goal_on():
    task = make_task()
    shares = {}
    for goal in ("landscape", "failures"):
        prober = Prober(task, ids(task), 600)
        found = make_explorer("auto", {"goal": goal}).explore(prober, seed=0)
        shares[goal] = prober.table()["uniform"].mean()
        assert found.details["chosen"] == choose(task.concepts.n_cells, 600).explorer
    assert shares["landscape"] > shares["failures"]
