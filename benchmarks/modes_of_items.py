"""Whether a failing class is named: `python -m benchmarks.modes_of_items` prints what docs/method.md quotes.

Models have one planted weakness, of one class in ten in a corner of two concepts out of five; others have the same
weakness for all classes. 20 of each are searched with `auto` and its control, with 1,500 probes each, including those
for confirming. Takes ten minutes on one core.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from benchmarks.study.landscapes import KnownLandscape, normal_noise
from stages.concepts import Concept, ConceptSpace, Region
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.landscape.confirm import Fresh, Mode
from stages.landscape.describe import name_modes
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.params import DiscoverConfig, SummarizeConfig

SEEDS = range(20)
BUDGET = 1500
ROLES = (("agent", "auto"), ("control", "random"))
LEVELS, CONCEPTS, CLASSES, ALIKE = 7, 5, 10, 10


class ToldApart(KnownLandscape):
    """A truth whose items have `attributes`, one row per item id."""

    attributes: pd.DataFrame


class OneClass(ToldApart):
    """A model that fails on 60 to 80% of one class in a corner of two concepts, and on some 12% of everything else.

    Args:
        seed: determines the class, the corner, the embeddings and everything else.
        planted: if False, the corner fails for all classes alike.
    """

    def __init__(self, seed: int, *, planted: bool = True) -> None:
        rng = np.random.default_rng([77, seed])
        space = ConceptSpace(tuple(Concept(f"c{j}", tuple(range(LEVELS)), neutral=0) for j in range(CONCEPTS)))
        labels = np.repeat(np.arange(CLASSES), ALIKE)
        centres = 1.5 * rng.normal(size=(CLASSES, 8))
        super().__init__(space, centres[labels] + rng.normal(size=(len(labels), 8)), len(labels))
        weak = str(rng.integers(CLASSES))
        corner = {
            f"c{j}": tuple(range(int(LEVELS - rng.integers(2, 4)), LEVELS))
            for j in rng.choice(CONCEPTS, 2, replace=False)
        }
        self.attributes = pd.DataFrame({"label": labels.astype(str)}, index=self.items.table["id"])
        self.region = Region(corner, {"label": (weak,)})
        self.modes = [self.region if planted else Region(corner)]
        self._slopes, self._taste = rng.normal(0, 0.25, CONCEPTS), rng.normal(0, 0.12, len(labels))

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        cells = np.asarray(cells)
        inside = self.modes[0].contains(self.concepts, cells, self.attributes.iloc[items])
        mean = (cells / (LEVELS - 1) - 0.5) @ self._slopes + self._taste[items] - 1.25 + 1.75 * inside
        return np.clip(0.3 * (mean + normal_noise(self.concepts, items, cells)), -1.0, 1.0).astype(np.float32)


def searched(task: KnownLandscape, seed: int, budget: int) -> pd.DataFrame:
    """Return the probes of agent and control, each with this budget less what is kept back for confirming."""
    ids, tables = task.items.ids("discover"), []
    spend = DiscoverConfig(budget=budget).searched(len(ids) * task.concepts.n_cells)
    for number, (role, explorer) in enumerate(ROLES):
        prober = Prober(task, ids, spend)
        make_explorer(explorer, {}).explore(prober, 2 * seed + number)
        tables.append(prober.table().assign(role=role, explorer=explorer))
    return pd.concat(tables, ignore_index=True)


def modes_of(task: ToldApart, landscape: CellRates, probes: pd.DataFrame, seed: int, budget: int) -> list[Mode]:
    """Return the regions of a landscape, both confirmed and suspected; probes kept back from `budget` confirm them."""
    ids = task.items.ids("discover")

    def ask(items: np.ndarray, cells: np.ndarray) -> pd.DataFrame:
        prober = Prober(task, ids, len(items))
        prober.ask(items, cells)
        return prober.table()

    modes, _ = name_modes(
        landscape,
        *(probes, ids, task.embed(ids), task.concepts, SummarizeConfig()),
        threshold=task.threshold,
        seed=seed,
        fresh=Fresh(2 * DiscoverConfig(budget=budget).kept_back, ask),
        attributes=task.attributes.loc[ids],
    )
    return modes


def judged(task: ToldApart, seed: int, budget: int = BUDGET, *, spread: bool = False) -> tuple[CellRates, list[Mode]]:
    """Return the landscape from searches with one seed, and its regions, both confirmed and suspected.

    Args:
        task: the truth.
        seed: seed of the searches and of everything after them.
        budget: probes of the agent and of the control each, including those for confirming.
        spread: whether to compute intervals of cells.
    """
    probes, ids = searched(task, seed, budget), task.items.ids("discover")
    landscape = estimate_landscape(
        probes, ids, task.embed(ids), task.concepts, threshold=task.threshold, seed=seed, spread=spread
    )
    return landscape, modes_of(task, landscape, probes, seed, budget)


def named(task: ToldApart, seed: int, budget: int = BUDGET) -> list[Mode]:
    """Return the failure modes from searches with one seed."""
    return [mode for mode in judged(task, seed, budget)[1] if mode.confirmed]


def classes(modes: Sequence[Mode]) -> set[str]:
    """Return the classes that modes are about."""
    return {value for mode in modes for value in mode.region.items.get("label", ())}


def main() -> None:
    """Print the numbers."""
    found = wrong = false = 0
    for seed in SEEDS:
        task = OneClass(seed)
        weak = set(task.region.items["label"])
        modes = named(task, seed)
        found += bool(weak & classes(modes))
        wrong += bool(classes(modes) - weak)
        print(f"{task.region.describe(task.concepts)}: {[mode.region.describe(task.concepts) for mode in modes]}")
        false += bool(classes(named(OneClass(seed, planted=False), seed)))
    print(f"planted: the class is named in {found} of {len(SEEDS)}, another one in {wrong}")
    print(f"no class planted: one is named in {false} of {len(SEEDS)}")


if __name__ == "__main__":
    main()
