"""A synthetic model that answers a million probes in seconds, so that Faded itself is measured.

Each item is a point. A probe fails if the item's own difficulty, a slope over every concept and a planted conjunction
of two concepts add up to more than 0. About a quarter of uniformly drawn probes fail.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import Concept, ConceptSpace
from stages.tasks.base import Task
from stages.tasks.contract import Exhibit, Items, ProbeBatch, TaskContext

DIMENSIONS = 16  # of the embeddings
CHANCE = 0.3  # standard deviation of the part that neither item nor cell explains


def space_of(concepts: Mapping[str, Sequence[Any]]) -> ConceptSpace:
    """Return the grid of the concepts in params.yaml; the first level of each is neutral."""
    return ConceptSpace(tuple(Concept(name, tuple(levels), neutral=levels[0]) for name, levels in concepts.items()))


class Synthetic(Task):
    """The task; `prepare:` has the number of `items`."""

    threshold = 0.0

    def __init__(self, table: pd.DataFrame, concepts: ConceptSpace, seed: int) -> None:
        self.items, self.concepts, self.seed = Items(table), concepts, seed
        self._rows = {item: row for row, item in enumerate(table["id"])}
        self._points = np.random.default_rng(seed).standard_normal((len(table), DIMENSIONS)).astype(np.float32)

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        n = int(context.config["items"])
        (out_dir / "model").mkdir()
        (out_dir / "model" / "config.json").write_text(json.dumps({"seed": context.seed}))
        table = pd.DataFrame({"id": [f"item-{i:06d}" for i in range(n)], "split": "discover", "label": "right"})
        table.to_parquet(out_dir / "items.parquet")
        return {"items": n}

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Synthetic:
        return cls(pd.read_parquet(prepared / "items.parquet"), space_of(context.concepts), context.seed)

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        return self._points[[self._rows[item] for item in item_ids]]

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        rows = np.array([self._rows[item] for item in item_ids])
        levels = np.asarray(cells) / (np.array(self.concepts.sizes) - 1)
        numbers = rows.astype(np.uint64) * np.uint64(1_000_003) + self.concepts.flat(cells).astype(np.uint64)
        chance = ((numbers * np.uint64(2_654_435_761)) % np.uint64(10_007)).astype(float) / 10_007 - 0.5
        margin = -1.4 + 0.5 * self._points[rows, 0] + levels.mean(axis=1) + CHANCE * chance * np.sqrt(12)
        margin += 1.5 * (levels[:, 0] > 0.6) * (levels[:, 1] > 0.6)
        discrepancy = np.tanh(margin).astype(np.float32)
        return ProbeBatch(discrepancy, discrepancy > 0, ["wrong" if value > 0 else "right" for value in discrepancy])

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        return [Exhibit(item, text=self.concepts.describe(cell)) for item, cell in zip(item_ids, cells, strict=True)]
