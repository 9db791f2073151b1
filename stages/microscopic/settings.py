"""Settings of the agent that walks in small steps, in a separate file so that checking them does not import torch."""

from typing import Annotated

from pydantic import Field

from stages.params import MicroscopicConfig, Strict, checked


class WalkerSettings(Strict):
    """The agent of method rl: MaskablePPO of sb3-contrib (Huang and Ontañón 2022)."""

    training: float = Field(0.8, gt=0, lt=1, description="share of the budget that goes into learning")
    walks: int = Field(
        2, ge=1, le=1_000_000, description="walks of each item: the first takes the likeliest steps, others draw them"
    )
    bonus: float = Field(1.0, ge=0, description="reward of a failure")
    cost: float = Field(0.05, ge=0, description="cost of a step")
    n_envs: int = Field(32, ge=1, le=1_000_000, description="items walked at once")
    n_steps: int = Field(16, ge=1, le=1_000_000, description="steps of all environments between two updates")
    n_epochs: int = Field(10, ge=1, le=10_000)
    batch_size: int = Field(128, ge=2, le=1_000_000)
    learning_rate: float = Field(1e-3, gt=0)
    ent_coef: float = Field(0.003, ge=0, description="entropy bonus")
    gamma: float = Field(0.9, gt=0, le=1, description="discount")
    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        max_length=8, default=[64, 64], description="units of the hidden layers"
    )


def agent_settings(config: MicroscopicConfig) -> WalkerSettings:
    """Return the settings of method rl. Raises a UsageError with those that are wrong."""
    return checked(WalkerSettings, config.settings, "discover.microscopic.settings")
