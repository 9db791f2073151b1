"""`auto`: random draws, local search or a learnt policy, by what the study shows for grid and budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from pydantic import Field

from stages.explorers.baselines import Random
from stages.explorers.contract import Explorer, Found
from stages.explorers.model_based import LocalSearch, ModelBased, ModelBasedSettings, RivalSettings
from stages.explorers.prober import Prober
from stages.explorers.surrogate import PROCESS_CELLS
from stages.params import Strict

FEW = 200  # probes; half of them are uniform in any search that learns from its probes


class Choice(NamedTuple):
    """An explorer by name, and why it is the one."""

    explorer: str
    why: str


class AutoSettings(Strict):
    """What the search is for; the rest is chosen."""

    goal: Literal["landscape", "failures"] = Field(
        "landscape", description="landscape keeps more probes uniform, which makes rates more certain; failures fewer"
    )


def choose(n_cells: int, budget: int) -> Choice:
    """Choose an explorer for a grid of so many cells and so many unique probes.

    In the study, local search on the surrogate finds as much as a policy trained inside it wherever cells can all be
    ranked, for less computing; on larger grids the policy finds more failures.
    """
    if budget < FEW:
        return Choice(Random.name, f"{budget:,} probes are too few to learn from")
    if n_cells <= PROCESS_CELLS:
        return Choice(LocalSearch.name, f"on {n_cells:,} cells it finds what a learnt policy finds, for less computing")
    return Choice(ModelBased.name, f"on {n_cells:,} cells a learnt policy finds more failures than local search")


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
        choice = choose(prober.space.n_cells, self.budget or prober.budget)
        goal = self.settings.goal
        explorers: dict[str, Callable[[], Explorer]] = {
            Random.name: Random,
            LocalSearch.name: lambda: LocalSearch(RivalSettings(goal=goal)),
            ModelBased.name: lambda: ModelBased(ModelBasedSettings(goal=goal)),
        }
        found = explorers[choice.explorer]().explore(prober, seed)
        return Found(found.policy, {"chosen": choice.explorer, "why": choice.why, **found.details})
