"""Naming of failure modes by this project's box search and by libraries that search for subgroups, slices or rules.

`python -m benchmarks.modes_libraries` gives all of them the same estimated landscape of planted modes (a sample of
5,000 of 7^5 cells, estimated from 4,000 uniform probes; three seeds) and requests six regions of at most three
conditions. Precision is the share of the named cells that are in a planted mode, recall the share of the planted cells
that were named; a planted mode is found if its Jaccard index with a region is at least 0.5. Libraries that are not
installed are skipped: `pip install pysubgroup sliceline imodels`. Takes about a minute on one core.
"""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Callable

import numpy as np
import pandas as pd

from benchmarks.study.landscapes import Planted
from stages.concepts import ConceptSpace
from stages.explorers.prober import Prober
from stages.explorers.registry import make_explorer
from stages.landscape.estimate import estimate_landscape
from stages.landscape.kinds import Rates
from stages.landscape.modes import find_regions
from stages.params import SummarizeConfig

SEEDS = (100, 101, 102)
CONCEPTS, PROBES = 5, 4000
CELLS = 5000
MODES, CONDITIONS, SUPPORT = 6, 3, 0.01
LIMITS = SummarizeConfig(modes=MODES, max_conditions=CONDITIONS, min_support=SUPPORT)
BAD = 0.5  # rate from which a cell counts as failing, for libraries that need binary labels

Search = Callable[[ConceptSpace, np.ndarray, np.ndarray], list[np.ndarray]]
"""Names regions from cells (n, concepts) and their rates (n,); returns one mask (n,) per region."""


def ours(space: ConceptSpace, cells: np.ndarray, rates: np.ndarray) -> list[np.ndarray]:
    """Search all boxes exactly."""
    regions = find_regions(Rates.of_cells(space, cells, rates), LIMITS)
    return [region.contains(space, cells) for region in regions]


def pysubgroup(space: ConceptSpace, cells: np.ndarray, rates: np.ndarray) -> list[np.ndarray]:
    """Beam search over the same ranges, with the same quality measure."""
    import pysubgroup as ps

    table = pd.DataFrame(cells, columns=space.names).assign(rate=rates)
    ranges = [
        ps.IntervalSelector(c.name, low, high)
        for c in space.concepts
        for low in range(len(c))
        for high in range(low + 1, len(c) + 1)
        if high - low < len(c)
    ]
    task = ps.SubgroupDiscoveryTask(
        table,
        ps.NumericTarget("rate"),
        ranges,
        result_set_size=MODES,
        depth=CONDITIONS,
        qf=ps.StandardQFNumeric(0.5),
        constraints=[ps.MinSupportConstraint(int(SUPPORT * len(cells)))],
    )
    found = ps.BeamSearch(beam_width=30).execute(task).to_descriptions()
    return [group.covers(table) for _, group, *_ in found]


def sliceline(space: ConceptSpace, cells: np.ndarray, rates: np.ndarray) -> list[np.ndarray]:
    """Search slices over thresholds: as it only supports equality, one column per k has the values x >= k."""
    from sliceline.slicefinder import Slicefinder

    columns = [(j, k) for j, c in enumerate(space.concepts) for k in range(1, len(c))]
    above = np.column_stack([cells[:, j] >= k for j, k in columns]).astype(int)
    finder = Slicefinder(alpha=0.95, k=MODES, max_l=CONDITIONS, min_sup=int(SUPPORT * len(cells)), verbose=False)
    finder.fit(above, rates)
    masks = []
    for found in finder.top_slices_:
        wanted = [(k, value) for k, value in enumerate(found) if value is not None]
        masks.append(np.all([above[:, k] == value for k, value in wanted], axis=0))
    return masks


def imodels(space: ConceptSpace, cells: np.ndarray, rates: np.ndarray) -> list[np.ndarray]:
    """Search rules with SkopeRules, of which the first few are used."""
    from imodels import SkopeRulesClassifier

    model = SkopeRulesClassifier(max_depth=CONDITIONS, recall_min=0.02, n_estimators=30, random_state=0)
    model.fit(cells, rates > BAD, feature_names=[f"x{j}" for j in range(len(space))])
    table = pd.DataFrame(cells, columns=[f"x{j}" for j in range(len(space))])
    rules = [re.sub(r"\band\b", "&", str(rule)) for rule in model.rules_[:MODES]]
    return [table.eval(rule).to_numpy(dtype=bool) for rule in rules]


def main() -> None:
    """Print the table."""
    searches: dict[str, Search] = {"ours": ours, "pysubgroup": pysubgroup, "sliceline": sliceline, "imodels": imodels}
    for name in list(searches):
        if name != "ours" and importlib.util.find_spec(name) is None:
            print(f"{name} is not installed, left out")
            del searches[name]
    numbers: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in searches}
    for seed in SEEDS:
        task = Planted(CONCEPTS, seed)
        ids, space = task.items.ids("discover"), task.concepts
        prober = Prober(task, ids, PROBES)
        make_explorer("random", {}).explore(prober, seed)
        landscape = estimate_landscape(
            prober.table(), ids, task.embed(ids), space, threshold=task.threshold, seed=seed, spread=False
        )
        rows = np.random.default_rng(seed).choice(len(landscape.table), CELLS, replace=False)
        cells, rates = landscape.cells(space)[rows], landscape.rates[rows]
        modes = [mode.contains(space, cells) for mode in task.modes]
        planted = np.any(modes, axis=0)
        for name, search in searches.items():
            start = time.process_time()
            masks = search(space, cells, rates)
            seconds = time.process_time() - start
            named = np.any(masks, axis=0) if masks else np.zeros(len(cells), dtype=bool)
            both = float((named & planted).sum())
            found = np.mean([any((m & r).sum() >= 0.5 * (m | r).sum() for r in masks) for m in modes])
            numbers[name].append((both / max(1, named.sum()), both / planted.sum(), float(found), seconds))
    print("| search | precision | recall | modes found | CPU s |")
    print("|---|---|---|---|---|")
    for name, scores in numbers.items():
        precision, recall, share, seconds = np.mean(scores, axis=0)
        print(f"| {name} | {precision:.2f} | {recall:.2f} | {share:.2f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
