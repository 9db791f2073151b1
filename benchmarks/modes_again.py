"""Do other seeds name the same regions? `python -m benchmarks.modes_again` prints what docs/method.md quotes.

The enumerated MNIST of the study, 14 seeds: each searches with `auto` and its control, of 2,000 probes each (less what
is kept back for confirming), and names up to six regions. Two minutes on one core.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd

from benchmarks.study.run import make_landscape
from stages.concepts import Region
from stages.explorers.prober import Prober
from stages.explorers.registry import make_explorer
from stages.landscape.again import found_again
from stages.landscape.estimate import estimate
from stages.landscape.kinds import Rates
from stages.landscape.modes import find_regions
from stages.params import DiscoverConfig, SummarizeConfig

SEEDS = range(10, 24)
BUDGET = 2000
ROLES = (("agent", "auto"), ("control", "random"))


def named(seed: int) -> list[Region]:
    """Regions that the searches with one seed lead to."""
    task = make_landscape("mnist", seed)
    ids, space, tables = task.items.ids("discover"), task.concepts, []
    budget = DiscoverConfig(budget=BUDGET).searched(len(ids) * space.n_cells)
    for number, (role, explorer) in enumerate(ROLES):
        prober = Prober(task, ids, budget)
        make_explorer(explorer, {}).explore(prober, 2 * seed + number)
        tables.append(prober.table().assign(role=role, explorer=explorer))
    probes = pd.concat(tables, ignore_index=True)
    landscape = estimate(probes, ids, task.embed(ids), space, threshold=task.threshold, seed=seed, spread=False)
    return find_regions(Rates.of_cells(space, landscape.cells(space), landscape.rates), SummarizeConfig())


def main() -> None:
    """Print the numbers."""
    task = make_landscape("mnist", 0)
    space, cells = task.concepts, task.concepts.cells()
    rates = task.failed(task.items.ids("discover"), cells).mean(axis=0)
    regions = {seed: named(seed) for seed in SEEDS}
    again = np.mean([found_again(regions[a], regions[b], space).share for a, b in permutations(SEEDS, 2)])
    inside = [np.any([region.contains(space, cells) for region in found], axis=0) for found in regions.values()]
    print(f"regions a seed names: {np.mean([len(found) for found in regions.values()]):.1f}")
    print(f"of them another seed names again: {again:.2f}")
    print(f"share of all failures inside: {np.mean([rates[mask].sum() / rates.sum() for mask in inside]):.2f}")
    print(f"failure rate inside: {np.mean([rates[mask].mean() for mask in inside]):.2f}")


if __name__ == "__main__":
    main()
