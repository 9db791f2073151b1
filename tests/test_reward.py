"""Rewards: each component pays what it should, and none counts as a failure."""

import numpy as np
import pytest

from stages.concepts import Concept, ConceptSpace
from stages.explorers.env import Reward, RewardConfig
from stages.explorers.prober import Answers

SPACE = ConceptSpace((Concept("a", (0, 1, 2, 3, 4)), Concept("b", ("x", "y", "z"), ordered=False)))
NOTHING = {"novelty": 0.0, "region": 0.0, "coverage": 0.0}


def pay(reward: Reward, items: list[int], cells: list[list[int]], discrepancy: list[float]) -> list[float]:
    """Rewards for answers with these discrepancies; nan for a probe beyond the budget."""
    d = np.array(discrepancy, dtype=np.float32)
    answered = ~np.isnan(d)
    answers = Answers(d, d > reward.threshold, answered, answered)
    return reward(np.array(items), np.array(cells), answers).tolist()


def make(threshold: float = 0.0, **config) -> Reward:
    return Reward(SPACE, threshold, RewardConfig(**{**NOTHING, **config}))


def test_the_margin_is_over_the_threshold_and_bounded() -> None:
    assert pay(make(0.2), [0, 1, 2], [[0, 0]] * 3, [0.5, 0.1, 7.0]) == pytest.approx([0.3, -0.1, 1.0])


def test_a_probe_asked_before_earns_no_more_than_the_clearest_new_pass() -> None:
    reward = make(novelty=0.5)
    assert pay(reward, [0, 0], [[0, 0]] * 2, [0.3, 0.3]) == pytest.approx([0.8, -1.0])
    assert pay(reward, [0, 1, 2], [[0, 0]] * 3, [0.3, -1.0, -0.9]) == pytest.approx([-1.0, -1.0, -0.9])


def test_novelty_diminishes_with_the_failures_of_its_cell() -> None:
    margins = [0.1, -0.1, 0.1, 0.1, 0.1]
    bonus = np.subtract(pay(make(novelty=0.5), [*range(5)], [*[[0, 0]] * 4, [1, 0]], margins), margins)
    np.testing.assert_allclose(bonus, [0.5, 0.0, 0.5 / np.sqrt(2), 0.5 / np.sqrt(3), 0.5], atol=1e-6)
