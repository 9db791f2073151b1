"""The policies that agents learn: they propose cells for items, even for new ones, without a query.

They are stored as safetensors and JSON, never as a pickle (as SB3's own `save` does).
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError
from stages.explorers.env import OBSERVATION_BOUND, Normaliser

MIXTURE = "mixture"
CHUNK = 256  # items whose probabilities over all cells are in memory at once
BLOCK = 2**22  # hidden activations in memory at once when many cells are scored


class Policy(ABC):
    """A learnt distribution over cells, given the embedding of an item.

    Args:
        algorithm: name of the explorer that learnt it.
        architecture: arguments with which `load_policy` builds the network again.
    """

    algorithms: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        algorithm: str,
        network: nn.Module,
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


class Autoregressive(nn.Module):
    """log p(cell | item) as a product of conditionals, with one network of one hidden layer per concept.

    It picks the levels one after the other, given the item and the levels picked so far. So it can represent any
    distribution over a grid of any size, and predict likely failures of a new item.

    If the cell is known, all are evaluated in one pass (teacher forcing). The first layer is a sum of the contributions
    of the item and of the levels so far, so each is computed once even if many are combined.

    Args:
        features: size of an observation.
        sizes: number of levels of each concept.
    """

    before: Tensor
    absent: Tensor

    def __init__(self, features: int, sizes: Sequence[int], hidden: int) -> None:
        super().__init__()
        d, widest = len(sizes), max(sizes)
        self.sizes = list(sizes)
        self.item = nn.Parameter(torch.randn(d, features, hidden) / math.sqrt(features))
        self.level = nn.Parameter(torch.randn(d, d * widest, hidden) / math.sqrt(d))
        self.bias = nn.Parameter(torch.zeros(d, 1, hidden))
        self.out = nn.Parameter(torch.zeros(d, hidden, widest))  # starts as the uniform policy
        self.out_bias = nn.Parameter(torch.zeros(d, 1, widest))
        before = torch.arange(d)[:, None] > torch.arange(d * widest)[None] // widest
        absent = torch.arange(widest)[None] >= torch.tensor(self.sizes)[:, None]
        self.register_buffer("before", before[:, :, None].float(), persistent=False)
        self.register_buffer("absent", absent[:, None], persistent=False)

    def forward(self, observations: Tensor, cells: Tensor) -> Tensor:
        """Return the log probability of each concept's level, given those before: (n, f), (n, d) -> (n, d)."""
        hidden = observations @ self.item + self._one_hot(cells) @ (self.level * self.before) + self.bias
        logits = functional.silu(hidden) @ self.out + self.out_bias
        logits = logits.masked_fill(self.absent, -math.inf)
        return logits.log_softmax(-1).gather(2, cells.T[:, :, None])[..., 0].T

    def conditional(self, j: int, item: Tensor, prefix: Tensor) -> Tensor:
        """Log probabilities of concept j's levels: item part (..., hidden), prefixes (..., j) -> (..., levels)."""
        widest = self.out.shape[2]
        hidden = item + self.bias[j, 0]
        for k in range(j):
            hidden = hidden + self.level[j, k * widest + prefix[..., k]]
        logits = functional.silu(hidden) @ self.out[j] + self.out_bias[j, 0]
        return logits[..., : self.sizes[j]].log_softmax(-1)

    def sample(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one cell for each observation: (n, f) -> (n, d)."""
        cells = torch.zeros(len(observations), 0, dtype=torch.int64)
        for j in range(len(self.sizes)):
            p = self.conditional(j, observations @ self.item[j], cells).exp()
            cells = torch.cat([cells, p.multinomial(1, generator=generator)], dim=1)
        return cells

    def _one_hot(self, cells: Tensor) -> Tensor:
        return functional.one_hot(cells, self.out.shape[2]).flatten(1).to(self.out.dtype)


class AutoregressivePolicy(Policy):
    """The proposer learnt by model-based search."""

    algorithms = ("model_based",)
    network: Autoregressive

    @classmethod
    def build(cls, algorithm: str, features: int, space: ConceptSpace, architecture: Mapping[str, Any]) -> Any:
        return Autoregressive(features, space.sizes, **architecture)

    def _log_probabilities(self, observations: Tensor, cells: Tensor) -> Tensor:
        # Cells share their first levels: evaluate the conditional once per distinct prefix.
        total = observations.new_zeros(len(observations), len(cells))
        inverse = torch.zeros(len(cells), dtype=torch.int64)
        prefixes = cells[:1, :0]
        for j in range(cells.shape[1]):
            item = (observations @ self.network.item[j])[:, None]
            parts = prefixes.split(max(1, BLOCK // item.numel()))
            log_p = torch.cat([self.network.conditional(j, item, part) for part in parts], dim=1)
            total += log_p[:, inverse, cells[:, j]]
            prefixes, inverse = torch.unique(cells[:, : j + 1], dim=0, return_inverse=True)
        return total

    def _draw(self, observations: Tensor, k: int, generator: torch.Generator) -> Tensor:
        cells = self.network.sample(observations.repeat_interleave(k, dim=0), generator)
        return cells.reshape(len(observations), k, -1)

    def _best(self, observations: Tensor, k: int) -> Tensor:
        # Beam search with k beams, but at least enough to find the mode in practice.
        n, width = len(observations), max(k, 32)
        score, cells = observations.new_zeros(n, 1), torch.zeros(n, 1, 0, dtype=torch.int64)
        for j, size in enumerate(self.network.sizes):
            item = (observations @ self.network.item[j])[:, None]
            joint = (score[:, :, None] + self.network.conditional(j, item, cells)).flatten(1)
            score, top = joint.topk(min(width, joint.shape[1]), dim=1)
            kept = cells.gather(1, (top // size)[:, :, None].expand(-1, -1, j))
            cells = torch.cat([kept, (top % size)[:, :, None]], dim=2)
        return cells[:, :k]


class Mixture(Policy):
    """Several policies, such as those of a search's shares, one of which is chosen at random for each cell.

    Args:
        members: at least one, all on the same concept space.
    """

    algorithms = ()  # built from others, never learnt by an explorer

    def __init__(self, members: Sequence[Policy]) -> None:
        first = members[0]
        networks = nn.ModuleList(member.network for member in members)
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


KINDS: tuple[type[Policy], ...] = (FactoredPolicy, ValuePolicy, AutoregressivePolicy)


def load_policy(folder: Path) -> Policy | None:
    """Read a policy written by `save_policy`; None if the explorer learnt none.

    Raises a UsageError if the folder contains no readable policy.
    """
    try:
        description = json.loads((folder / "policy.json").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{folder} holds no readable policy: {error}") from None
    if description.get("schema") != 1:
        raise UsageError(f"{folder} holds a policy of schema {description.get('schema')}, this version reads 1")
    algorithm = description["algorithm"]
    if algorithm is None:
        return None
    if algorithm == MIXTURE:
        members = [load_policy(folder / str(n)) for n in range(1, description["members"] + 1)]
        return Mixture([member for member in members if member is not None])
    kinds = {name: kind for kind in KINDS for name in kind.algorithms}
    if algorithm not in kinds:
        raise UsageError(f"{folder} holds a policy learnt by {algorithm!r}, this version reads {', '.join(kinds)}")
    space = ConceptSpace.from_json(description["concepts"])
    normaliser = Normaliser(np.array(description["mean"]), np.array(description["std"]))
    kind, architecture = kinds[algorithm], description["architecture"]
    network = kind.build(algorithm, len(normaliser.mean), space, architecture)
    network.load_state_dict(load_file(folder / "policy.safetensors"))
    return kind(algorithm, network, normaliser, space, architecture)
