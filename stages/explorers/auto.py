"""`auto`: model-based search, or random draws where there is too little to learn from."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from stages.explorers.baselines import Random
from stages.explorers.contract import Explorer, Found
from stages.explorers.model_based import Goal, ModelBased, ModelBasedSettings
from stages.explorers.prober import Prober
from stages.params import Strict

FEW = 200  # probes; half of them are uniform in any search that learns from its probes


class Choice(NamedTuple):
    """An explorer by name, and why it is the one."""

    explorer: str
    why: str


class AutoSettings(Strict):
    """What the search is for; the rest is chosen."""

    goal: Goal = Field(
        "places",
        description="places: failures in many places; failures: as many as possible; landscape: half of the probes"
        " uniform, for the rates",
    )


def choose(budget: int) -> Choice:
    """Choose an explorer for so many unique probes, on whatever grid."""
    if budget < FEW:
        return Choice(Random.name, f"{budget:,} probes are too few to learn from")
    return Choice(ModelBased.name, f"{budget:,} probes are enough to learn where failures lie")


class Auto:
    """Chooses by `choose` and lets the chosen one explore.

    Args:
        settings: what the search is for.
        budget: unique probes to choose by; the prober's own by default. Shares of one search choose by that of all.
    """

    name = "auto"
    Settings = AutoSettings

    def __init__(self, settings: AutoSettings | None = None, budget: int | None = None) -> None:
        self.settings, self.budget = settings or AutoSettings(), budget

    def explore(self, prober: Prober, seed: int) -> Found:
        """Let the chosen explorer spend the budget; `details` say which and why."""
        choice = choose(self.budget or prober.budget)
        learns = choice.explorer == ModelBased.name
        explorer: Explorer = ModelBased(ModelBasedSettings(goal=self.settings.goal)) if learns else Random()
        found = explorer.explore(prober, seed)
        return Found(found.policy, {"chosen": choice.explorer, "why": choice.why, **found.details})
