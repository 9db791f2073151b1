"""How failures of a known shape are named: `python -m benchmarks.planted_shapes` prints what docs/method.md quotes.

Models of four concepts with seven levels fail on 90% inside a shape and on 5% elsewhere, without a slope that would
guide a search there; there are 80 items of ten classes. Each model is searched with `auto` and its control, each with
1% of all pairs of item and cell, including those for confirming. Prints a Markdown table of means over five seeds; the
failure modes of a run are compared with the shape as one set of pairs. Takes ten minutes on one core; arguments name
the shapes, by default all.
"""

import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.study.landscapes import KnownLandscape, normal_noise
from stages.concepts import Concept, ConceptSpace
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.landscape.confirm import Fresh, Mode
from stages.landscape.describe import name_modes
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.params import DiscoverConfig, SummarizeConfig

SEEDS = range(5)
LEVELS, CONCEPTS, CLASSES, ALIKE = 7, 4, 10, 8
BUDGET = LEVELS**CONCEPTS * CLASSES * ALIKE // 100
INSIDE, OUTSIDE = 0.9, 0.05  # failure rates
CELL = np.array([6, 6, 3, 6])
ROLES = (("agent", "auto"), ("control", "random"))
SLOPE = 0.3  # improvement of the margin, in standard deviations, per level of distance from the cell

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Whether pairs are in the shape, (n,) bool, given their levels (concepts, n) and the classes of their items (n,)."""

SHAPES: dict[str, Shape] = {
    "box": lambda c, _: (c[0] >= 5) & (c[1] >= 5),
    "three-way box": lambda c, _: (c[0] >= 4) & (c[1] >= 4) & (c[2] >= 4),
    "box of 1%": lambda c, _: (c[0] >= 5) & (c[1] >= 5) & (c[2] == 6),
    "categories": lambda c, _: (c[0] >= 5) & np.isin(c[3], [1, 3, 6]),
    "L": lambda c, _: ((c[0] == 6) & (c[1] >= 2)) | ((c[0] >= 2) & (c[1] == 6)),
    "XOR": lambda c, _: ((c[0] >= 5) & (c[1] <= 1)) | ((c[0] <= 1) & (c[1] >= 5)),
    "union": lambda c, _: ((c[0] >= 5) & (c[1] >= 5)) | ((c[2] <= 1) & (c[3] >= 5)),
    "sum of 6 or 7": lambda c, _: (c[0] + c[1] >= 6) & (c[0] + c[1] <= 7),
    "difference of 1": lambda c, _: np.abs(c[0] - c[1]) <= 1,
    "one class": lambda c, label: (label == 0) & (c[0] >= 5) & (c[1] >= 5),
    "one cell": lambda c, _: (c == CELL[:, None]).all(axis=0),
    "none": lambda c, _: np.zeros(c.shape[1], dtype=bool),
}
SHAPES["one cell, a slope to it"] = SHAPES["one cell"]
RATES = {"none": 0.25, "never fails": 0.0, "always fails": 1.0}  # of the whole grid
SHAPES |= dict.fromkeys(RATES, SHAPES["none"])


class ToldApart(KnownLandscape):
    """A truth whose items have `attributes`, one row per item id."""

    attributes: pd.DataFrame


class Planted(ToldApart):
    """A model that fails inside a shape.

    Args:
        shape: its name.
        seed: determines the concepts of the shape, their direction, the items' classes, the embeddings and the noise.
    """

    def __init__(self, shape: str, seed: int) -> None:
        rng = np.random.default_rng([78, seed])
        self._holds, self._outside, self._slope = SHAPES[shape], RATES.get(shape, OUTSIDE), SLOPE * ("slope" in shape)
        self._order, self._falls = rng.permutation(CONCEPTS), rng.random(CONCEPTS) < 0.5
        unordered = self._order[3] if shape == "categories" else None
        levels = tuple(range(LEVELS))
        space = ConceptSpace(tuple(Concept(f"c{j}", levels, ordered=j != unordered) for j in range(CONCEPTS)))
        self._classes = rng.permutation(np.repeat(np.arange(CLASSES), ALIKE))
        centres, n = 1.5 * rng.normal(size=(CLASSES, 8)), len(self._classes)
        super().__init__(space, centres[self._classes] + rng.normal(size=(n, 8)), n)
        self.attributes = pd.DataFrame({"label": self._classes.astype(str)}, index=self.items.table["id"])
        self._noise_of = rng.choice(2**16, n, replace=False)

    def _turned(self, cells: np.ndarray) -> np.ndarray:
        """Return levels (concepts, n), in the coordinates of shapes, of cells (n, concepts)."""
        return np.where(self._falls, LEVELS - 1 - cells, cells).T[self._order]

    def inside(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return which pairs of items (n,) and cells (n, concepts) are in the shape, (n,) bool."""
        return self._holds(self._turned(cells), self._classes[items])

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        rate = np.clip(np.where(self.inside(items, cells), INSIDE, self._outside), 1e-6, 1 - 1e-6)
        away = np.abs(self._turned(cells) - CELL[:, None]).sum(axis=0)
        mean = stats.norm.ppf(rate) - self._slope * np.maximum(away - 1, 0)
        noise = normal_noise(self.concepts, self._noise_of[items], cells)
        return np.clip(0.3 * (mean + noise), -1.0, 1.0).astype(np.float32)


def judged(task: ToldApart, seed: int, budget: int, *, spread: bool = False) -> tuple[CellRates, list[Mode]]:
    """Return the landscape from searches with one seed, and its regions, both confirmed and suspected.

    Args:
        task: the truth.
        seed: seed of the searches and of everything after them.
        budget: probes of the agent and of the control each, including those for confirming.
        spread: whether to compute intervals of cells.
    """
    ids, config = task.items.ids("discover"), DiscoverConfig(budget=budget)
    spend, tables = config.searched(len(ids) * task.concepts.n_cells), []
    for number, (role, explorer) in enumerate(ROLES):
        prober = Prober(task, ids, spend)
        make_explorer(explorer, {}).explore(prober, 2 * seed + number)
        tables.append(prober.table().assign(role=role, explorer=explorer))
    probes = pd.concat(tables, ignore_index=True)
    evidence, how = (probes, ids, task.embed(ids), task.concepts), {"threshold": task.threshold, "seed": seed}
    landscape = estimate_landscape(*evidence, **how, spread=spread)

    def ask(items: np.ndarray, cells: np.ndarray) -> pd.DataFrame:
        prober = Prober(task, ids, len(items))
        prober.ask(items, cells)
        return prober.table()

    fresh, attributes = Fresh(2 * config.kept_back, ask), task.attributes.loc[ids]
    modes, _ = name_modes(landscape, *evidence, SummarizeConfig(), **how, fresh=fresh, attributes=attributes)
    return landscape, modes


class Score(NamedTuple):
    """Quality of the modes of one run; NaN where it is undefined."""

    precision: float
    recall: float
    jaccard: float
    alike: float  # whether the Jaccard index is at least 0.5
    modes: float
    confirmed: float  # share of the named regions that are failure modes
    rates: float  # share of the modes whose interval contains the true rate
    cells: float  # the same for cells that are in the shape for some item


def score(task: Planted, landscape: CellRates, regions: Sequence[Mode]) -> Score:
    """Compare regions with the truth, pair by pair."""
    n, cells = len(task.attributes), task.concepts.cells()
    items, of_items = np.repeat(np.arange(n), len(cells)), np.tile(cells, (n, 1))
    truth, failed = task.inside(items, of_items), task.margins(items, of_items) > 0
    modes = [mode for mode in regions if mode.confirmed]
    held = [mode.region.contains(task.concepts, of_items, task.attributes.iloc[items]) for mode in modes]
    named = np.any([np.zeros_like(truth), *held], axis=0)
    both, either, planted = (truth & named).sum(), (truth | named).sum(), bool(truth.any())
    rates = [mode.rate.low <= failed[own].mean() <= mode.rate.high for mode, own in zip(modes, held, strict=True)]
    low, high = landscape.table[["low", "high"]].to_numpy().T
    true = failed.reshape(n, -1).mean(axis=0)
    some = truth.reshape(n, -1).any(axis=0)
    return Score(
        precision=both / named.sum() if planted and named.any() else np.nan,
        recall=both / truth.sum() if planted else np.nan,
        jaccard=both / either if planted else np.nan,
        alike=float(both >= 0.5 * either) if planted else np.nan,
        modes=len(modes),
        confirmed=len(modes) / len(regions) if regions else np.nan,
        rates=float(np.mean(rates)) if rates else np.nan,
        cells=float(((low <= true) & (true <= high))[some].mean()) if planted else np.nan,
    )


def main(shapes: Sequence[str]) -> None:
    """Print the table."""
    print("| shape | precision | recall | Jaccard | .5 or more | modes | of those named | rates held | cells held |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for shape in shapes or SHAPES:
        tasks = [Planted(shape, seed) for seed in SEEDS]
        scores = [
            score(task, *judged(task, seed, BUDGET, spread=True)) for seed, task in zip(SEEDS, tasks, strict=True)
        ]
        means = pd.DataFrame(scores).mean()
        print(f"| {shape} | {' | '.join('-' if np.isnan(mean) else f'{mean:.2f}' for mean in means)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
