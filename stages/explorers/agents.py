"""Deep RL agents from Stable-Baselines3: PPO on one choice per concept, DQN on all cells as in the paper."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import Field, PositiveInt, model_validator
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy

from stages.errors import NoLearningError, UsageError
from stages.explorers.baselines import Random
from stages.explorers.contract import Found
from stages.explorers.env import Arena, ConceptVecEnv
from stages.explorers.policy import Policy
from stages.explorers.prober import Prober
from stages.explorers.reward import Reward
from stages.params import Strict

PATIENCE = 20  # steps an agent may take per unique probe of its budget before it counts as stuck


class _StopWhenSpent(BaseCallback):
    """Ends the learning when the budget is spent, or when the agent only repeats itself."""

    def __init__(self, prober: Prober) -> None:
        super().__init__()
        self.prober = prober

    def _on_step(self) -> bool:
        return self.prober.left > 0


class AgentSettings(Strict):
    """What all agents share."""

    n_envs: int = Field(64, ge=1, description="items probed in one step")
    novelty: float = Field(0.5, ge=0, description="weight of the bonus for failures in cells with few of them")
    hidden: list[PositiveInt] = Field(default=[64, 64], description="units of the hidden layers")
    learning_rate: float = Field(1e-3, gt=0)
    device: Literal["cpu"] = Field("cpu", description="agents are tiny: a CPU is quicker than moving them")


class PPOSettings(AgentSettings):
    """PPO (Schulman et al. 2017)."""

    n_steps: int = Field(1, ge=1, description="steps of all environments between two updates")
    n_epochs: int = Field(10, ge=1)
    batch_size: int = Field(64, ge=2)
    ent_coef: float = Field(0.02, ge=0, description="entropy bonus: higher explores more, finds fewer")

    @model_validator(mode="after")
    def _enough_to_normalise(self) -> PPOSettings:
        if self.n_envs * self.n_steps < 2:
            raise ValueError(f"n_envs * n_steps must be at least 2, found {self.n_envs} * {self.n_steps}")
        return self


class DQNSettings(AgentSettings):
    """DQN (Mnih et al. 2015), the paper's agent."""

    hidden: list[PositiveInt] = Field(default=[128, 128], description="units of the hidden layers")
    buffer_size: int = Field(50_000, ge=1)
    learning_starts: int = Field(
        256, ge=1, description="probes before the first update; explicit, so that updates happen"
    )
    batch_size: int = Field(64, ge=1)
    gradient_steps: int = Field(16, ge=1, description="updates per step of all environments")
    target_update_interval: int = Field(512, ge=1)
    exploration_fraction: float = Field(0.5, gt=0, le=1)
    exploration_final_eps: float = Field(0.1, ge=0, le=1)
    max_cells: int = Field(20_000, description="largest grid it is used on: one output unit per cell")


class _Agent:
    """What PPO and DQN share: learn until the budget is spent, fill what is left, refuse the untrained."""

    name: str
    flat: bool

    def __init__(self, settings: AgentSettings) -> None:
        self.settings = settings

    def _build(self, env: ConceptVecEnv, prober: Prober, seed: int) -> BaseAlgorithm:
        raise NotImplementedError

    def explore(self, prober: Prober, seed: int) -> Found:
        """Learn on the prober until its budget is spent.

        Raises:
            NoLearningError: when the budget was too small for a single gradient update.
        """
        arena = Arena(prober, Reward(prober.space, prober.task.threshold, self.settings.novelty), self.flat)
        env = ConceptVecEnv(arena, self.settings.n_envs, seed)
        model = self._build(env, prober, seed)
        model.learn(total_timesteps=PATIENCE * prober.budget, callback=_StopWhenSpent(prober))
        updates = int(getattr(model, "_n_updates", 0))
        if updates == 0:
            raise NoLearningError(
                f"{self.name} made no gradient update within its budget of {prober.budget} probes:"
                f" raise discover.budget, or lower n_envs ({self.settings.n_envs}), n_steps or learning_starts"
                " in discover.settings"
            )
        learnt = prober.spent
        if prober.left > 0:  # it only repeated itself; the budget is spent all the same, and that is said
            Random().explore(prober, seed)
        policy = Policy(
            self.name,
            cast(ActorCriticPolicy | DQNPolicy, model.policy),
            arena.normaliser,
            prober.space,
            self._architecture(),
        )
        details = {
            "gradient_updates": updates,
            "steps": int(model.num_timesteps),
            "filled_at_random": prober.spent - learnt,
        }
        return Found(policy, details)

    def _architecture(self) -> dict[str, Any]:
        return {"net_arch": list(self.settings.hidden)}


class PPOExplorer(_Agent):
    """PPO on the factored action space: one categorical choice per concept, so a grid may be of any size."""

    name, flat = "ppo", False
    Settings = PPOSettings

    def _build(self, env: ConceptVecEnv, prober: Prober, seed: int) -> BaseAlgorithm:
        s = self.settings
        assert isinstance(s, PPOSettings)
        return PPO(
            "MlpPolicy",
            env,
            n_steps=s.n_steps,
            batch_size=min(s.batch_size, s.n_steps * s.n_envs),
            n_epochs=s.n_epochs,
            learning_rate=s.learning_rate,
            gamma=0.0,  # episodes are one step long
            gae_lambda=1.0,
            ent_coef=s.ent_coef,
            policy_kwargs=self._architecture(),
            seed=seed,
            device=s.device,
        )


class DQNExplorer(_Agent):
    """DQN on the flat action space, one action per cell, with settings that let it learn.

    The authors' released agents were saved before their first update (learning_starts beyond the run); here it is
    explicit and a run without updates is an error.
    """

    name, flat = "dqn", True
    Settings = DQNSettings

    def _build(self, env: ConceptVecEnv, prober: Prober, seed: int) -> BaseAlgorithm:
        s = self.settings
        assert isinstance(s, DQNSettings)
        if prober.space.n_cells > s.max_cells:
            raise UsageError(
                f"explorer dqn has one output per cell and this grid has {prober.space.n_cells:,} cells, more than"
                f" settings.max_cells = {s.max_cells:,}: take ppo, or fewer concepts or levels"
            )
        return DQN(
            "MlpPolicy",
            env,
            learning_rate=s.learning_rate,
            buffer_size=max(s.buffer_size, s.n_envs),
            learning_starts=s.learning_starts,
            batch_size=s.batch_size,
            gamma=0.0,
            train_freq=1,
            gradient_steps=s.gradient_steps,
            target_update_interval=s.target_update_interval,
            # The schedule runs over the budget, not over the much larger limit given to learn().
            exploration_fraction=s.exploration_fraction / PATIENCE,
            exploration_final_eps=s.exploration_final_eps,
            policy_kwargs=self._architecture(),
            seed=seed,
            device=s.device,
        )
