"""`auto`: model-based search, or random draws if the budget is too small to learn from."""

from __future__ import annotations

from typing import NamedTuple

from pydantic import Field

from stages.explorers.baselines import Random
from stages.explorers.contract import Explorer, Found
from stages.explorers.model_based import Goal, ModelBased, ModelBasedSettings
from stages.explorers.prober import Prober
from stages.params import Strict

FEW = 200  # probes; half of them are even in any search that learns from its probes


class Choice(NamedTuple):
    """The name of an explorer, and why it was chosen."""

    explorer: str
    why: str


class AutoSettings(Strict):
    """The goal of the search; everything else is chosen."""

    goal: Goal = Field(
        "places",
        description="places: failures in many places; failures: as many as possible; landscape: half of the probes"
        " drawn evenly, for the rates",
    )


def choose(budget: int) -> Choice:
    """Choose an explorer for a number of unique probes, on any grid."""
    if budget < FEW:
        return Choice(Random.name, f"{budget:,} probes are too few to learn from")
    return Choice(ModelBased.name, f"{budget:,} probes are enough to learn where failures lie")


class Auto:
    """Chooses an explorer by `choose` and runs it.

    Args:
        settings: the goal of the search.
        budget: unique probes to choose by; by default the prober's. Shares of one search use that of the whole search.
    """

    name = "auto"
    Settings = AutoSettings

    def __init__(self, settings: AutoSettings | None = None, budget: int | None = None) -> None:
        self.settings, self.budget = settings or AutoSettings(), budget

    def explore(self, prober: Prober, seed: int) -> Found:
        """Let the chosen explorer spend the budget; `details` contains its name and the reason."""
        choice = choose(self.budget or prober.budget)
        learns = choice.explorer == ModelBased.name
        explorer: Explorer = ModelBased(ModelBasedSettings(goal=self.settings.goal)) if learns else Random()
        found = explorer.explore(prober, seed)
        return Found(found.policy, {"chosen": choice.explorer, "why": choice.why, **found.details})
