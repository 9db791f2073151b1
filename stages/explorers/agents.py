"""Deep RL agents from Stable-Baselines3 and SB3-Contrib, model-free and with episodes of one step.

On-policy agents (PPO, A2C, TRPO) make one choice per concept, so the grid may have any size. Value-based agents (DQN,
the paper's, and QR-DQN) have one output per cell, so they need small grids. Settings with the names of SB3's arguments
are passed on to it.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator
from sb3_contrib import QRDQN, TRPO
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy

from stages.core.errors import NoLearningError, UsageError
from stages.explorers.baselines import Random
from stages.explorers.contract import Configured, ExplorerResult
from stages.explorers.env import Arena, ConceptVecEnv, Reward, RewardConfig, StopWhenSpent
from stages.explorers.policy import FactoredPolicy, ValuePolicy
from stages.explorers.prober import Prober
from stages.params import Strict

PATIENCE = 20  # steps per unique probe of the budget after which an agent is considered stuck


class AgentSettings(Strict):
    """Settings that all agents share."""

    n_envs: int = Field(64, ge=1, le=1_000_000, description="items probed in one step")
    reward: RewardConfig = Field(RewardConfig(), description="what the agent is paid for, see stages/explorers/env")
    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        max_length=8, default=[64, 64], description="units of the hidden layers"
    )
    learning_rate: float = Field(1e-3, gt=0)
    device: Literal["cpu"] = Field("cpu", description="agents are tiny: a CPU is quicker than moving them")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of SB3's constructor."""
        return self.model_dump(exclude={"n_envs", "reward", "hidden", "max_cells", "n_quantiles"})

    def architecture(self) -> dict[str, Any]:
        """Return the arguments of SB3's policy class, which `load_policy` needs too."""
        return {"net_arch": list(self.hidden)}


class OnPolicySettings(AgentSettings):
    """Agents that learn from their latest probes and then discard them."""

    n_envs: int = Field(32, ge=1, le=1_000_000, description="items probed in one step")
    learning_rate: float = Field(3e-3, gt=0)
    n_steps: int = Field(1, ge=1, le=1_000_000, description="steps of all environments between two updates")

    @model_validator(mode="after")
    def _enough_to_normalise(self) -> Self:
        if self.n_envs * self.n_steps < 2:
            raise ValueError(f"n_envs * n_steps must be at least 2, found {self.n_envs} * {self.n_steps}")
        return self

    def arguments(self) -> dict[str, Any]:
        """See AgentSettings; a batch is at most as large as the probes of an update."""
        arguments = {**super().arguments(), "gae_lambda": 1.0}  # one-step episodes have nothing to bootstrap from
        if "batch_size" in arguments:
            arguments["batch_size"] = min(arguments["batch_size"], self.n_envs * self.n_steps)
        return arguments


class PPOSettings(OnPolicySettings):
    """PPO (Schulman et al. 2017)."""

    n_epochs: int = Field(10, ge=1, le=10_000, description="passes over the probes of an update")
    batch_size: int = Field(64, ge=2, le=1_000_000, description="probes in one gradient step")
    ent_coef: float = Field(0.02, ge=0, description="entropy bonus: higher explores more, finds fewer")


class A2CSettings(OnPolicySettings):
    """A2C (Mnih et al. 2016): one gradient step instead of PPO's many."""

    ent_coef: float = Field(0.05, ge=0, description="entropy bonus: higher explores more, finds fewer")
    normalize_advantage: bool = Field(True, description="scale the advantages of an update to unit variance")


class TRPOSettings(OnPolicySettings):
    """TRPO (Schulman et al. 2015): the largest update within a bound on the change of the policy."""

    batch_size: int = Field(64, ge=2, le=1_000_000, description="probes in one gradient step of the critic")
    target_kl: float = Field(0.05, gt=0, description="bound on the Kullback-Leibler divergence of one update")


class DQNSettings(AgentSettings):
    """DQN (Mnih et al. 2015), the paper's agent."""

    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        max_length=8, default=[128, 128], description="units of the hidden layers"
    )
    buffer_size: int = Field(50_000, ge=1, le=1_000_000)
    learning_starts: int = Field(
        256, ge=1, le=1_000_000, description="probes before the first update; explicit, so that updates happen"
    )
    batch_size: int = Field(64, ge=1, le=1_000_000)
    gradient_steps: int = Field(16, ge=1, le=1_000_000, description="updates per step of all environments")
    target_update_interval: int = Field(512, ge=1, le=1_000_000)
    exploration_fraction: float = Field(0.5, gt=0, le=1, description="share of the budget over which it explores less")
    exploration_final_eps: float = Field(0.1, ge=0, le=1)
    max_cells: int = Field(20_000, description="largest grid it is used on: one output unit per cell")

    def arguments(self) -> dict[str, Any]:
        """See AgentSettings; the schedule covers the budget, not the much larger limit passed to learn()."""
        return {
            **super().arguments(),
            "buffer_size": max(self.buffer_size, self.n_envs),
            "exploration_fraction": self.exploration_fraction / PATIENCE,
            "train_freq": 1,
        }


class QRDQNSettings(DQNSettings):
    """QR-DQN (Dabney et al. 2018): learns quantiles of the reward instead of its mean."""

    gradient_steps: int = Field(8, ge=1, le=1_000_000, description="updates per step of all environments")
    n_quantiles: int = Field(5, ge=1, le=1_000_000, description="quantiles of each cell, so outputs per cell")
    max_cells: int = Field(5_000, description="largest grid it is used on: n_quantiles output units per cell")

    def architecture(self) -> dict[str, Any]:
        return {**super().architecture(), "n_quantiles": self.n_quantiles}


class _Agent(Configured[AgentSettings]):
    """Learns until the budget is spent, fills the rest at random, and refuses to return an untrained policy."""

    algorithm: ClassVar[Callable[..., BaseAlgorithm]]  # an algorithm class of SB3
    flat: ClassVar[bool] = False  # one action, and so one network output, per cell instead of one choice per concept
    # SB3's, but fused; A2C replaces it by its own RMSprop.
    adam: ClassVar[dict[str, Any]] = {"fused": True, "eps": 1e-5}

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Learn on the prober until its budget is spent.

        Raises a NoLearningError if the budget was too small for a single gradient update, and a UsageError if the grid
        has more cells than the agent may have outputs.
        """
        settings = self.settings
        if self.flat:
            self._require_few_cells(prober)
        arena = Arena(prober, Reward(prober.space, prober.task.threshold, settings.reward), self.flat)
        model = self.algorithm(
            "MlpPolicy",
            ConceptVecEnv(arena, settings.n_envs, seed),
            gamma=0.0,  # episodes are one step long
            policy_kwargs={**settings.architecture(), "optimizer_kwargs": dict(self.adam)},
            seed=seed,
            **settings.arguments(),
        )
        model.learn(total_timesteps=PATIENCE * prober.budget, callback=StopWhenSpent(prober, prober.budget))
        updates = int(getattr(model, "_n_updates", 0))
        if updates == 0:
            raise NoLearningError(
                f"{self.name} made no gradient update within its budget of {prober.budget} probes:"
                f" raise discover.budget, or lower n_envs ({settings.n_envs}), n_steps or learning_starts"
                " in discover.settings"
            )
        learnt = prober.spent
        if prober.left > 0:  # it only repeated itself: the rest is spent at random and reported
            Random().explore(prober, seed)
        network = cast(ActorCriticPolicy | DQNPolicy | QRDQNPolicy, model.policy)
        kind = ValuePolicy if self.flat else FactoredPolicy
        policy = kind(self.name, network, arena.normaliser, prober.space, settings.architecture())
        details = {
            "gradient_updates": updates,
            "steps": int(model.num_timesteps),
            "filled_at_random": prober.spent - learnt,
        }
        return ExplorerResult(policy, details)

    def _require_few_cells(self, prober: Prober) -> None:
        settings = cast(DQNSettings, self.settings)
        if prober.space.n_cells > settings.max_cells:
            raise UsageError(
                f"explorer {self.name} has outputs for every cell and this grid has {prober.space.n_cells:,} cells,"
                f" more than settings.max_cells = {settings.max_cells:,}: take ppo, or fewer concepts or levels"
            )


class PPOExplorer(_Agent):
    """PPO on the factored action space: one categorical choice per concept."""

    name, Settings, algorithm = "ppo", PPOSettings, PPO


class A2CExplorer(_Agent):
    """A2C on the factored action space."""

    name, Settings, algorithm = "a2c", A2CSettings, A2C


class TRPOExplorer(_Agent):
    """TRPO on the factored action space."""

    name, Settings, algorithm = "trpo", TRPOSettings, TRPO


class DQNExplorer(_Agent):
    """DQN with settings that let it learn.

    The authors' released agents were saved before their first update (learning_starts beyond the run). Here the setting
    is explicit, and a run without updates is an error.
    """

    name, Settings, algorithm = "dqn", DQNSettings, DQN
    flat, adam = True, {"fused": True}


class QRDQNExplorer(_Agent):
    """QR-DQN with the same settings as DQN, apart from its quantiles."""

    name, Settings, algorithm = "qrdqn", QRDQNSettings, QRDQN
    flat, adam = True, {"fused": True}
