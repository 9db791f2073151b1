"""Deep RL agents: each learns where the failures are, and its policy can be stored."""

from __future__ import annotations

import numpy as np
import pytest

from stages.concepts import Region
from stages.errors import NoLearningError, UsageError
from stages.explorers.policy import load_policy, save_policy
from stages.explorers.search import search
from stages.params import DiscoverConfig
from tests.test_explorers import REGION, ids, make_task

FACTORED = ("ppo", "a2c", "trpo")
FLAT = ("dqn", "qrdqn")


@pytest.mark.parametrize("name", [*FACTORED, *FLAT])
def test_an_agent_learns_where_the_failures_are(name: str, tmp_path) -> None:
    task = make_task(items=300)  # enough failing pairs that the agent does not run out of new ones
    found = search(task, ids(task), DiscoverConfig(explorer=name, budget=1740), seed=0)
    agent, control = found.metrics["agent"], found.metrics["control"]
    assert agent["gradient_updates"] > 0
    assert agent["failures"] > 1.5 * control["failures"]  # the region is 24% of the grid

    cells = task.concepts.cells()
    p = found.policy.cell_probabilities(task.embed(ids(task)), cells)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-3)
    inside = Region.from_json(REGION).contains(task.concepts, cells)
    assert inside[p.argmax(axis=1)].mean() > 0.8  # softmax(Q) is nearly flat, but its peak is in the region
    if name in FACTORED:
        assert p.mean(axis=0)[inside].sum() > 0.6

    save_policy(found.policy, tmp_path)
    again = load_policy(tmp_path)
    np.testing.assert_allclose(again.cell_probabilities(task.embed(ids(task)), cells), p, atol=1e-6)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["policy.json", "policy.safetensors"]


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_an_agent_without_an_update_is_an_error(name: str) -> None:
    with pytest.raises(NoLearningError, match="no gradient update within its budget of 20"):
        search(make_task(), ids(make_task()), DiscoverConfig(explorer=name, budget=25), seed=0)


@pytest.mark.parametrize("name", FLAT)
def test_an_agent_with_outputs_for_every_cell_refuses_a_grid_beyond_its_size(name: str) -> None:
    task = make_task()
    with pytest.raises(UsageError, match=f"explorer {name} .* 125 cells, more than settings.max_cells = 100"):
        search(task, ids(task), DiscoverConfig(explorer=name, budget=300, settings={"max_cells": 100}), seed=0)


def test_the_reward_chosen_changes_what_an_agent_does() -> None:
    task = make_task(items=100)

    def failing_cells(reward: dict) -> int:
        config = DiscoverConfig(explorer="ppo", budget=1740, settings={"reward": reward})
        return search(task, ids(task), config, seed=0).metrics["agent"]["failing_cells"]

    # The task fails in 30 cells, and elsewhere by chance: an agent searches there only if it is rewarded for it.
    assert failing_cells({"novelty": 0.0}) < failing_cells({"novelty": 0.0, "coverage": 2.0})
