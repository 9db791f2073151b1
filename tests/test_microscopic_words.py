"""Microscopic exploration of prompts: the fewest words that make a model fail, on tasks where these are planted."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from stages.concepts import ConceptSpace
from stages.concepts.prompts import prompt_space
from stages.microscopic.search import RobustnessResult, measure_robustness
from stages.params import DiscoverConfig, MicroscopicConfig
from stages.tasks.contract import Items, ProbeBatch
from tests.planted import PlantedTask

SPACE = prompt_space(
    {
        "digit": ["digit", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        "colour": ["", "red", "green", "blue", "yellow", "purple", "orange"],
        "size": ["", "small", "large"],
        "background": ["", *(f"on a {name} background" for name in ("black", "white", "gray", "pink"))],
    }
)
Words = dict[str, str]
FOUR_ON_BLACK: Words = {"digit": "four", "background": "on a black background"}
SMALL_THREE: Words = {"size": "small", "digit": "three"}


def cell(words: Words, space: ConceptSpace = SPACE) -> list[int]:
    return [c.levels.index(words.get(c.name, c.neutral)) for c in space.concepts]


def said(row: pd.Series) -> Words:
    return {c.name: str(c.levels[row[c.name]]) for c in SPACE.concepts if row[c.name] != c.levels.index(c.neutral)}


class Wordy(PlantedTask):
    """Fails if a prompt contains all words of one of its item's sets; margins do not show which words matter."""

    def __init__(self, sets: list[Words] | list[list[Words]], items: int = 25, space: ConceptSpace = SPACE) -> None:
        table = pd.DataFrame({"id": [f"i{k:03d}" for k in range(items)], "split": "discover", "label": "0"})
        super().__init__(Items(table), space, {"regions": [], "noise": 0.0}, seed=0)
        self._sets = sets if isinstance(sets[0], list) else [sets] * items

    def probe(self, item_ids: list[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        margins = np.abs(super().probe(item_ids, cells, repeats).discrepancy)
        failed = np.array([self._fails(self._rows[i], c) for i, c in zip(item_ids, np.asarray(cells), strict=True)])
        return ProbeBatch(np.where(failed, margins, -margins), failed, [""] * len(failed))

    def _fails(self, item: int, levels: np.ndarray) -> bool:
        prompt = {c.name: c.levels[int(level)] for c, level in zip(self.concepts.concepts, levels, strict=True)}
        return any(words.items() <= prompt.items() for words in self._sets[item])


def explore(task: Wordy, each: int, method: str = "beam") -> RobustnessResult:
    items = task.items.ids("discover")
    steps = MicroscopicConfig.model_validate({"method": method, "items": 25, "budget": each * 25})
    return measure_robustness(task, items, DiscoverConfig(budget=10, microscopic=steps), seed=0)


def assert_minimal(task: Wordy, table: pd.DataFrame) -> None:
    """Check that reported words fail, and that every strict subset of them passes."""
    for _, row in table[table["status"] == "found"].iterrows():
        words = said(row)
        assert row["radius"] == len(words) and task.probe([row["item"]], np.array([cell(words)])).failed.all()
        fewer = [cell(dict(part)) for n in range(len(words)) for part in combinations(words.items(), n)]
        assert not task.probe([row["item"]] * len(fewer), np.array(fewer)).failed.any(), words


@pytest.mark.parametrize(("method", "each"), [("beam", 30), ("exact", 30), ("rl", 120)])
def test_planted_pairs_of_words_are_found_exactly(method: str, each: int) -> None:
    task = Wordy([FOUR_ON_BLACK, SMALL_THREE], items=40 if method == "rl" else 25)
    found = explore(task, each, method)
    assert (found.table["status"] == "found").all() and found.metrics["probes"] <= 25 * each
    assert all(said(row) in (FOUR_ON_BLACK, SMALL_THREE) for _, row in found.table.iterrows())
    assert_minimal(task, found.table)


def test_items_that_each_fail_on_other_words_are_found_one_by_one() -> None:
    rng = np.random.default_rng(0)
    own = []
    for _ in range(25):
        two = rng.choice(4, 2, replace=False)
        own.append([{SPACE.names[j]: str(SPACE.concepts[j].levels[rng.integers(1, SPACE.sizes[j])]) for j in two}])
    task = Wordy(own)
    found = explore(task, 100).table
    assert (found["status"] == "found").mean() > 0.9
    assert_minimal(task, found)
    assert all(said(row) in own[task._rows[row["item"]]] for _, row in found[found["status"] == "found"].iterrows())
