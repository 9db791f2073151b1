"""Quality of screening with a known truth: the ranges it proposes, and the concepts it drops.

`python -m benchmarks.screening` screens MNIST enumerated (interpolated linearly between the levels of the truth, so
that any levels within them can be queried) and planted landscapes, with the default settings unless a row says
otherwise, and prints a Markdown table. Takes about a minute on one core. An *idle* concept has no effect but to redraw
the chance part of a probe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
from scipy.interpolate import RegularGridInterpolator

from benchmarks.study.landscapes import Enumerated, KnownLandscape, Planted
from stages.concepts import Concept, ConceptSpace, Level
from stages.screening import Screening, ScreenSettings
from stages.screening.first_pass import screen
from stages.tasks.base import Task

TRUTH = Path(__file__).parent / "study" / "truths" / "mnist_tuning.safetensors"
SEEDS = range(12)
PLANTED = ((8, 100), (8, 101), (8, 102), (5, 100), (5, 101), (5, 102))  # the study uses seeds below 100
PLANTED_SEEDS = range(4)
CHANCE = 0.15  # width of the uniform noise that idle concepts redraw and add to the margin
IDLE = {"first idle": [0.0, 1.0, 2.0, 3.0], "second idle": [0.0, 1.0, 2.0, 3.0]}
JUDGED = 20_000  # number of pairs of item and cell from which true rates are computed

Levels = Mapping[str, Sequence[Level]]
Load = Callable[[Levels], KnownLandscape]


class Interpolated(KnownLandscape):
    """An enumerated truth at custom levels within those of the truth.

    A concept that is left out stays at 0; a concept unknown to the truth only redraws noise.
    """

    def __init__(self, truth: Enumerated, levels: Levels) -> None:
        concepts = (Concept(name, tuple(values), neutral=values[0]) for name, values in levels.items())
        super().__init__(ConceptSpace(tuple(concepts)), truth.embeddings, len(truth.items.ids("discover")))
        known = truth.concepts
        items = np.arange(len(self.embeddings))
        cells = known.cells()
        margins = np.stack([truth.margins(np.full(len(cells), item), cells) for item in items])
        axes = (items, *(np.array(concept.levels, dtype=float) for concept in known.concepts))
        self._at = RegularGridInterpolator(axes, margins.reshape(len(items), *known.sizes))
        self.catalogue = {
            concept.name: SimpleNamespace(low=concept.levels[0], high=concept.levels[-1]) for concept in known.concepts
        }

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """See KnownLandscape."""
        values = {c.name: np.array(c.levels)[cells[:, j]] for j, c in enumerate(self.concepts.concepts)}
        zero = np.zeros(len(items))
        margin = self._at(np.stack([items, *(values.get(name, zero) for name in self.catalogue)], axis=1))
        if set(values) - set(self.catalogue):
            chance = np.sin(items * 12.9898 + self.concepts.flat(cells) * 78.233) * 43758.5453
            margin += CHANCE * (chance - np.floor(chance) - 0.5)
        return margin.astype(np.float32)


def true_rate(task: KnownLandscape) -> float:
    """Return the failure rate over the grid and the searched items."""
    rng = np.random.default_rng(0)
    items = rng.integers(len(task.items.ids("discover")), size=JUDGED)
    return float((task.margins(items, task.concepts.sample(JUDGED, rng)) > 0).mean())


def screened(load: Load, levels: Levels, seed: int, **settings: int) -> Screening:
    """Run a screening on a landscape, which has everything that screening needs of a task."""

    def task(levels: Levels) -> KnownLandscape:
        known = load(levels)
        known.automatic_task = SimpleNamespace(catalogue=getattr(known, "catalogue", {}))  # type: ignore[attr-defined]
        return known

    return screen(cast("Callable[[Levels], Task]", task), levels, ScreenSettings(**settings), seed=seed)


def ranged(truth: Enumerated, levels: Levels) -> tuple[str, str]:
    """Return how levels that fail too often or too rarely were changed, and the true failure rates of the result."""
    found = [screened(partial(Interpolated, truth), levels, seed) for seed in SEEDS]
    holds = ScreenSettings().holds
    rates = [true_rate(Interpolated(truth, s.grid)) for s in found]
    missed = ", ".join(f"{rate:.1%}" for rate in sorted(rates) if not holds(rate))
    done = Counter("proposed others" if s.changes else "kept them" for s in found)
    reached = f"{sum(map(holds, rates))} of {len(rates)}" + (f"; else {missed}" if missed else "")
    return counts(done), f"{band()} truly fail in {reached}"


def band() -> str:
    """Return the range of desired failure rates."""
    return "{0.lowest_rate:.0%} to {0.highest_rate:.0%}".format(ScreenSettings())


def scaled(levels: Levels, factor: float) -> dict[str, list[Level]]:
    """Scale all levels by one factor."""
    return {name: [factor * float(value) for value in values] for name, values in levels.items()}


def judged(found: Sequence[Screening], names: Sequence[str] | None = None) -> str:
    """Return how often each verdict was given on these concepts, by default all."""
    return counts(Counter(c.verdict for s in found for c in s.concepts if names is None or c.name in names))


def counts(counted: Counter[str]) -> str:
    """Format counts, most frequent first."""
    return ", ".join(f"{what} {n}" for what, n in counted.most_common())


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the table: truth, what was done, and the result."""
    if TRUTH.exists():
        truth = Enumerated(TRUTH)
        own = levels_of(truth)
        variants: dict[str, Levels] = {
            "as they should be: all levels x 0.7": scaled(own, 0.7),
            "too mild: all levels x 0.2": scaled(own, 0.2),
            "just too harsh: as they are": own,
            "too harsh: the weakest three levels left out": {name: [v[0], *v[4:]] for name, v in own.items()},
        }
        for told, levels in variants.items():
            rate = true_rate(Interpolated(truth, levels))
            yield (f"MNIST, {told} ({rate:.1%} fail)", *ranged(truth, levels))
        for n, probes in ((1, 600), (2, 600), (2, 1500)):
            idle = dict(list(IDLE.items())[:n])
            levels = {**own, **idle}
            found = [screened(partial(Interpolated, truth), levels, seed, probes=probes) for seed in SEEDS]
            verdicts = f"of the idle: {judged(found, list(idle))}", f"of the others: {judged(found, list(own))}"
            yield (f"MNIST and {n} idle, {probes:,} probes", *verdicts)
    for concepts in sorted({concepts for concepts, _ in PLANTED}):
        tasks = [Planted(concepts, seed) for size, seed in PLANTED if size == concepts]
        found = [screened(always(task), levels_of(task), seed) for task in tasks for seed in PLANTED_SEEDS]
        dropped = sum(concept.change == "dropped" for s in found for concept in s.concepts)
        yield f"planted, 7^{concepts}, {len(tasks)} landscapes", judged(found), f"{dropped} dropped"


def always(task: KnownLandscape) -> Load:
    """Return a loader of this task, which always has its own levels."""
    return lambda _levels: task


def levels_of(task: KnownLandscape) -> dict[str, list[Level]]:
    """Return the levels of each concept."""
    return {concept.name: list(concept.levels) for concept in task.concepts.concepts}


def main() -> None:
    """Print the table, row by row."""
    print("| truth | done, or verdicts | result |\n|---|---|---|")
    for row in rows():
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
