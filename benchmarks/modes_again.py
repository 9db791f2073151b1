"""Whether other seeds name the same regions: `python -m benchmarks.modes_again` prints what docs/method.md quotes.

On the enumerated MNIST of the study, each of 14 seeds searches with `auto` and its control, with 2,000 probes each
(minus those reserved for confirming), and names up to six regions: once for all items, and once with items sorted into
6 and 10 kinds by `summarize.clusters`. Takes some minutes on one core.
"""

from collections.abc import Mapping
from itertools import permutations

import numpy as np
import pandas as pd

from benchmarks.modes_of_items import searched
from benchmarks.study.run import make_landscape
from stages.concepts import Region
from stages.landscape.confirm import found_again
from stages.landscape.estimate import estimate_landscape
from stages.landscape.kinds import rates_of
from stages.landscape.modes import find_regions
from stages.params import SummarizeConfig
from stages.tasks.attributes import KIND, Kinds

SEEDS = range(10, 24)
BUDGET = 2000
CLUSTERS = (0, 6, 10)


def attributes(clusters: int) -> pd.DataFrame:
    """Return the attributes of the items: their kind, or none."""
    task = make_landscape("mnist", 0)
    ids = task.items.ids("discover")
    if not clusters:
        return pd.DataFrame(index=ids)
    vectors = task.embed(ids)
    return pd.DataFrame({KIND: Kinds.of(ids, vectors, [None] * len(ids), clusters)(vectors)}, index=ids)


def named(seed: int, known: Mapping[int, pd.DataFrame]) -> dict[int, list[Region]]:
    """Return the regions named from searches with one seed, by number of clusters."""
    task = make_landscape("mnist", seed)
    ids, space = task.items.ids("discover"), task.concepts
    probes = searched(task, seed, BUDGET)
    landscape = estimate_landscape(
        probes, ids, task.embed(ids), space, threshold=task.threshold, seed=seed, spread=False
    )
    return {
        clusters: find_regions(rates_of(landscape, space, probes, told_apart), SummarizeConfig())
        for clusters, told_apart in known.items()
    }


def main() -> None:
    """Print the numbers."""
    task = make_landscape("mnist", 0)
    space, cells = task.concepts, task.concepts.cells()
    failed = task.failed(task.items.ids("discover"), cells)
    known = {clusters: attributes(clusters) for clusters in CLUSTERS}
    found = {seed: named(seed, known) for seed in SEEDS}
    for clusters, told_apart in known.items():
        regions = {seed: of[clusters] for seed, of in found.items()}
        again = [found_again(regions[a], regions[b], space, told_apart).mean() for a, b in permutations(SEEDS, 2)]
        inside = [
            np.any([np.outer(region.about(told_apart), region.in_box(space, cells)) for region in of], axis=0)
            for of in regions.values()
        ]
        print(f"{clusters or 'no'} kinds: regions a seed names: {np.mean([len(of) for of in regions.values()]):.1f}")
        print(f"  of them about one kind: {np.mean([bool(r.items) for of in regions.values() for r in of]):.2f}")
        print(f"  of them another seed names again: {np.mean(again):.2f}")
        print(f"  share of all failures inside: {np.mean([failed[mask].sum() / failed.sum() for mask in inside]):.2f}")
        print(f"  failure rate inside: {np.mean([failed[mask].mean() for mask in inside]):.2f}")


if __name__ == "__main__":
    main()
