"""Baselines an agent has to beat at the same budget, and plain enumeration for grids small enough."""

from __future__ import annotations

import numpy as np

from stages.explorers.contract import Found
from stages.explorers.prober import Prober
from stages.params import Strict

BATCH = 256


class NoSettings(Strict):
    """Takes no settings."""


class Random:
    """Uniform draws of item and cell: the control of every run, and the unbiased part of the landscape."""

    name = "random"
    Settings = NoSettings

    def __init__(self, settings: NoSettings | None = None) -> None:
        self.settings = settings or NoSettings()

    def explore(self, prober: Prober, seed: int) -> Found:
        """Draw until the budget is spent; repeated draws cost nothing and are drawn again."""
        rng = np.random.default_rng(seed)
        while prober.left > 0:
            n = min(BATCH, prober.left)
            prober.ask(rng.integers(len(prober.item_ids), size=n), prober.space.sample(n, rng))
        return Found()


class Exhaustive:
    """Every item under every cell, where the budget allows it: no estimate is needed then."""

    name = "exhaustive"
    Settings = NoSettings

    def __init__(self, settings: NoSettings | None = None) -> None:
        self.settings = settings or NoSettings()

    def explore(self, prober: Prober, seed: int) -> Found:
        """Ask about all pairs, item by item, until they or the budget end."""
        cells = prober.space.cells()
        for item in range(len(prober.item_ids)):
            if prober.left <= 0:
                break
            prober.ask(np.full(len(cells), item), cells)
        return Found()
