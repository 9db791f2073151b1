"""Explorers compared on failures that are common: `python -m benchmarks.by_use` prints a table.

Landscapes are planted and used as audits assume: 30% of inputs unchanged, 40% with one of eight concepts changed, 20%
with two, 10% with three. Half of the concepts raise the failure rate by themselves; on top there are four weaknesses:
of a concept's strong levels, of one label under one concept, of a pair of concepts, and of one label under a pair.
Every explorer has the same budget of unique probes, is joined by the same control, and goes through the whole pipeline
up to confirmed modes. docs/research.md quotes the table. Takes a quarter of an hour on two cores.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context

import numpy as np
import pandas as pd

from benchmarks._shared import print_means
from benchmarks.modes_of_items import ToldApart, modes_of
from benchmarks.study.landscapes import normal_noise
from benchmarks.study.measure import Clock
from stages.concepts import Concept, ConceptSpace, Region
from stages.core.environment import torch_threads
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.landscape.confirm import found_again
from stages.landscape.estimate import estimate_landscape
from stages.params import DiscoverConfig
from stages.params.usage import UsageConfig, in_use

CONCEPTS, LEVELS, LABELS, SEARCHED, UNSEEN = 8, 5, 10, 300, 100
BUDGET, PICKS, SEEDS = 2500, 5, range(5)
EXPLORERS: dict[str, tuple[str, dict[str, object]]] = {
    "random": ("random", {}),
    "thompson": ("thompson", {}),
    "ucb": ("ucb", {}),
    "map_elites": ("map_elites", {}),
    "a2c": ("a2c", {}),
    "ppo": ("ppo", {}),
    "trpo": ("trpo", {}),
    "pool": ("pool", {}),
    "local_search": ("local_search", {}),
    "model_based": ("model_based", {}),
    "without_policy": ("model_based", {"generators": ["archive", "mutations", "uniform"]}),
    "policy_alone": ("model_based", {"generators": ["policy"]}),
    "common: 1": ("model_based", {"common": 1.0}),
    "common: 0": ("model_based", {"common": 0.0}),
}


class KnownInUse(ToldApart):
    """A planted landscape with its usage; `planted` are its four weaknesses, `attributes` the labels of all items."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([26, seed])
        space = ConceptSpace(tuple(Concept(f"c{j}", tuple(range(LEVELS)), neutral=0) for j in range(CONCEPTS)))
        labels = np.arange(SEARCHED + UNSEEN) % LABELS
        centres = 1.5 * rng.normal(size=(LABELS, 8))
        embeddings = centres[labels] + rng.normal(size=(len(labels), 8))
        super().__init__(in_use(space, UsageConfig()), embeddings, SEARCHED)
        self.attributes = pd.DataFrame({"label": labels.astype(str)}, index=self.items.table["id"])
        a, b, c, d, e, f = (f"c{j}" for j in rng.permutation(CONCEPTS)[:6])
        one, other = (str(label) for label in rng.choice(LABELS, 2, replace=False))
        self.planted = {
            "concept": Region({a: (3, 4)}),
            "label": Region({b: (2, 3, 4)}, {"label": (one,)}),
            "pair": Region({c: (2, 3, 4), d: (2, 3, 4)}),
            "label and pair": Region({e: (1, 2, 3, 4), f: (1, 2, 3, 4)}, {"label": (other,)}),
        }
        self._slopes = rng.uniform(0, 1.2, CONCEPTS) * (rng.permutation(CONCEPTS) < CONCEPTS // 2)
        self._taste = rng.normal(0, 0.3, len(labels))

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        cells = np.asarray(cells)
        mean = 1.3 * ((cells / (LEVELS - 1)) ** 2) @ self._slopes - 1.9 + self._taste[items]
        for region in self.planted.values():
            inside = region.contains(self.concepts, cells, self.attributes.iloc[items])
            mean = np.where(inside, np.maximum(mean, 0.8), mean)
        return np.clip(0.3 * (mean + normal_noise(self.concepts, items, cells)), -1, 1).astype(np.float32)


def judge(name: str, seed: int) -> dict[str, float | str]:
    """Run one explorer on one landscape.

    `caught` is the share of the true failing use of the items searched, without unchanged ones, that its failures have.
    """
    task, (explorer, settings) = KnownInUse(seed), EXPLORERS[name]
    space, ids = task.concepts, task.items.ids("discover")
    config = DiscoverConfig(budget=BUDGET)
    spend = config.searched(len(ids) * space.n_used)
    clock, tables = Clock(task), []
    for role, (own, given) in {"agent": (explorer, settings), "control": ("random", {})}.items():
        prober = Prober(task, ids, spend)
        with torch_threads(1), clock.running():
            found = make_explorer(own, given).explore(prober, 2 * seed + (role == "control"))
        tables.append(prober.table().assign(role=role, explorer=name))
        if role == "agent":
            policy, seconds, probes = found.policy, clock.seconds, tables[0]
    failing = probes[probes["failed"]]
    used, _ = space.used(space.n_used, np.random.default_rng(0))
    mass = float((task.true_rates(ids, used) * _changed(space, used)).sum())
    caught = float(_changed(space, failing[space.names].to_numpy(dtype=np.int64)).sum()) / len(ids)
    everything = pd.concat(tables, ignore_index=True)
    with torch_threads(1):
        landscape = estimate_landscape(everything, ids, task.embed(ids), space, threshold=0.0, seed=seed, spread=False)
    known, modes = task.attributes.loc[ids], modes_of(task, landscape, everything, seed, BUDGET)
    confirmed = [mode.region for mode in modes if mode.confirmed]
    again = found_again(list(task.planted.values()), confirmed, space, known)
    row: dict[str, float | str] = {
        "explorer": name,
        "failures": len(failing),
        "caught": caught / mass,
        "cpu": 1000 * seconds / spend,
    }
    row |= dict(zip(task.planted, again.astype(float).tolist(), strict=True))
    return row | {
        "false": float(sum(_elsewhere(task, region, known) for region in confirmed)),
        "unseen": _unseen(task, policy),
    }


def _changed(space: ConceptSpace, cells: np.ndarray) -> np.ndarray:
    """Share of use of each cell (n, concepts) that changes something: (n,); every control probes unchanged items."""
    return space.density(cells) * (cells != space.neutral).any(axis=1)


def _elsewhere(task: KnownInUse, region: Region, known: pd.DataFrame) -> bool:
    """Whether a confirmed mode fails hardly more often than everything: its true rate is below 1.5 times the mean's."""
    space, ids = task.concepts, list(known.index)
    rng = np.random.default_rng(1)
    items = np.flatnonzero(region.about(known))
    inside, anywhere = region.sample(space, 2000, rng), space.sample(2000, rng)
    rates = [
        task.margins(rng.choice(some, 2000), cells).clip(0).astype(bool).mean()
        for some, cells in ((items, inside), (np.arange(len(ids)), anywhere))
    ]
    return bool(rates[0] < 1.5 * rates[1])


def _unseen(task: KnownInUse, policy: object) -> float:
    """Share of the failing use that the best picks for unseen items would have, in those of the policy."""
    if policy is None:
        return float("nan")
    space, ids = task.concepts, task.items.ids("test")
    used, _ = space.used(space.n_used, np.random.default_rng(0))
    failing = task.failed(ids, used) * _changed(space, used)
    best = np.sort(failing, axis=1)[:, -PICKS:].sum()
    picks = policy.propose(task.embed(ids), PICKS)  # type: ignore[attr-defined]
    rows = np.repeat(np.arange(SEARCHED, SEARCHED + UNSEEN), PICKS)
    cells = picks.reshape(-1, len(space))
    return float(((task.margins(rows, cells) > 0) * _changed(space, cells)).sum() / best)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    args = parser.parse_args()
    jobs = list(product(EXPLORERS, range(args.seeds)))
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        rows = list(pool.map(judge, *zip(*jobs, strict=True)))
    titles = {
        "failures": ("failures", ",.0f"),
        "caught": ("failing use found", ".1%"),
        **{name: (f"{name} named", ".1f") for name in KnownInUse(0).planted},
        "false": ("modes that fail hardly more", ".1f"),
        "unseen": ("of the best picks for unseen items", ".1%"),
        "cpu": ("own CPU-ms a query", ".2f"),
    }
    print_means(pd.DataFrame(rows), titles)


if __name__ == "__main__":
    main()
