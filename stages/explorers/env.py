"""The search as a Gymnasium environment, and as an SB3 VecEnv for many items at once.

Macroscopic exploration (paper, Sec. 3): an episode is one step. The observation is the model's own embedding of an
item, and the action is a cell. The reward is neither discrepancy nor failure: the *discrepancy* is how far an output is
from what people expect, a *failure* is a discrepancy above the threshold, and the *reward* makes an agent look where
the audit wants it to. Only the first two are facts about the model under test; the reward is a choice, made in
`discover.settings.reward`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Self

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pydantic import Field
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from stages.concepts import ConceptSpace
from stages.explorers.prober import Answers, Prober
from stages.explorers.surrogate import commonness
from stages.params import Strict

REPEATED = -1.0  # for a probe made before: otherwise an agent settles on one failure and repeats it
MOST_ODDS = 1e6  # the paper's reward is infinite if the model is certain


class RewardConfig(Strict):
    """The reward of a new probe: its base, and weighted bonuses, all of which diminish."""

    base: Literal["margin", "paper"] = Field(
        "margin",
        description="margin over the threshold in [-1, 1], or the paper's: 10 |log odds| of a failure, else -1",
    )
    novelty: float = Field(0.5, ge=0, description="weight of the bonus for failures in cells with few of them")
    region: float = Field(0.0, ge=0, description="weight of the bonus for failures in coarse regions with few of them")
    common: float = Field(
        0.5, ge=0, le=1, description="how much common changes are preferred: 1 by their share of use, 0 not at all"
    )
    coverage: float = Field(0.0, ge=0, description="bonus for a cell never probed before, failing or not")


class Reward:
    """Base and bonuses of new probes; a repeated probe earns -1.

    Base `margin` is the discrepancy minus the threshold, clipped to [-1, 1]: it shows how close a pass was to failing.

    Base `paper` follows the authors' released code, which pays 10 |log(p / (1 - p))| for a wrong answer of probability
    p, and -1 for a right one. A task returns its discrepancy and no probabilities, so here p is (1 + margin) / 2. For a
    classifier, whose discrepancy is tanh(z / s) with z the log odds of the best wrong answer against the right one,
    this is 20 z / s: the same quantity in other units, but not U-shaped in p, and bounded.

    What is earned counts by how common the cell is in use; a cell that never occurs costs as much as a repeated one.

    Bonuses are count-based (Bellemare et al. 2016): `novelty` pays weight / sqrt(1 + n) for a failure in a cell with n
    failures so far; `region` pays the same for the region of the cell, which is one half of every ordered concept and
    one category of every other; `coverage` pays its weight for the first probe of a cell.
    """

    def __init__(self, space: ConceptSpace, threshold: float, config: RewardConfig | None = None) -> None:
        self.space, self.threshold, self.config = space, threshold, config or RewardConfig()
        # The part of its concept that each level belongs to.
        self._parts = [
            np.arange(len(c)) // max(1, (len(c) + 1) // 2) if c.ordered else np.arange(len(c)) for c in space.concepts
        ]
        self.forget()

    def forget(self) -> None:
        """Reset, as if nothing had been probed yet."""
        self._paid: set[tuple[int, int]] = set()
        self._probed: set[int] = set()
        self._failures: Counter[int] = Counter()  # by cell
        self._regional: Counter[tuple[int, ...]] = Counter()

    def regions(self, cells: np.ndarray) -> list[tuple[int, ...]]:
        """Return the coarse region of each cell (n, d), as a tuple of d parts."""
        parts = np.stack([part[cells[:, j]] for j, part in enumerate(self._parts)], axis=1)
        return [tuple(row) for row in parts.tolist()]

    def __call__(self, items: np.ndarray, cells: np.ndarray, answers: Answers) -> np.ndarray:
        """Compute rewards for the answers about items (n,) under cells (n, d).

        Returns:
            Rewards (n,) float32; 0 for probes that the budget left unanswered.
        """
        reward = np.where(answers.answered, self._base(answers), 0.0)
        numbers, regions = self.space.flat(cells).tolist(), self.regions(cells)
        for n in np.flatnonzero(answers.answered).tolist():
            pair = (int(items[n]), numbers[n])
            if pair in self._paid:
                reward[n] = REPEATED
                continue
            self._paid.add(pair)
            reward[n] += self._bonus(numbers[n], regions[n], bool(answers.failed[n]))
        worth = commonness(self.space, cells, self.config.common)
        reward = np.where(reward > 0, reward * worth, reward)
        reward[answers.answered & (worth == 0)] = REPEATED
        return reward.astype(np.float32)

    def _base(self, answers: Answers) -> np.ndarray:
        margin = np.clip(answers.discrepancy - self.threshold, -1.0, 1.0)
        if self.config.base == "margin":
            return margin
        with np.errstate(divide="ignore"):
            odds = np.clip((1 + margin) / (1 - margin), 1.0, MOST_ODDS)  # a failure's odds are above 1
        return np.where(answers.failed, 10 * np.log(odds), -1.0)

    def _bonus(self, cell: int, region: tuple[int, ...], failed: bool) -> float:
        bonus = 0.0 if cell in self._probed else self.config.coverage
        self._probed.add(cell)
        if failed:
            bonus += self.config.novelty / np.sqrt(1 + self._failures[cell])
            bonus += self.config.region / np.sqrt(1 + self._regional[region])
            self._failures[cell] += 1
            self._regional[region] += 1
        return bonus


ENV_ID = "Faded/Concepts-v0"
OBSERVATION_BOUND = 10.0


class Normaliser:
    """Converts embeddings to observations: standardised over the audit's items, clipped to +-10.

    Networks learn badly from raw features of unknown scale, and clipping makes the observation space's bounds true.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    @classmethod
    def fit(cls, embedding: np.ndarray) -> Self:
        """Fit on the embeddings (n, d) of the items searched; a constant feature becomes 0."""
        std = embedding.std(axis=0)
        return cls(embedding.mean(axis=0), np.where(std > 1e-6, std, 1.0))

    def __call__(self, embedding: np.ndarray) -> np.ndarray:
        """Convert embeddings (n, d) to observations (n, d) float32."""
        scaled = (embedding - self.mean) / self.std
        return np.clip(scaled, -OBSERVATION_BOUND, OBSERVATION_BOUND).astype(np.float32)


class Arena:
    """The parts that the single and the vectorised environment share: spaces, observations, probing and rewards.

    Args:
        flat: one Discrete action per cell (DQN), instead of one choice per concept (MultiDiscrete).
    """

    def __init__(self, prober: Prober, reward: Reward, flat: bool = False) -> None:
        self.prober, self.reward, self.flat = prober, reward, flat
        embedding = prober.task.embed(prober.item_ids)
        self.normaliser = Normaliser.fit(embedding)
        self.observations = self.normaliser(embedding)
        self.observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (embedding.shape[1],), np.float32)
        space = prober.space
        self.action_space: spaces.Space = spaces.Discrete(space.n_cells) if flat else spaces.MultiDiscrete(space.sizes)

    def play(self, items: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Probe items (n,) under actions (n,) or (n, d); returns rewards (n,) float32 and one info dict each."""
        cells = self.prober.space.cells(actions) if self.flat else np.asarray(actions, dtype=np.int64)
        answers = self.prober.ask(items, cells)
        rewards = self.reward(items, cells, answers)
        infos = [
            {"item": self.prober.item_ids[i], "answered": bool(a), "failed": bool(f), "discrepancy": float(d)}
            for i, a, f, d in zip(items, answers.answered, answers.failed, answers.discrepancy, strict=True)
        ]
        return rewards, infos


class ConceptEnv(gym.Env[np.ndarray, Any]):
    """`Faded/Concepts-v0`: one item at a time, one step per episode.

    `reset(options={"item": k})` selects the item by its position; otherwise it is drawn.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, prober: Prober, reward: Reward | None = None, flat: bool = False) -> None:
        self.arena = Arena(prober, reward or Reward(prober.space, prober.task.threshold), flat)
        self.observation_space = self.arena.observation_space
        self.action_space = self.arena.action_space
        self._item = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw the next item. With a seed, rewards restart too: novelty is counted from here."""
        super().reset(seed=seed)
        if seed is not None:
            self.arena.reward.forget()
        n = len(self.arena.prober.item_ids)
        self._item = int(options["item"]) if options and "item" in options else int(self.np_random.integers(n))
        return self.arena.observations[self._item].copy(), {"item": self.arena.prober.item_ids[self._item]}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Probe the item under the action's cell and end the episode, truncated if the budget was spent."""
        rewards, infos = self.arena.play(np.array([self._item]), np.asarray(action)[None])
        observation = self.arena.observations[self._item].copy()
        answered = infos[0]["answered"]
        return observation, float(rewards[0]), answered, not answered, infos[0]


class ConceptVecEnv(VecEnv):
    """Many items at once: one batch of the model is one step of all environments.

    Args:
        num_envs: probes in one step; a multiple of the task's batch size wastes nothing.
    """

    render_mode = None

    def __init__(self, arena: Arena, num_envs: int, seed: int) -> None:
        self.arena = arena
        super().__init__(num_envs, arena.observation_space, arena.action_space)
        self._rng = np.random.default_rng(seed)
        self._items = np.zeros(num_envs, dtype=np.int64)
        self._actions: np.ndarray = np.zeros(0)

    def _draw(self) -> np.ndarray:
        self._items = self._rng.integers(len(self.arena.prober.item_ids), size=self.num_envs)
        return self.arena.observations[self._items]

    def reset(self) -> np.ndarray:
        """Draw an item for every environment; returns observations (num_envs, d)."""
        return self._draw()

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions, (num_envs,) flat or (num_envs, concepts)."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Probe, and start the next episodes, because every episode is one step long."""
        last = self.arena.observations[self._items]
        rewards, infos = self.arena.play(self._items, self._actions)
        for info, observation in zip(infos, last, strict=True):
            info["terminal_observation"] = observation
        return self._draw(), rewards, np.ones(self.num_envs, dtype=bool), infos

    def close(self) -> None:
        """Do nothing: the model belongs to the task."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return the same attribute for every environment, because they are one object."""
        return [getattr(self, attr_name)] * len(self._get_indices(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raise an error, because the environments are one object."""
        raise AttributeError(f"cannot set {attr_name!r}: all environments of this VecEnv are one object")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Raise an error, because the environments are one object."""
        raise AttributeError(f"cannot call {method_name!r}: all environments of this VecEnv are one object")

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        """Return False for each: none of them is wrapped."""
        return [False] * len(self._get_indices(indices))

    def _get_indices(self, indices: Any) -> Sequence[int]:
        return range(self.num_envs) if indices is None else [indices] if isinstance(indices, int) else list(indices)


class StopWhenSpent(BaseCallback):
    """Stops an agent's learning when the prober has spent `limit` unique probes."""

    def __init__(self, prober: Prober, limit: int) -> None:
        super().__init__()
        self.prober, self.limit = prober, limit

    def _on_step(self) -> bool:
        return self.prober.spent < self.limit


gym.register(id=ENV_ID, entry_point="stages.explorers.env:ConceptEnv")
