"""Learnt policies as proposers: their probabilities agree with their draws and choices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.concepts import Concept, ConceptSpace
from stages.explorers.env import Normaliser
from stages.explorers.policy import KINDS, Policy, load_policy
from stages.explorers.registry import EXPLORERS, explorer_class

SPACE = ConceptSpace(
    (Concept("a", (0, 1, 2)), Concept("b", ("x", "y"), ordered=False), Concept("c", (0, 1, 2, 3, 4))),
)
LEARNT = [(name, kind) for kind in KINDS for name in kind.algorithms if name != "model_based"]


def test_whatever_an_explorer_learns_can_be_read_by_a_stage_that_has_no_explorer():
    for name in EXPLORERS:
        explorer_class(name)  # imports all policies
    assert {kind for kind in Policy.__subclasses__() if kind.algorithms} == set(KINDS)


@pytest.fixture(params=LEARNT, ids=[name for name, _ in LEARNT])
def policy(request) -> Policy:
    name, kind = request.param
    torch.manual_seed(3)
    architecture = {"net_arch": [8]}
    network = kind.build(name, 4, SPACE, architecture)
    for parameter in network.parameters():  # sharp enough to prefer some cells
        torch.nn.init.normal_(parameter, std=0.8)
    return kind(name, network, Normaliser(np.zeros(4), np.ones(4)), SPACE, architecture)


@pytest.fixture
def embedding() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def test_probabilities_over_the_grid_sum_to_one_and_differ_by_item(policy, embedding):
    probabilities = policy.cell_probabilities(embedding, SPACE.cells())
    assert probabilities.shape == (6, 30)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert not np.allclose(probabilities[0], probabilities[1], rtol=0.01)


def test_what_it_proposes_are_the_likeliest_cells_in_order(policy, embedding):
    probabilities = policy.cell_probabilities(embedding, SPACE.cells())
    picks = policy.propose(embedding, 7)
    assert picks.shape == (6, 7, 3)
    flat = np.stack([SPACE.flat(rows) for rows in picks])
    expected = np.sort(probabilities, axis=1)[:, ::-1][:, :7]
    np.testing.assert_allclose(np.take_along_axis(probabilities, flat, axis=1), expected, rtol=1e-4)
    assert all(len(set(row)) == 7 for row in flat.tolist())


def test_it_proposes_no_more_cells_than_there_are(policy, embedding):
    picks = policy.propose(embedding, 1000)
    assert picks.shape == (6, 30, 3)
    assert sorted(SPACE.flat(picks[0]).tolist()) == list(range(30))


def test_what_it_draws_follows_its_probabilities(policy, embedding):
    probabilities = policy.cell_probabilities(embedding, SPACE.cells())
    drawn = policy.sample(embedding, 4000, seed=1)
    for row in range(6):
        share = np.bincount(SPACE.flat(drawn[row]), minlength=30) / 4000
        assert np.abs(share - probabilities[row]).max() < 0.04  # five standard errors at most
    assert np.array_equal(drawn, policy.sample(embedding, 4000, seed=1))
    assert not np.array_equal(drawn, policy.sample(embedding, 4000, seed=2))


def test_it_is_read_back_as_it_was(policy, embedding, tmp_path):
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert again is not None and type(again) is type(policy)
    cells = SPACE.cells()
    assert np.array_equal(again.cell_probabilities(embedding, cells), policy.cell_probabilities(embedding, cells))
