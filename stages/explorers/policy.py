"""The policies that agents learn: they propose cells for items, even for new ones, without a query.

They are stored as safetensors and JSON, never as a pickle (as SB3's own `save` does).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import save_file
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor
from torch.distributions import Categorical

from stages.concepts import ConceptSpace
from stages.explorers.env import OBSERVATION_BOUND, Normaliser

MIXTURE = "mixture"
CHUNK = 256  # items whose probabilities over all cells are in memory at once


class Policy(ABC):
    """A learnt distribution over cells, given the embedding of an item.

    Args:
        algorithm: name of the explorer that learnt it.
        network: the network with its weights.
        normaliser: converts embeddings to observations.
        space: the concept space it acts on.
        architecture: arguments with which `load_policy` builds the network again.
    """

    algorithms: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        algorithm: str,
        network: torch.nn.Module,
        normaliser: Normaliser,
        space: ConceptSpace,
        architecture: Mapping[str, Any],
    ) -> None:
        self.algorithm, self.network, self.normaliser, self.space = algorithm, network, normaliser, space
        self.architecture = dict(architecture)
        self.network.eval()

    @classmethod
    @abstractmethod
    def build(cls, algorithm: str, features: int, space: ConceptSpace, architecture: Mapping[str, Any]) -> Any:
        """Build an untrained network for embeddings with this number of features."""

    @abstractmethod
    def _log_probabilities(self, observations: Tensor, cells: Tensor) -> Tensor:
        """Return log probabilities of m cells (m, concepts) for n observations (n, d): (n, m)."""

    @abstractmethod
    def _draw(self, observations: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Draw k cells for each of n observations (n, d): (n, k, concepts)."""

    @abstractmethod
    def _best(self, observations: Tensor, k: int) -> Tensor:
        """Find the k likeliest cells for each of n observations (n, d), likeliest first: (n, k, concepts)."""

    def cell_probabilities(self, embedding: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return how likely the policy is to choose each cell.

        For a value-based agent these are softmax(Q) as in the paper (Sec. 3).

        Args:
            embedding: (n, d) embeddings of items.
            cells: (m, concepts) level indices.

        Returns:
            (n, m) float32 probabilities; rows sum to 1 if `cells` is the whole grid.
        """
        index = torch.from_numpy(np.asarray(cells, dtype=np.int64))
        rows = self._in_parts(embedding, lambda part: self._log_probabilities(part, index.to(part.device)))
        return np.exp(rows).astype(np.float32)

    def sample(self, embedding: np.ndarray, k: int, seed: int) -> np.ndarray:
        """Draw k cells for each item, with replacement: embeddings (n, d) -> (n, k, concepts) level indices."""
        generator = torch.Generator().manual_seed(seed)
        return self._in_parts(embedding, lambda part: self._draw(part, k, generator))

    def propose(self, embedding: np.ndarray, k: int) -> np.ndarray:
        """Return the k likeliest distinct cells for each item: embeddings (n, d) -> (n, k, concepts).

        If the grid has fewer than k cells, all of them are returned.
        """
        k = min(k, self.space.n_cells)
        return self._in_parts(embedding, lambda part: self._best(part, k))

    def _observations(self, embedding: np.ndarray) -> np.ndarray:
        return self.normaliser(embedding)

    def _in_parts(self, embedding: np.ndarray, ask: Any) -> np.ndarray:
        device = next(self.network.parameters()).device
        observations = torch.from_numpy(self._observations(embedding)).to(device)
        with torch.no_grad():
            return torch.cat([ask(part) for part in observations.split(CHUNK)]).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write policy.json and policy.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {k: v.detach().cpu().contiguous() for k, v in self.network.state_dict().items()}
        save_file(state, folder / "policy.safetensors")
        description = {
            "schema": 1,
            "algorithm": self.algorithm,
            "architecture": self.architecture,
            "concepts": self.space.to_json(),
            "mean": self.normaliser.mean.tolist(),
            "std": self.normaliser.std.tolist(),
        }
        (folder / "policy.json").write_text(json.dumps(description, indent=1) + "\n")


def _observation_space(features: int) -> spaces.Box:
    return spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (features,), np.float32)


def _no_schedule(_: float) -> float:
    return 0.0  # only training needs a learning rate


class FactoredPolicy(Policy):
    """SB3's actor on a MultiDiscrete space: one categorical per concept, independent given the item."""

    algorithms = ("ppo", "a2c", "trpo")

    @classmethod
    def build(cls, algorithm: str, features: int, space: ConceptSpace, architecture: Mapping[str, Any]) -> Any:
        actions = spaces.MultiDiscrete(space.sizes)
        return ActorCriticPolicy(_observation_space(features), actions, _no_schedule, **architecture)

    def _concepts(self, observations: Tensor) -> list[Categorical]:
        actor = cast(ActorCriticPolicy, self.network)
        return cast(list[Categorical], actor.get_distribution(observations).distribution)

    def _log_probabilities(self, observations: Tensor, cells: Tensor) -> Tensor:
        levels = [d.logits[:, cells[:, j]] for j, d in enumerate(self._concepts(observations))]
        return torch.stack(levels).sum(dim=0)

    def _draw(self, observations: Tensor, k: int, generator: torch.Generator) -> Tensor:
        levels = [d.probs.cpu().multinomial(k, True, generator=generator) for d in self._concepts(observations)]
        return torch.stack(levels, dim=2)

    def _best(self, observations: Tensor, k: int) -> Tensor:
        # The k likeliest cells of the first concepts suffice to build the k likeliest with one more.
        n = len(observations)
        score, cells = observations.new_zeros(n, 1), torch.zeros(n, 1, 0, dtype=torch.int64, device=observations.device)
        for concept in self._concepts(observations):
            joint = (score[:, :, None] + concept.logits[:, None]).flatten(1)
            score, top = joint.topk(min(k, joint.shape[1]), dim=1)
            before = top // concept.logits.shape[1]
            kept = cells.gather(1, before[:, :, None].expand(-1, -1, cells.shape[2]))
            cells = torch.cat([kept, (top % concept.logits.shape[1])[:, :, None]], dim=2)
        return cells


class ValuePolicy(Policy):
    """DQN and its variants: one value per cell, softmax(Q) as probability."""

    algorithms = ("dqn", "qrdqn")

    @classmethod
    def build(cls, algorithm: str, features: int, space: ConceptSpace, architecture: Mapping[str, Any]) -> Any:
        network = DQNPolicy if algorithm == "dqn" else QRDQNPolicy
        return network(_observation_space(features), spaces.Discrete(space.n_cells), _no_schedule, **architecture)

    def _values(self, observations: Tensor) -> Tensor:
        if isinstance(self.network, QRDQNPolicy):
            return cast(Tensor, self.network.quantile_net(observations).mean(dim=1))  # the mean over quantiles
        return cast(Tensor, cast(DQNPolicy, self.network).q_net(observations))

    def _log_probabilities(self, observations: Tensor, cells: Tensor) -> Tensor:
        flat = torch.from_numpy(self.space.flat(cells.cpu().numpy())).to(observations.device)
        return torch.log_softmax(self._values(observations), dim=1)[:, flat]

    def _draw(self, observations: Tensor, k: int, generator: torch.Generator) -> Tensor:
        return self._cells(self._values(observations).softmax(dim=1).cpu().multinomial(k, True, generator=generator))

    def _best(self, observations: Tensor, k: int) -> Tensor:
        return self._cells(self._values(observations).topk(k, dim=1).indices.cpu())

    def _cells(self, flat: Tensor) -> Tensor:
        return torch.from_numpy(self.space.cells(flat.flatten().numpy())).reshape(*flat.shape, len(self.space))


class Mixture(Policy):
    """Several policies, such as those of a search's shares, one of which is chosen at random for each cell.

    Args:
        members: at least one, all on the same concept space.
    """

    algorithms = ()  # built from others, never learnt by an explorer

    def __init__(self, members: Sequence[Policy]) -> None:
        first = members[0]
        networks = torch.nn.ModuleList(member.network for member in members)
        super().__init__(MIXTURE, networks, first.normaliser, first.space, {})
        self.members = list(members)

    @classmethod
    def build(cls, algorithm: str, features: int, space: ConceptSpace, architecture: Mapping[str, Any]) -> Any:
        """Raise NotImplementedError: a mixture has no network of its own."""
        raise NotImplementedError

    def _observations(self, embedding: np.ndarray) -> np.ndarray:
        """Return each member's observations side by side: shares have different items, so they scale differently."""
        return np.concatenate([member.normaliser(embedding) for member in self.members], axis=1)

    def _each(self, observations: Tensor) -> Iterator[tuple[Policy, Tensor]]:
        yield from zip(self.members, observations.chunk(len(self.members), dim=1), strict=True)

    def _log_probabilities(self, observations: Tensor, cells: Tensor) -> Tensor:
        total = torch.full((len(observations), len(cells)), -torch.inf)  # one after the other: there may be many
        for member, own in self._each(observations):
            total = total.logaddexp(member._log_probabilities(own, cells))
        return total - float(np.log(len(self.members)))

    def _draw(self, observations: Tensor, k: int, generator: torch.Generator) -> Tensor:
        drawn = torch.stack([member._draw(own, k, generator).cpu() for member, own in self._each(observations)])
        whose = torch.randint(len(self.members), (1, *drawn.shape[1:3], 1), generator=generator)
        return drawn.gather(0, whose.expand(1, *drawn.shape[1:]))[0]

    def _best(self, observations: Tensor, k: int) -> Tensor:
        # Only cells that are likeliest for some member and item are considered, not those moderately likely for all.
        found = [member._best(own, k).flatten(0, 1) for member, own in self._each(observations)]
        cells = torch.cat(found).unique(dim=0)
        return cells[self._log_probabilities(observations, cells).topk(k, dim=1).indices]

    def save(self, folder: Path) -> None:
        """Write policy.json, and one folder per member."""
        folder.mkdir(parents=True, exist_ok=True)
        for n, member in enumerate(self.members, start=1):
            member.save(folder / str(n))
        description = {"schema": 1, "algorithm": MIXTURE, "members": len(self.members)}
        (folder / "policy.json").write_text(json.dumps(description) + "\n")


def save_policy(policy: Policy | None, folder: Path) -> None:
    """Write the policy, or a note that the explorer learns none, so that the folder always exists."""
    if policy is not None:
        policy.save(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.json").write_text(json.dumps({"schema": 1, "algorithm": None}) + "\n")
