"""What an agent has learnt, kept as safetensors and JSON: never as a pickle (SB3's own `save` is one)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from torch.distributions import Categorical

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.explorers.env import OBSERVATION_BOUND, Normaliser

CHUNK = 256  # items whose probabilities over all cells are held at once


class Policy:
    """A learnt policy over cells, for items known by their embedding.

    Args:
        algorithm: "ppo" (factored: one categorical per concept) or "dqn" (one value per cell).
        network: the SB3 policy that holds the weights.
        normaliser: embeddings -> observations.
        space: the concept space it acts on.
        architecture: what `load` needs to build the network again.
    """

    def __init__(
        self,
        algorithm: str,
        network: ActorCriticPolicy | DQNPolicy,
        normaliser: Normaliser,
        space: ConceptSpace,
        architecture: Mapping[str, Any],
    ) -> None:
        self.algorithm, self.network, self.normaliser, self.space = algorithm, network, normaliser, space
        self.architecture = dict(architecture)
        self.network.set_training_mode(False)

    def cell_probabilities(self, embedding: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """How likely the policy is to choose each cell.

        For a value-based agent these are softmax(Q) as in the paper (Sec. 3).

        Args:
            embedding: (n, d) embeddings of items.
            cells: (m, concepts) level indices.

        Returns:
            (n, m) float32 probabilities; rows sum to 1 if `cells` is the whole grid.
        """
        observations = torch.from_numpy(self.normaliser(embedding)).to(self.network.device)
        index = torch.from_numpy(np.asarray(cells, dtype=np.int64)).to(observations.device)
        rows = []
        with torch.no_grad():
            for part in observations.split(CHUNK):
                if isinstance(self.network, DQNPolicy):
                    log_p = torch.log_softmax(self.network.q_net(part), dim=1)
                    rows.append(log_p[:, torch.from_numpy(self.space.flat(cells)).to(log_p.device)])
                else:
                    concepts = cast(list[Categorical], self.network.get_distribution(part).distribution)
                    per_concept = [d.logits[:, index[:, j]] for j, d in enumerate(concepts)]
                    rows.append(torch.stack(per_concept).sum(dim=0))
        return torch.cat(rows).exp().float().cpu().numpy()

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


def build_network(
    algorithm: str, features: int, space: ConceptSpace, architecture: Mapping[str, Any]
) -> ActorCriticPolicy | DQNPolicy:
    """Build an untrained network of the shape the algorithm uses."""
    observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (features,), np.float32)

    def no_schedule(_: float) -> float:
        return 0.0  # only training needs a learning rate

    if algorithm == "dqn":
        return DQNPolicy(observation_space, spaces.Discrete(space.n_cells), no_schedule, **architecture)
    return ActorCriticPolicy(observation_space, spaces.MultiDiscrete(space.sizes), no_schedule, **architecture)


def save_policy(policy: Policy | None, folder: Path) -> None:
    """Write the policy, or a note that the explorer learns none, so that the folder always exists."""
    if policy is not None:
        policy.save(folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.json").write_text(json.dumps({"schema": 1, "algorithm": None}) + "\n")


def load_policy(folder: Path) -> Policy | None:
    """Read what `save_policy` wrote; None if the explorer learnt none.

    Raises:
        UsageError: when the folder is not one of a policy.
    """
    try:
        description = json.loads((folder / "policy.json").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{folder} holds no readable policy: {error}") from None
    if description.get("schema") != 1:
        raise UsageError(f"{folder} holds a policy of schema {description.get('schema')}, this version reads 1")
    if description["algorithm"] is None:
        return None
    space = ConceptSpace.from_json(description["concepts"])
    mean, std = np.array(description["mean"]), np.array(description["std"])
    network = build_network(description["algorithm"], len(mean), space, description["architecture"])
    network.load_state_dict(load_file(folder / "policy.safetensors"))
    return Policy(description["algorithm"], network, Normaliser(mean, std), space, description["architecture"])
