"""The sweep of `faded init`, on tasks with planted weaknesses: each concept alone, by groups of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace
from stages.errors import UsageError
from stages.screening.sweep import Sweep, fewest_probes, sweep
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Items, ProbeBatch

LEVELS = {"tilt": [0, 10, 20, 30, 40], "haze": [0, 1, 2, 3], "word": ["", "please", "now"]}
KINDS = tuple("abcdefghij")
WEAK = "d"


class Planted(LoadedTask):
    """Items of one kind fail when tilted by 20 or more, one in ten at the strongest haze; no word matters."""

    threshold = 0.5
    catalogue: Mapping[str, Any] = {name: SimpleNamespace(low=0, high=100) for name in ("tilt", "haze")}

    def __init__(self, levels: Mapping[str, Sequence[Any]], *, items: int = 200, breaks: float = 99) -> None:
        self.concepts = ConceptSpace(
            tuple(
                Concept(name, tuple(values), neutral=values[0], ordered=not isinstance(values[0], str))
                for name, values in levels.items()
            )
        )
        ids = [f"item-{i:03d}" for i in range(items)]
        kinds = [KINDS[i % len(KINDS)] for i in range(items)]
        self.items = Items(pd.DataFrame({"id": ids, "split": "discover", "label": kinds}))
        self.breaks, self.asked = breaks, list[tuple[str, tuple[Any, ...]]]()

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        return self.items.table.set_index("id").loc[list(item_ids), ["label"]].reset_index(drop=True)

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        failed = []
        for item, cell in zip(item_ids, cells, strict=True):
            levels = [c.levels[i] for c, i in zip(self.concepts.concepts, cell, strict=True)]
            self.asked.append((item, tuple(levels)))
            number, named = int(item[-3:]), dict(zip(self.concepts.names, levels, strict=True))
            weak = KINDS[number % len(KINDS)] == WEAK and named["tilt"] >= 20
            broken = named["tilt"] > self.breaks
            failed.append(weak or broken or (named["haze"] >= 3 and number // 10 % 10 == 0))
        return ProbeBatch(np.array(failed, dtype=np.float32), np.array(failed), [""] * len(failed))


def swept(budget: int = 1000, levels: Mapping[str, Sequence[Any]] = LEVELS, **how: Any) -> tuple[Sweep, list[Planted]]:
    """A sweep, and the tasks that were loaded for it."""
    loaded: list[Planted] = []

    def load(levels: Mapping[str, Sequence[Any]]) -> Planted:
        loaded.append(Planted(levels, **how))
        return loaded[-1]

    return sweep(load, levels, budget, seed=3), loaded


def test_the_kind_of_items_that_fails_is_named_with_its_concept_and_no_other():
    found, (task,) = swept()
    tilt, haze, word = found.concepts
    assert found.probes <= 1000 and found.items == 200 and found.clean.value == 0
    assert found.levels == LEVELS
    assert tilt.worst is not None and (tilt.worst.attribute, tilt.worst.value) == ("label", WEAK)
    assert (tilt.worst.level, tilt.worst.rate.value, tilt.worst.others.value) == ("40", 1.0, 0.0)
    assert [rate.value > 0 for rate in tilt.rates] == [False, False, True, True, True]
    assert tilt.said == f"40: {tilt.rates[-1].value:.0%} fail, label {WEAK} 100%"
    assert haze.worst is None and word.worst is None
    assert haze.said == f"3: {haze.rates[-1].value:.0%} fail" and haze.rates[-1].value > 0
    # Nothing but one concept was changed, and each kind of items was probed at the strongest level.
    changed = [sum(a != b[0] for a, b in zip(cell, LEVELS.values(), strict=True)) for _, cell in task.asked]
    assert set(changed) == {0, 1}
    at_end = {KINDS[int(item[-3:]) % 10] for item, cell in task.asked if cell[0] == 40}
    assert at_end == set(KINDS)
    strongest, weaker = tilt.rates[-1].n, [rate.n for rate in tilt.rates[1:-1]]
    assert all(1.5 < strongest / n < 2.5 for n in weaker)


def test_few_items_are_probed_at_several_levels_each():
    found, (task,) = swept(items=40)
    assert found.items == 40 and len(set(task.asked)) == len(task.asked) == found.probes == 40 * (1 + 4 + 3 + 2)
    assert found.concepts[0].worst is not None and found.concepts[0].worst.value == WEAK


def test_a_range_in_which_nearly_everything_fails_gets_finer_levels_near_the_neutral_one():
    found, _ = swept(breaks=4)
    tilt = found.concepts[0]
    assert tilt.finer and tilt.levels == (0, 2, 5, 8, 10)
    assert [rate.value for rate in tilt.rates] == [0, 0, 1, 1, 1]
    assert not any(concept.finer for concept in found.concepts[1:]) and found.probes <= 1000


def test_it_keeps_to_its_budget_and_refuses_one_that_is_too_small():
    assert fewest_probes(3) == 40
    found, _ = swept(40)
    assert found.probes <= 40 and found.items == 10
    with pytest.raises(UsageError, match="39 probes are too few for 3 concepts: expected 40 or more"):
        swept(39)
