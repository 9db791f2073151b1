"""An agent that learns to walk to the nearest failure: PPO with masked actions on the small-step environment.

It is trained on other items than those it walks, if there are any. Its advantage is few queries: it probes only its own
steps, while a search probes every neighbour. Its training takes thousands of probes.

The environment of small steps is one of Gymnasium, and for many items at once a VecEnv of SB3. Microscopic exploration
(paper, Sec. 3): an episode starts at an unchanged item, an action is one step of one concept, and the episode ends when
the model fails. The observation is the model's own embedding of the item, the position in the grid, and the margin
there by the last answer. That is all the next step depends on, so an agent needs no memory.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import MaskablePPO

from stages.core.errors import NoLearningError
from stages.explorers.env import OBSERVATION_BOUND, ConceptVecEnv, Normaliser, StopWhenSpent
from stages.explorers.prober import Prober
from stages.microscopic.settings import WalkerSettings
from stages.microscopic.walks import Moves, WalkState

ENV_ID = "Faded/Steps-v0"


class StepReward(NamedTuple):
    """The reward of a step: its change of the margin, plus a bonus if the model fails, minus the cost of a step.

    The changes of the margin guide the agent; over a whole path they add up to the same, whatever the path
    (undiscounted, as in Ng, Harada and Russell 1999). Bonus and cost make the shortest path to a failure the best.
    """

    bonus: float = 1.0
    cost: float = 0.05


class Stepped(NamedTuple):
    """The results of n steps, all (n, ...)."""

    cells: np.ndarray
    margins: np.ndarray  # float32, clipped to [-1, 1]
    rewards: np.ndarray  # float32
    failed: np.ndarray
    answered: np.ndarray  # False if the budget was spent


class Trail:
    """The parts that the single and the vectorised environment share: spaces, observations, steps and rewards."""

    def __init__(self, prober: Prober, moves: Moves, reward: StepReward) -> None:
        self.prober, self.moves, self.reward = prober, moves, reward
        embedding = prober.task.embed(prober.item_ids)
        self._embedded = Normaliser.fit(embedding)(embedding)
        place = moves.space.coordinates(moves.start[None]).shape[1]
        size = embedding.shape[1] + place + 1
        self.observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (size,), np.float32)
        self.action_space = spaces.Discrete(len(moves))

    def observe(self, items: np.ndarray, cells: np.ndarray, margins: np.ndarray) -> np.ndarray:
        """Return observations of items (n,) in cells (n, concepts) with these margins (n,): (n, size) float32."""
        place = self.moves.space.coordinates(cells)
        return np.hstack([self._embedded[items], place, margins[:, None]]).astype(np.float32)

    def margins(self, items: np.ndarray, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probe, and return margins (n,) within [-1, 1], which failed, and which were answered."""
        answers = self.prober.ask(items, cells)
        return self.clipped(answers.discrepancy), answers.failed, answers.answered

    def clipped(self, discrepancy: np.ndarray) -> np.ndarray:
        """Convert discrepancies (n,) to margins over the threshold, clipped to [-1, 1]."""
        return np.clip(discrepancy - self.prober.task.threshold, -1.0, 1.0).astype(np.float32)

    def step(self, items: np.ndarray, cells: np.ndarray, margins: np.ndarray, actions: np.ndarray) -> Stepped:
        """Take one move (n,) each; an invalid one stays in place and costs a step."""
        actions = np.asarray(actions, dtype=np.int64)
        possible = self.moves.valid(cells)[np.arange(len(cells)), actions]
        there = np.where(possible[:, None], self.moves.take(cells, actions), cells)
        after, failed, answered = self.margins(items, there)
        after = np.where(answered, after, margins)
        rewards = after - margins + self.reward.bonus * failed - self.reward.cost
        return Stepped(there, after, np.where(answered, rewards, 0.0).astype(np.float32), failed, answered)


class StepsEnv(gym.Env[np.ndarray, np.int64]):
    """`Faded/Steps-v0`: one item at a time.

    An episode is terminated by a failure, or if no step is left, and truncated after `max_steps` or when the budget is
    spent. `reset(options={"item": k})` selects the item by its position; otherwise it is drawn. `action_masks` returns
    the possible steps, as required by sb3-contrib's MaskablePPO.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, prober: Prober, reward: StepReward | None = None, max_steps: int | None = None) -> None:
        self.moves = Moves(prober.space, prober.space.start)
        self.trail = Trail(prober, self.moves, reward or StepReward())
        self.observation_space, self.action_space = self.trail.observation_space, self.trail.action_space
        self.max_steps = max_steps or self.moves.longest
        self._item, self._steps = np.zeros(1, dtype=np.int64), 0
        self._cell, self._margin = self.moves.start[None], np.zeros(1, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return to the start with the next item; `failed` in the info is whether it fails there already."""
        super().reset(seed=seed)
        n = len(self.trail.prober.item_ids)
        item = int(options["item"]) if options and "item" in options else int(self.np_random.integers(n))
        self._item, self._cell, self._steps = np.array([item]), self.moves.start[None], 0
        margin, failed, answered = self.trail.margins(self._item, self._cell)
        self._margin = np.where(answered, margin, np.float32(0))
        info = {"item": self.trail.prober.item_ids[item], "failed": bool(failed[0])}
        return self.trail.observe(self._item, self._cell, self._margin)[0], info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._cell, self._margin, reward, failed, answered = self.trail.step(
            self._item, self._cell, self._margin, np.array([action])
        )
        self._steps += 1
        terminated = bool(failed[0]) or not self.action_masks().any()
        truncated = not terminated and (self._steps >= self.max_steps or not answered[0])
        info = {"failed": bool(failed[0]), "answered": bool(answered[0]), "steps": self._steps}
        observation = self.trail.observe(self._item, self._cell, self._margin)[0]
        return observation, float(reward[0]), terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """Return which moves are possible here: (moves,) bool."""
        return self.moves.valid(self._cell)[0]


class StepsVecEnv(ConceptVecEnv):
    """Many items at once: one batch of the model is one step of all environments.

    Args:
        items: positions of the walked items, which do not fail at the start.
        num_envs: probes in one step.
        max_steps: steps after which an episode is truncated.
    """

    def __init__(self, trail: Trail, items: np.ndarray, num_envs: int, max_steps: int, seed: int) -> None:
        super().__init__(trail, num_envs, seed)  # type: ignore[arg-type]  # it uses only the spaces
        self.trail, self.max_steps = trail, max_steps
        self._pool = items
        self._cells = np.tile(trail.moves.start, (num_envs, 1))
        self._margins = np.zeros(num_envs, dtype=np.float32)
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def _start(self, envs: np.ndarray) -> None:
        """Begin an episode in each of these environments (n,)."""
        self._items[envs] = self._rng.choice(self._pool, size=len(envs))
        self._cells[envs], self._steps[envs] = self.trail.moves.start, 0
        margins, _, answered = self.trail.margins(self._items[envs], self._cells[envs])
        self._margins[envs] = np.where(answered, margins, 0)

    def _observe(self) -> np.ndarray:
        return self.trail.observe(self._items, self._cells, self._margins)

    def reset(self) -> np.ndarray:
        """Begin an episode in every environment; returns observations (num_envs, size)."""
        self._start(np.arange(self.num_envs))
        return self._observe()

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Take the steps, probe, and begin new episodes where one has ended."""
        self._cells, self._margins, rewards, failed, answered = self.trail.step(
            self._items, self._cells, self._margins, self._actions
        )
        self._steps += 1
        terminated = failed | ~self.action_masks().any(axis=1)
        truncated = ~terminated & ((self._steps >= self.max_steps) | ~answered)
        ended = np.flatnonzero(terminated | truncated)
        infos: list[dict[str, Any]] = [
            {"failed": bool(f), "answered": bool(a)} for f, a in zip(failed, answered, strict=True)
        ]
        last = self._observe()
        for env in ended.tolist():
            infos[env] |= {"terminal_observation": last[env], "TimeLimit.truncated": bool(truncated[env])}
        self._start(ended)
        return self._observe(), rewards, terminated | truncated, infos

    def action_masks(self) -> np.ndarray:
        """Return which moves are possible in each environment: (num_envs, moves) bool."""
        return self.trail.moves.valid(self._cells)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Return the masks per environment, as sb3-contrib requests them; raise an error for other methods."""
        if method_name == "action_masks":
            return list(self.action_masks()[self._get_indices(indices)])
        return super().env_method(method_name, *args, indices=indices, **kwargs)


gym.register(id=ENV_ID, entry_point="stages.microscopic.agent:StepsEnv")


PATIENCE = 4  # steps per unique probe of the training, after which the agent only repeats itself


def train_and_walk(walks: WalkState, settings: WalkerSettings, seed: int) -> dict[str, Any]:
    """Train on the prober's items that do not walk (on all, if there are no others), then walk.

    Raises a NoLearningError if the budget was too small for a single update, or all training items fail at the start.

    Returns:
        Numbers of the training, for the metrics.
    """
    prober, moves = walks.prober, walks.moves
    trail = Trail(prober, moves, StepReward(settings.bonus, settings.cost))
    walking = len(walks.radius)
    learning = np.arange(walking, len(prober.item_ids)) if len(prober.item_ids) > walking else np.arange(walking)
    before = prober.spent
    spend = int(settings.training * prober.left)
    too_little = NoLearningError(
        f"microscopic exploration by rl made no gradient update within {spend} probes: raise"
        " discover.microscopic.budget, or lower n_envs or n_steps in its settings; method beam needs no training"
    )
    # Every item costs a probe at its start: use few enough to leave most of the training for steps.
    most = max(settings.n_envs, spend // 10)
    if len(learning) > most:
        learning = np.sort(np.random.default_rng(seed).choice(learning, most, replace=False))
    _, failed, answered = trail.margins(learning, np.tile(moves.start, (len(learning), 1)))
    if not answered.any():
        raise too_little
    if failed[answered].all():
        raise NoLearningError("microscopic exploration by rl: all items it could learn from fail unchanged")
    env = StepsVecEnv(trail, learning[answered & ~failed], settings.n_envs, walks.limit, seed)
    model = MaskablePPO(
        "MlpPolicy",
        env,
        n_steps=settings.n_steps,
        batch_size=min(settings.batch_size, settings.n_steps * settings.n_envs),
        n_epochs=settings.n_epochs,
        learning_rate=settings.learning_rate,
        gamma=settings.gamma,
        ent_coef=settings.ent_coef,
        policy_kwargs={"net_arch": list(settings.hidden), "optimizer_kwargs": {"fused": True, "eps": 1e-5}},
        seed=seed,
        device="cpu",
    )
    model.learn(total_timesteps=PATIENCE * spend, callback=StopWhenSpent(prober, before + spend))
    if model._n_updates == 0:
        raise too_little
    details = {"gradient_updates": int(model._n_updates), "training_probes": prober.spent - before}
    for walk in range(settings.walks):
        _walk(walks, trail, model, deterministic=walk == 0)
    return details


def _walk(walks: WalkState, trail: Trail, model: MaskablePPO, *, deterministic: bool) -> None:
    """Let the agent walk all items at once, each until it fails or cannot find a nearer failure."""
    items = np.flatnonzero(walks.radius > 1)
    cells = np.tile(walks.moves.start, (len(items), 1))
    margins, _, _ = trail.margins(items, cells)
    for depth in range(1, walks.limit + 1):
        going = walks.moves.valid(cells).any(axis=1) & (walks.radius[items] > depth)
        items, cells, margins = items[going], cells[going], margins[going]
        if not len(items):
            return
        observations = trail.observe(items, cells, margins)
        actions, _ = model.predict(observations, action_masks=walks.moves.valid(cells), deterministic=deterministic)
        cells = walks.moves.take(cells, actions)
        answers = walks.ask(items, cells)
        walks.searched[items[answers.answered]] = np.maximum(walks.searched[items[answers.answered]], depth)
        items, cells = items[answers.answered], cells[answers.answered]
        margins = trail.clipped(answers.discrepancy[answers.answered])
