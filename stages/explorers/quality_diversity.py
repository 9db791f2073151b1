"""Quality-diversity search by pyribs, for the worst failure in every niche of the grid."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from pydantic import Field

from stages.core.errors import UsageError
from stages.explorers.ask_tell import AskTell, NextProbes, Strategy, embedding_order, evenly
from stages.explorers.prober import Prober
from stages.params import Strict


class MapElitesSettings(Strict):
    """Settings of MAP-Elites."""

    batch: int = Field(50, ge=1, le=1_000_000, description="probes asked at once")
    startup: int = Field(100, ge=1, le=1_000_000, description="probes drawn evenly first")
    max_niches: int = Field(
        10_000, ge=1, le=1_000_000, description="niches of the archive; levels are merged on larger grids"
    )
    step: float = Field(0.1, gt=0, description="standard deviation of a mutation, as share of the levels of a concept")
    item_step: float = Field(1.0, gt=0, description="the same of the item, in items in the order of their embeddings")


class MapElites(AskTell[MapElitesSettings]):
    """MAP-Elites (Mouret and Clune 2015) by pyribs.

    A niche is a cell of the grid, coarsened to `max_niches`; its elite is the probe with the largest margin. New probes
    are elites mutated by a Gaussian and rounded to levels. The item is mutated too, in the order of the embeddings'
    first principal component.
    """

    name, Settings = "map_elites", MapElitesSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Archive(prober, self.settings, rng)


def niches(sizes: list[int], limit: int) -> list[int]:
    """Return bins per concept for at most `limit` niches, merging the finest concepts first, last one first."""
    bins = list(sizes)
    while prod(bins) > limit:
        finest = max(range(len(bins)), key=lambda j: (bins[j], j))
        bins[finest] -= 1
    return bins


class _Archive:
    """The elites. A solution is (position of the item, levels), as real numbers that are rounded for probing."""

    def __init__(self, prober: Prober, settings: MapElitesSettings, rng: np.random.Generator) -> None:
        archives, emitters = _import_ribs()
        self._order = embedding_order(prober)
        self._place = np.argsort(self._order)
        sizes = np.array([len(self._order), *prober.space.sizes])
        archive_seed, emitter_seed = (int(seed) for seed in rng.integers(2**31, size=2))
        self._archive = archives.GridArchive(
            solution_dim=len(sizes),
            dims=niches(prober.space.sizes, settings.max_niches),
            learning_rate=1.0,
            threshold_min=0.0,
            ranges=[(-0.5, size - 0.5) for size in prober.space.sizes],
            seed=archive_seed,
        )
        items, cells = evenly(prober, settings.startup, rng)
        self._emitter = emitters.GaussianEmitter(
            self._archive,
            sigma=np.array([settings.item_step, *(settings.step * size for size in prober.space.sizes)]),
            initial_solutions=self._solutions(items, cells),
            lower_bounds=np.full(len(sizes), -0.499),
            upper_bounds=sizes - 0.501,
            batch_size=settings.batch,
            seed=emitter_seed,
        )

    def _solutions(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        return np.column_stack([self._place[items], cells]).astype(float)

    def propose(self) -> NextProbes:
        startup = bool(self._archive.empty)  # nothing to mutate: it returns its initial even draws
        rounded = np.rint(self._emitter.ask()).astype(np.int64)
        return NextProbes(self._order[rounded[:, 0]], rounded[:, 1:], uniform=startup)

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        self._archive.add(self._solutions(items[fresh], cells[fresh]), margin[fresh], cells[fresh])


def _import_ribs() -> tuple[Any, Any]:
    try:
        from ribs import archives, emitters
    except ImportError:
        raise UsageError("explorer map_elites needs pyribs: pip install 'faded[explorers]'") from None
    return archives, emitters
