"""`auto`: the explorer the study shows to be best for the size of the grid and the budget (docs/study.md)."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from stages.explorers.contract import Found
from stages.explorers.prober import Prober
from stages.params import Strict

FEW = 200  # probes: fewer than any surrogate learns from


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
    """Choose an explorer for a grid of so many cells and so many unique probes."""
    if budget < FEW:
        return Choice("random", f"a budget of {budget:,} is too small for any explorer to learn from")
    return Choice("model_based", "")


class Auto:
    """Chooses by `choose` and lets the chosen one explore."""

    name = "auto"
    Settings = AutoSettings

    def __init__(self, settings: AutoSettings | None = None) -> None:
        self.settings = settings or AutoSettings()

    def explore(self, prober: Prober, seed: int) -> Found:
        """Let the chosen explorer spend the budget; `details` say which and why."""
        from stages.explorers.registry import make_explorer

        choice = choose(prober.space.n_cells, prober.budget)
        settings = {} if choice.explorer == "random" else {"goal": self.settings.goal}
        found = make_explorer(choice.explorer, settings).explore(prober, seed)
        return Found(found.policy, {"chosen": choice.explorer, "why": choice.why, **found.details})
