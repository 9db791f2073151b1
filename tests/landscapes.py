"""Planted landscapes for tests: a task with a known truth, and probes drawn uniformly or near failures."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace, Region
from stages.landscape.confirm import Fresh
from stages.landscape.estimate import CellRates, estimate_landscape
from stages.tasks.contract import Items
from tests.planted import PlantedTask

CORNERS = ({"tilt": [3, 4], "fog": [3, 4]}, {"dust": [0, 1], "rain": [4]})


def planted(
    regions: Sequence[dict[str, list[int]]] = CORNERS, *, noise: float = 0.05, items: int = 40, levels: int = 5
) -> PlantedTask:
    """A task over four concepts that fails in these regions, and elsewhere with this probability."""
    names = ("tilt", "fog", "dust", "rain")
    space = ConceptSpace(tuple(Concept(name, tuple(range(levels)), neutral=0) for name in names))
    table = pd.DataFrame({"id": [f"i{k:03d}" for k in range(items)], "split": "discover", "label": "0"})
    return PlantedTask(Items(table), space, {"regions": list(regions), "noise": noise}, seed=0)


def ask(task: Any, items: np.ndarray, cells: np.ndarray, role: str) -> pd.DataFrame:
    """Probes in the format of probes.parquet."""
    ids = [task.items.table["id"].iloc[int(i)] for i in items]
    answer = task.probe(ids, cells)
    table = pd.DataFrame(cells, columns=task.concepts.names)
    return table.assign(
        role=role,
        explorer=role,
        order=np.arange(len(ids)),
        item=ids,
        repeat=0,
        discrepancy=answer.discrepancy,
        failed=answer.failed,
        output=answer.outputs,
    ).drop_duplicates(["item", *task.concepts.names])


def uniform(task: Any, n: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return ask(task, rng.integers(0, len(task.items.table), n), task.concepts.sample(n, rng), "control")


def adaptive(task: Any, n: int, seed: int = 0) -> pd.DataFrame:
    """Probes of a greedy search: four of five are near earlier failures, up to one level off."""
    rng = np.random.default_rng(seed)
    found = ask(task, rng.integers(0, len(task.items.table), n // 4), task.concepts.sample(n // 4, rng), "agent")
    failing = found.loc[found["failed"], task.concepts.names].to_numpy()
    near = failing[rng.integers(0, len(failing), n)] + rng.integers(-1, 2, size=(n, len(task.concepts)))
    cells = np.clip(near, 0, np.array(task.concepts.sizes) - 1)
    more = ask(task, rng.integers(0, len(task.items.table), n), cells, "agent")
    return pd.concat([found, more], ignore_index=True).drop_duplicates(["item", *task.concepts.names]).head(n)


def fresh(task: Any, count: int) -> Fresh:
    """Fresh probes, as many as were kept back from the search."""
    return Fresh(count, lambda items, cells: ask(task, items, cells, "fresh"))


def landscape_of(task: Any, probes: pd.DataFrame, **how: Any) -> CellRates:
    """The landscape of all items of a task."""
    ids = task.items.table["id"].tolist()
    return estimate_landscape(probes, ids, task.embed(ids), task.concepts, threshold=0.0, seed=0, **how)


def every_pair(task: Any) -> pd.DataFrame:
    """Probes of an enumerated grid."""
    cells, n = task.concepts.cells(), len(task.items.table)
    return ask(task, np.repeat(np.arange(n), len(cells)), np.tile(cells, (n, 1)), "control")


def _nobody(_items: np.ndarray, _cells: np.ndarray) -> pd.DataFrame:
    raise AssertionError("no fresh probe was kept back")


NO_FRESH = Fresh(0, _nobody)


def truth(task: Any) -> np.ndarray:
    """The failure rate of every cell over all items, from all probes."""
    cells = task.concepts.cells()
    ids = task.items.table["id"].tolist()
    return np.mean([task.probe([item] * len(cells), cells).failed for item in ids], axis=0)


def inside(task: Any, regions: Sequence[dict[str, list[int]]]) -> np.ndarray:
    """Which cells of the grid are in any of the regions."""
    cells = task.concepts.cells()
    return np.any([Region.from_json(r).contains(task.concepts, cells) for r in regions], axis=0)


SUSPECTED: dict[str, Any] = {
    **{"id": "S1", "text": "smudge = 3", "region": {"smudge": [3]}, "rate": None, "low": None, "high": None},
    **{"probes": 0, "failures": 0, "estimate": 0.37, "share": 0.25},
}  # a region without fresh probes


def landscape_file(modes: Iterable[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """A complete landscape.json with these modes, which need only the keys that matter."""
    rate = {"value": 0.25, "low": 0.24, "high": 0.26, "n": 2000}
    plain = {"rate": 0.5, "low": 0.4, "high": 0.6, "probes": 9, "failures": 5, "estimate": 0.5, "lift": 2.0}
    plain |= {"share": 0.1, "invalid": None}
    plain |= {"minimal": {"reached": 0, "of": 0, "median_radius": None}}
    return {
        "audit": "x",
        "concepts": [],
        "threshold": 0.0,
        "overall": rate,
        "overall_estimated": rate,
        "effects": [],
        "modes": [{**plain, **mode} for mode in modes],
        "suspected": [],
        "invalid": {"count": 0, "probes": 2000, **rate, "value": 0.0, "levels": []},
        "modes_found_again": {"named": 0, "again": 0, "in_halves": {}},
        "modes_skipped": [],
        "estimator": {"name": "boosted trees"},
        "robustness": None,
        "search": {},
        "exact": False,
        "sampled": False,
        "items": 20,
        **more,
    }
