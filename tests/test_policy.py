"""Learnt policies as proposers: their probabilities agree with their draws and choices, and they survive the disk."""

import numpy as np
import pytest
import torch

from stages.concepts import Concept, ConceptSpace
from stages.core.errors import UsageError
from stages.explorers.contract import EXPLORERS, explorer_class
from stages.explorers.env import Normaliser
from stages.explorers.policy import KINDS, Mixture, Policy, load_policy, save_policy

SPACE = ConceptSpace((Concept("a", (0, 1, 2)), Concept("b", ("x", "y"), ordered=False), Concept("c", tuple(range(5)))))
KIND_OF = {name: kind for kind in KINDS for name in kind.algorithms}


def make_policy(name: str, seed: int = 3) -> Policy:
    """An untrained policy, sharp enough to prefer some cells."""
    torch.manual_seed(seed)
    architecture = {"hidden": 8} if name == "model_based" else {"net_arch": [8]}
    network = KIND_OF[name].build(name, 4, SPACE, architecture)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.8)
    scale = Normaliser(np.full(4, seed - 3.0), np.full(4, seed - 2.0))
    return KIND_OF[name](name, network, scale, SPACE, architecture)


@pytest.fixture(params=[*KIND_OF, "mixture"])
def policy(request) -> Policy:
    if request.param != "mixture":
        return make_policy(request.param)
    return Mixture([make_policy(name, seed) for seed, name in enumerate(("ppo", "ppo", "dqn"), start=3)])


@pytest.fixture
def embedding() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def test_whatever_an_explorer_learns_can_be_read_by_a_stage_that_has_no_explorer():
    for name in EXPLORERS:
        explorer_class(name)  # imports all policies
    assert {kind for kind in Policy.__subclasses__() if kind.algorithms} == set(KINDS)


def test_what_it_proposes_and_draws_follows_its_probabilities(policy, embedding, tmp_path):
    probabilities = policy.cell_probabilities(embedding, SPACE.cells())
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert not np.allclose(probabilities[0], probabilities[1], rtol=0.01), "it differs by item"
    if isinstance(policy, Mixture):
        each = [member.cell_probabilities(embedding, SPACE.cells()) for member in policy.members]
        np.testing.assert_allclose(probabilities, np.mean(each, axis=0), rtol=1e-5)
    picks = np.stack([SPACE.flat(rows) for rows in policy.propose(embedding, 2 if isinstance(policy, Mixture) else 7)])
    likeliest = np.sort(probabilities, axis=1)[:, ::-1][:, : picks.shape[1]]
    np.testing.assert_allclose(np.take_along_axis(probabilities, picks, axis=1), likeliest, rtol=1e-4)
    assert all(len(set(row)) == len(row) for row in picks.tolist())
    every = policy.propose(embedding, 1000)
    assert sorted(SPACE.flat(every[0]).tolist()) == list(range(30)), "no more cells than there are"
    drawn = policy.sample(embedding, 4000, seed=1)
    for row in range(6):
        share = np.bincount(SPACE.flat(drawn[row]), minlength=30) / 4000
        assert np.abs(share - probabilities[row]).max() < 0.04  # five standard errors at most
    assert np.array_equal(drawn, policy.sample(embedding, 4000, seed=1))
    assert not np.array_equal(drawn, policy.sample(embedding, 4000, seed=2))
    policy.save(tmp_path)
    again = load_policy(tmp_path)
    assert type(again) is type(policy)
    np.testing.assert_array_equal(again.cell_probabilities(embedding, SPACE.cells()), probabilities)
    assert not list(tmp_path.glob("**/*.p*kl*")), "never as a pickle"


def test_no_policy_is_written_as_none(tmp_path):
    save_policy(None, tmp_path)
    assert load_policy(tmp_path) is None
    with pytest.raises(UsageError, match="no readable policy"):
        load_policy(tmp_path / "elsewhere")
