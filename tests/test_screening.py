"""Screening on tasks with planted weaknesses: each concept alone, by groups of items, and whether it has an effect."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from flows.choosing import run_prepare
from flows.graph import Graph, Stage
from flows.run_stage import StageResult
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import FadedError, UsageError
from stages.screening.sweep import Sweep, fewest_probes, sweep
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Items, ProbeBatch
from tests.finished import faded
from tests.workspace import Workspace, audit_params, make_workspace

LEVELS = {"tilt": [0, 10, 20, 30, 40], "haze": [0, 1, 2, 3], "word": ["", "please", "now"]}
KINDS = tuple("abcdefghij")
WEAK = "d"


class Labelled(LoadedTask):
    """Items of ten labels in turn, numbered by the last three digits of their ids."""

    threshold = 0.5
    catalogue: Mapping[str, Any] = {name: SimpleNamespace(low=0, high=100) for name in ("tilt", "haze")}

    def __init__(self, levels: Mapping[str, Sequence[Any]], items: int = 200) -> None:
        concepts = [
            Concept(name, tuple(values), neutral=values[0], ordered=not isinstance(values[0], str))
            for name, values in levels.items()
        ]
        self.concepts = ConceptSpace(tuple(concepts))
        numbers = range(items)
        table = {"id": [f"item-{i:03d}" for i in numbers], "label": [KINDS[i % len(KINDS)] for i in numbers]}
        self.items = Items(pd.DataFrame({**table, "split": "discover"}))
        self.asked: list[tuple[str, tuple[Any, ...]]] = []

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        return self.items.table.set_index("id").loc[list(item_ids), ["label"]].reset_index(drop=True)

    def discrepancy(self, number: int, levels: dict[str, Any]) -> float:
        """The discrepancy of an item at these levels."""
        raise NotImplementedError

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        found = []
        for item, cell in zip(item_ids, cells, strict=True):
            levels = {c.name: c.levels[i] for c, i in zip(self.concepts.concepts, cell, strict=True)}
            self.asked.append((item, tuple(levels.values())))
            found.append(self.discrepancy(int(item[-3:]), levels))
        values = np.array(found, dtype=np.float32)
        return ProbeBatch(values, values > self.threshold, [""] * len(values))


class Planted(Labelled):
    """Items of one kind fail when tilted by 20 or more, one in ten at the strongest haze; no word matters."""

    def __init__(self, levels: Mapping[str, Sequence[Any]], *, items: int = 200, breaks: float = 99) -> None:
        super().__init__(levels, items)
        self.breaks = breaks

    def discrepancy(self, number: int, levels: dict[str, Any]) -> float:
        weak = KINDS[number % len(KINDS)] == WEAK and levels["tilt"] >= 20
        return float(weak or levels["tilt"] > self.breaks or (levels["haze"] >= 3 and number // 10 % 10 == 0))


class Weighted(Labelled):
    """The discrepancy of an item plus the sum of what each level adds, by weight of its value or by its name.

    By the noise it also varies with item and cell, which a concept without weight then redraws.
    """

    def __init__(
        self, levels: Mapping[str, Sequence[Any]], weights: Mapping[str, float], noise: float, seed: int = 0
    ) -> None:
        super().__init__(levels)
        self.weights, self.noise, self.seed = weights, noise, seed

    def discrepancy(self, number: int, levels: dict[str, Any]) -> float:
        cell = [c.levels.index(level) for c, level in zip(self.concepts.concepts, levels.values(), strict=True)]
        added = self.noise * np.random.default_rng([self.seed, number, *cell]).normal()
        for name, level in levels.items():
            key, times = (f"{name}={level}", 1) if isinstance(level, str) else (name, level)
            added += self.weights.get(key, 0.0) * times
        return float(0.2 * np.sin(1.7 * number) + added)


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
    assert {KINDS[int(item[-3:]) % 10] for item, cell in task.asked if cell[0] == 40} == set(KINDS)
    strongest, weaker = tilt.rates[-1].n, [rate.n for rate in tilt.rates[1:-1]]
    assert all(1.5 < strongest / n < 2.5 for n in weaker)


def test_a_range_in_which_nearly_everything_fails_gets_finer_levels_near_the_neutral_one():
    found, _ = swept(breaks=4)
    tilt = found.concepts[0]
    assert tilt.finer and tilt.levels == (0, 2, 5, 8, 10) and [rate.value for rate in tilt.rates] == [0, 0, 1, 1, 1]
    assert not any(concept.finer for concept in found.concepts[1:]) and found.probes <= 1000


def test_a_concept_that_goes_both_ways_is_swept_on_both_sides_of_its_neutral_level():
    class Turned(Planted):
        """Items of one kind fail when tilted back by 20 or more."""

        catalogue: Mapping[str, Any] = {"tilt": SimpleNamespace(low=-100, high=100)}

        def __init__(self, levels: Mapping[str, Sequence[Any]], breaks: float) -> None:
            super().__init__(levels, breaks=breaks)
            tilt, *others = self.concepts.concepts
            self.concepts = ConceptSpace((replace(tilt, neutral=0), *others))

        def discrepancy(self, number: int, levels: dict[str, Any]) -> float:
            back = max(0, -levels["tilt"])
            return super().discrepancy(number, levels | {"tilt": back})

    levels = {**LEVELS, "tilt": [-40, -20, 0, 20, 40]}
    tilt = sweep(lambda levels: Turned(levels, 99), levels, 1000, seed=3).concepts[0]
    assert tilt.base == 2 and tilt.worst is not None
    assert (tilt.worst.value, tilt.worst.level, tilt.worst.rate.value) == (WEAK, "-40", 1.0)
    assert [rate.value > 0 for rate in tilt.rates] == [True, True, False, False, False]
    assert tilt.said == f"-40: {tilt.rates[0].value:.0%} fail, label {WEAK} 100%"
    sides = [rate.n for rate in tilt.rates if rate is not tilt.rates[tilt.base]]
    assert all(1.5 < sides[end] / n < 2.5 for end in (0, -1) for n in sides[1:3])
    one_side = sweep(lambda levels: Turned(levels, 4), levels, 1000, seed=3).concepts[0]
    assert not one_side.finer, "half of the weakest levels break nothing"

    class Fragile(Turned):
        def discrepancy(self, number: int, levels: dict[str, Any]) -> float:
            return super().discrepancy(number, levels | {"tilt": -abs(levels["tilt"])})

    finer = sweep(lambda levels: Fragile(levels, 4), levels, 1000, seed=3).concepts[0]
    assert finer.finer and finer.levels == (-5, -2, 0, 2, 5), finer.levels


def test_it_keeps_to_its_budget_and_refuses_one_that_is_too_small():
    assert fewest_probes(3) == 40
    found, _ = swept(40)
    assert found.probes <= 40 and found.items == 10
    with pytest.raises(UsageError, match="39 probes are too few for 3 concepts: expected 40 or more"):
        swept(39)


def test_an_effect_is_told_with_its_size_and_none_where_there_is_none() -> None:
    levels = {"tilt": [0, 10, 20], "light": ["day", "dusk", "night"], "idle": [-1, 0, 1]}
    weights = {"tilt": 0.014, "light=dusk": -0.1, "light=night": 0.6}
    found = sweep(lambda levels: Weighted(levels, weights, 0.05), levels, 800, seed=1)
    tilt, light, idle = found.concepts
    assert [concept.verdict for concept in found.concepts] == ["effect", "effect", "no larger effect"]
    assert (tilt.harmful, light.harmful, idle.harmful) == ([10, 20], ["night"], [])
    for concept, truth in ((tilt, [0, 0.14, 0.28]), (light, [0, -0.1, 0.6]), (idle, [0, 0, 0])):
        for change, true in zip(concept.changes, truth, strict=True):
            assert change.n == 0 or change.low <= true <= change.high
    assert light.changes[1].high < 0
    few = sweep(lambda levels: Weighted(levels, {}, 0.3), levels, 40, seed=1)
    assert {concept.verdict for concept in few.concepts} == {"not known"}


def test_a_killed_sweep_goes_on_from_its_ledgers_and_ends_alike(tmp_path) -> None:
    tasks: list[Planted] = []

    def load(levels: Mapping[str, Sequence[Any]]) -> Planted:
        tasks.append(Planted(levels, breaks=4))
        return tasks[-1]

    def killed(spent: int, _purpose: str) -> None:
        if spent > 400:
            raise KeyboardInterrupt

    def ledger(levels: Mapping[str, Sequence[Any]]) -> Path:
        return tmp_path / f"{abs(hash(repr({k: list(v) for k, v in levels.items()})))}.jsonl"

    def again(**how: Any) -> Sweep:
        return sweep(load, LEVELS, 600, seed=1, **how)

    with pytest.raises(KeyboardInterrupt):
        again(ledger=ledger, tell=killed)
    resumed = again(ledger=ledger)
    assert sum(len(task.asked) for task in tasks) == resumed.probes <= 600 and resumed == again()


def test_an_error_of_prepare_is_printed_only_where_none_is_raised(monkeypatch):
    prepare = Stage("prepare@tiny", "prepare", "tiny", 0, (), None, ("never ran",))

    def told(error: FadedError | None) -> str:
        def run(stage: str, say: Callable[[str], None]) -> StageResult:
            for line in ("reads", "error: no model", "in the folder"):
                say(line)
            if error is not None:
                raise error
            return StageResult(stage=stage, outcome="ran")

        monkeypatch.setattr("flows.choosing.run_stage", run)
        console = Console(file=io.StringIO())
        with nullcontext() if error is None else pytest.raises(UsageError):
            run_prepare("tiny", console)
        return console.file.getvalue()

    monkeypatch.setattr("flows.choosing.read_graph", lambda: Graph({prepare.name: prepare}))
    monkeypatch.setattr("flows.choosing.record_timings", lambda _: None)
    assert told(None).endswith("reads\nerror: no model\nin the folder\n")
    assert told(UsageError("no model in the folder")).endswith("reads\n")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """One audit with a concept that has no effect at all."""
    audit = audit_params(concepts={"tilt": [0, 1, 2, 3], "haze": [0, 1], "fog": [0, 1, 2, 3]})
    regions = [{"tilt": [3, 3]}]
    audit["prepare"] |= {"items": {"discover": 60, "test": 10}, "noise": 0.0, "regions": regions}
    return make_workspace(tmp_path_factory.mktemp("screen") / "ws", {"tiny": audit}, {})


@pytest.mark.slow
def test_screen_prepares_and_measures_and_changes_nothing(workspace: Workspace) -> None:
    path = workspace.path / "params.yaml"
    before = path.read_text()
    code, told = faded(workspace, "screen", "--probes", "400")
    assert code == 0, told
    assert "prepare@tiny is not up to date, so it runs first" in told and "400 probes at most" in told
    rows = {line.split()[0]: line for line in told.splitlines() if line.split()}
    assert "1:0%" in rows["haze"] and "effect" not in rows["haze"].replace("no larger effect", "")
    assert "3:100%" in rows["tilt"] and " at 3" in rows["tilt"]
    assert path.read_text() == before
    assert "tilt" in (workspace.path / ".faded/screen/tiny.html").read_text()
