"""How often intervals of rates in use contain the truth: `python -m benchmarks.usage_coverage` prints a table.

Each row is a scenario: a grid, how often its cells occur in use, and how often each fails over all items there could
be. In every simulation some of these items and the answers of all their pairs are drawn, then an audit's control draws
its probes, and the interval either contains the rate of all items or not. 300 simulations of each take 90 seconds.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from scipy.special import expit

from stages.concepts import Concept, ConceptSpace, Region
from stages.concepts.usage import Usage
from stages.explorers.baselines import Random
from stages.explorers.prober import Prober
from stages.landscape.confirm import draw_inside, no_fresh
from stages.landscape.rates import rate_in_use
from stages.landscape.unshown import ShownMode, bound_unshown
from stages.params.usage import AnyUsage, CombinationConfig, UsageConfig, in_use

BUDGET = 1000
ROTATION = Concept("rotation", tuple(range(0, 90, 10)), unit="°", neutral=0)
FOG = Concept("fog", (0, 1, 2, 3, 4, 5), neutral=0)
NOISE = Concept("noise", (0, 1, 2, 3), neutral=0)
GREY = Concept("grey", ("no", "yes"), ordered=False, neutral="no")
GRID = ConceptSpace((ROTATION, FOG, NOISE, GREY))
WITHOUT_NEUTRAL = ConceptSpace((ROTATION, FOG, Concept("font", ("a", "b", "c"), ordered=False)))
SKEWED = UsageConfig(
    changes=[0.5, 0.3, 0.2],
    levels={"noise": {1: 90, 2: 9, 3: 1}},
    combinations=[CombinationConfig(share=0.05, levels={"rotation": 80, "fog": 5, "grey": "yes"})],
)
INDEPENDENT = UsageConfig(levels={"fog": {0: 0.8, 1: 0.1, 2: 0.06, 3: 0.04}, "grey": {"no": 0.7, "yes": 0.3}})


@dataclass(frozen=True)
class Scenario:
    """A grid in use, and how often each cell fails.

    Args:
        name: as in the table.
        space: the grid.
        usage: how often its cells occur.
        base: failure rate where nothing else is said.
        at: failure rates of cells with at least these levels (indices), by concept.
        items: number of items.
        spread: standard deviation of the items' own deviations, as logits.
        budget: probes of the control.
    """

    name: str
    base: float
    at: tuple[tuple[dict[str, int], float], ...] = ()
    space: ConceptSpace = GRID
    usage: AnyUsage = field(default_factory=UsageConfig)
    items: int = 200
    spread: float = 0.0
    budget: int = BUDGET


SCENARIOS = (
    Scenario("all cells fail alike, 10%", 0.1),
    Scenario("failures are rare, 0.5%", 0.005),
    Scenario("unchanged items never fail, all others half of the time", 0.5, (({}, 0.5),)),
    Scenario("one strong concept", 0.03, (({"rotation": 4}, 0.7),)),
    Scenario("a concept with a single level", 0.05, (({"grey": 1}, 0.6),)),
    Scenario("three concepts together", 0.02, (({"rotation": 4, "fog": 3, "noise": 2}, 0.9),)),
    Scenario("items differ", 0.1, (({"fog": 3}, 0.4),), spread=2.0),
    Scenario("few items, most pairs of few changes probed", 0.05, (({"grey": 1}, 0.6),), items=20),
    Scenario("more items than probes", 0.05, (({"grey": 1}, 0.6),), items=1000, budget=400),
    Scenario("few probes", 0.05, (({"rotation": 4}, 0.7),), budget=100),
    Scenario(
        "weights 90, 9 and 1, and a combination", 0.03, (({"noise": 3}, 0.9), ({"rotation": 8}, 0.8)), usage=SKEWED
    ),
    Scenario("independent concepts, stated", 0.05, (({"fog": 2}, 0.5),), usage=INDEPENDENT),
    Scenario("a concept that always says something", 0.05, (({"font": 2}, 0.4),), space=WITHOUT_NEUTRAL),
    Scenario("uniform", 0.05, (({"rotation": 4}, 0.5),), usage="uniform"),
    Scenario("failures are rare but in a corner, 0.05%", 0.0005, (({"rotation": 4, "fog": 3}, 0.5),)),
    Scenario("one level alone fails, and rarely", 1e-6, (({"rotation": 8}, 0.06), ({"rotation": 8, "noise": 1}, 0.0))),
)


class Simulation(NamedTuple):
    """One simulation: the control's probes, the answers of all pairs, and how often each cell fails over all items."""

    space: ConceptSpace
    probes: pd.DataFrame
    answers: np.ndarray  # (items, cells) bool
    rates: np.ndarray  # (cells,)

    def rate(self, usage: Usage | None = None) -> float:
        """Return the rate in use of all items there could be, by default in the use which the control drew for."""
        cells = self.space.cells()
        use = self.space.density(cells) if usage is None else usage.density(cells)
        return float(self.rates @ use)


class _Nobody:
    """Draws of a prober whose answers nobody needs."""

    def __init__(self, space: ConceptSpace, items: int, budget: int) -> None:
        self.space, self.item_ids = space, [f"i{k}" for k in range(items)]
        self.budget = min(budget, items * space.n_used)
        self.asked: dict[tuple[int, int], None] = {}

    @property
    def left(self) -> int:
        return self.budget - len(self.asked)

    def ask(self, items: np.ndarray, cells: np.ndarray, *, uniform: bool) -> None:
        for pair in zip(items.tolist(), self.space.flat(cells).tolist(), strict=True):
            if pair not in self.asked and self.left > 0:
                self.asked[pair] = None


def simulations(scenario: Scenario, count: int) -> Iterator[Simulation]:
    """Draw the answers of all pairs, and the control's probes of them, a number of times."""
    space = in_use(scenario.space, scenario.usage)
    cells = space.cells()
    rates = np.full(len(cells), scenario.base)
    for levels, rate in scenario.at:
        rates[np.all([cells[:, space.names.index(name)] >= level for name, level in levels.items()], axis=0)] = rate
    if space.neutral is not None and ({}, scenario.base) in scenario.at:
        rates[(cells == space.neutral).all(axis=1)] = 0.0
    logits = np.log(np.maximum(rates, 1e-12) / (1 - rates))
    spreads, shares = np.polynomial.hermite_e.hermegauss(40)
    rates = shares @ expit(logits + scenario.spread * spreads[:, None]) / shares.sum()
    for number in range(count):
        rng = np.random.default_rng([number, SCENARIOS.index(scenario)])
        own = logits + scenario.spread * rng.standard_normal((scenario.items, 1))
        answers = rng.random(own.shape) < expit(own)
        asker = _Nobody(space, scenario.items, scenario.budget)
        Random().explore(cast(Prober, asker), int(rng.integers(2**31)))
        items, numbers = np.array(list(asker.asked)).T
        probes = pd.DataFrame(space.cells(numbers), columns=space.names)
        probes = probes.assign(item=np.array(asker.item_ids)[items], failed=answers[items, numbers], role="control")
        yield Simulation(space, probes, answers, rates)


class Covered(NamedTuple):
    """How often the interval contains the truth, and how far off and how wide it is on average."""

    coverage: float
    bias: float
    deviation: float
    width: float
    rate: float


def coverage(scenario: Scenario, count: int) -> tuple[Covered, Covered]:
    """Measure the coverage of the rate in use over simulations, and of the rate if twice as much changed."""
    rows: tuple[list[tuple[float, ...]], list[tuple[float, ...]]] = ([], [])
    for drawn in simulations(scenario, count):
        failed, own = drawn.probes["failed"].to_numpy(dtype=bool), drawn.space.usage
        for found, usage in zip(rows, (None, None if own is None else own.times(2.0)), strict=True):
            rate, true = rate_in_use(drawn.space, failed, drawn.probes, usage=usage).rate, drawn.rate(usage)
            inside = rate.low - 1e-12 <= true <= rate.high + 1e-12
            found.append((float(inside), rate.value - true, rate.high - rate.low, true))
    return _covered(rows[0]), _covered(rows[1])


def unshown_coverage(scenario: Scenario, count: int, modes: int = 2) -> tuple[float, float, float]:
    """Measure how often the bound on failures outside of failure modes holds if modes are chosen as badly as possible.

    A mode is the box of one or two concepts, less than 30% of use, in which the control's own probes failed most: of
    some hundred boxes, the one that chance favoured. 120 fresh probes measure each.

    Returns:
        The share of simulations in which it holds, the mean bound, and the mean of what it bounds.
    """
    space = in_use(scenario.space, scenario.usage)
    cells, boxes = space.cells(), _boxes(space)
    rows, flat, inside = [], space.flat(cells), np.array([box.in_box(space, cells) for box in boxes])
    for number, drawn in enumerate(simulations(scenario, count)):
        rng = np.random.default_rng([number, 1])
        at = np.searchsorted(flat, space.flat(drawn.probes[space.names].to_numpy()))
        weights = space.weights(drawn.probes[space.names].to_numpy(), scenario.items)
        failed = drawn.probes["failed"].to_numpy(dtype=bool)
        excess = np.bincount(at, weights * (failed - 2 * float(weights @ failed)), len(cells))
        left, found, fresh = np.ones(len(cells), dtype=bool), [], [no_fresh(drawn.probes)]
        for k in range(modes):
            best = int(((inside & left) @ excess).argmax())
            left &= ~inside[best]
            items, asked = draw_inside(space, boxes[best], np.arange(scenario.items), 120, rng)
            answers = drawn.answers[items, np.searchsorted(flat, space.flat(asked))]
            table = pd.DataFrame(asked, columns=space.names).assign(item=[f"i{i}" for i in items], failed=answers)
            fresh.append(table.assign(mode=f"M{k + 1}", role="measure"))
            found.append(ShownMode(f"M{k + 1}", boxes[best], boxes[best].share(space)))
        known = pd.DataFrame(index=[f"i{i}" for i in range(scenario.items)])
        asked_inside = pd.concat(fresh, ignore_index=True)
        bound = bound_unshown(space, drawn.probes, asked_inside, found, known, exact=False, seed=0)
        assert bound is not None
        rows.append((bound.at_most, float(drawn.rates @ (space.density(cells) * left))))
    bounds, true = np.array(rows).T
    return float((bounds >= true).mean()), float(bounds.mean()), float(true.mean())


def _boxes(space: ConceptSpace) -> list[Region]:
    """Return all ranges of levels of one or two concepts that make up less than 30% of use."""
    ranges = {
        c.name: [tuple(range(low, high)) for low in range(len(c)) for high in range(low + 1, len(c) + 1)]
        for c in space.concepts
    }
    pairs = combinations(ranges, 2)
    boxes = [Region({a: one, b: other}) for a, b in pairs for one in ranges[a] for other in ranges[b]]
    return [box for box in boxes if 0 < box.share(space) < 0.3]


def _covered(rows: list[tuple[float, ...]]) -> Covered:
    inside, off, width, true = np.array(rows).T
    return Covered(inside.mean(), off.mean(), off.std(), width.mean(), true.mean())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--unshown", action="store_true")
    asked = parser.parse_args()
    count = asked.simulations
    if asked.unshown:
        print("| scenario | fails outside | bound | holds |\n|---|---|---|---|")
        for scenario in SCENARIOS:
            holds, bound, true = unshown_coverage(scenario, count)
            print(f"| {scenario.name} | {true:.2%} | {bound:.2%} | {holds:.1%} |", flush=True)
        return
    print("| scenario | rate | mean error | its deviation | width | intervals with the truth | twice as much changes |")
    print("|---|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        one, twice = coverage(scenario, count)
        also = "" if scenario.usage == "uniform" else f"{twice.coverage:.1%}"
        numbers = f"{one.rate:.2%} | {one.bias:+.2%} | {one.deviation:.2%} | {one.width:.2%} | {one.coverage:.1%}"
        print(f"| {scenario.name} | {numbers} | {also} |", flush=True)


if __name__ == "__main__":
    main()
