"""Landscapes with an exactly known truth: enumerated ones of real models, and planted ones of any size.

To an explorer each is a task like any other. Only the evaluation may use its `true_rates` and `modes`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from stages.concepts import Concept, ConceptSpace, Region
from stages.tasks.contract import Items, ProbeBatch


class KnownLandscape:
    """A task that answers from the truth. Items of the split discover are searched, those of test are held out.

    Args:
        space: the concept space.
        embeddings: (items, d) float32; the first `searched` items are those of the split discover.
        searched: number of items that explorers may use.
    """

    threshold = 0.0

    def __init__(self, space: ConceptSpace, embeddings: np.ndarray, searched: int) -> None:
        self.concepts = space
        self.embeddings = np.asarray(embeddings, dtype=np.float32)
        n = len(self.embeddings)
        split = np.where(np.arange(n) < searched, "discover", "test")
        ids = [f"item-{i:04d}" for i in range(n)]
        self.items = Items(pd.DataFrame({"id": ids, "split": split, "label": ""}))
        self._rows = {item: row for row, item in enumerate(ids)}
        self.modes: list[Region] = []

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return discrepancies minus the threshold for items (n,) and cells (n, concepts): (n,) float32 in [-1, 1]."""
        raise NotImplementedError

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        return self.embeddings[[self._rows[item] for item in item_ids]]

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        margin = self.margins(np.array([self._rows[item] for item in item_ids], dtype=np.int64), np.asarray(cells))
        return ProbeBatch(margin, margin > 0, [""] * len(margin))

    def failed(self, item_ids: Sequence[str], cells: np.ndarray) -> np.ndarray:
        """Return whether every item fails under every cell: (items, cells) bool."""
        rows = np.array([self._rows[item] for item in item_ids])
        return np.stack([self.margins(np.full(len(cells), row), cells) > 0 for row in rows])

    def true_rates(self, item_ids: Sequence[str], cells: np.ndarray) -> np.ndarray:
        """Return the share of the items that fail under each cell: (cells,) float."""
        return self.failed(item_ids, cells).mean(axis=0)


class Enumerated(KnownLandscape):
    """A real model, queried once for every item under every cell; read from the file of `save_enumerated`."""

    def __init__(self, path: Path) -> None:
        arrays = load_file(path)
        with safe_open(path, framework="np") as file:
            about = json.loads(file.metadata()["about"])
        super().__init__(ConceptSpace.from_json(about["concepts"]), arrays["embeddings"], about["searched"])
        self._margins = arrays["margins"]  # (items, cells) float32

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        return self._margins[items, self.concepts.flat(cells)]


def save_enumerated(
    path: Path, space: ConceptSpace, embeddings: np.ndarray, margins: np.ndarray, searched: int
) -> None:
    """Write an enumerated truth: embeddings (items, d), margins (items, cells)."""
    about = json.dumps({"concepts": space.to_json(), "searched": searched})
    arrays = {"embeddings": embeddings.astype(np.float32), "margins": margins.astype(np.float32)}
    save_file(arrays, path, metadata={"about": about})


class Planted(KnownLandscape):
    """Failure modes of known place and shape on a grid of any size.

    A mode is a box over two to five concepts. Inside, the margin is above the threshold and grows with the depth;
    outside it decreases with the distance from the nearest mode, as for real models. Each mode affects some kinds of
    items more than others (linearly in their embedding); small main effects and noise blur everything. The modes cover
    very different shares of the grid, from 8% down to 0.2%, so that some are easily missed.

    Args:
        concepts: number of concepts, of 7 levels each: 5 or 8.
        seed: draws modes, items and effects; another seed is another landscape.
        searched, unseen: numbers of items.
    """

    LEVELS = 7
    # Numbers of conditions of the modes, by number of concepts.
    ORDERS: ClassVar = {5: (2, 3, 3, 3, 4), 8: (2, 3, 3, 3, 4, 4, 4, 4, 4, 5, 5, 5)}

    def __init__(self, concepts: int, seed: int, searched: int = 80, unseen: int = 80) -> None:
        rng = np.random.default_rng([concepts, seed])
        names = [f"concept_{chr(97 + j)}" for j in range(concepts)]
        space = ConceptSpace(tuple(Concept(name, tuple(range(self.LEVELS)), neutral=0) for name in names))
        super().__init__(space, rng.normal(size=(searched + unseen, 6)).astype(np.float32), searched)
        self._boxes: list[dict[int, tuple[int, int]]] = []
        for order in self.ORDERS[concepts]:
            box = {}
            for j in sorted(rng.choice(concepts, size=order, replace=False).tolist()):
                length = int(rng.integers(2, 4)) if order > 3 else 2
                # Strong levels fail more often than medium ones, but not exclusively.
                low = self.LEVELS - length if rng.random() < 0.6 else int(rng.integers(1, self.LEVELS - length + 1))
                box[j] = (low, low + length - 1)
            self._boxes.append(box)
        self.modes = [
            Region({names[j]: tuple(range(low, high + 1)) for j, (low, high) in box.items()}) for box in self._boxes
        ]
        self._taste = rng.normal(0, 0.25 / np.sqrt(6), size=(len(self._boxes), 6))
        self._slopes = rng.normal(0, 0.08, size=concepts)

    def margins(self, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
        cells = np.asarray(cells)
        best = np.full(len(cells), -np.inf)
        for box, taste in zip(self._boxes, self._taste, strict=True):
            depth = np.full(len(cells), np.inf)  # in levels: 0.5 just inside, -0.5 just outside
            for j, (low, high) in box.items():
                below = cells[:, j] - low + 0.5  # no mode starts at the first level
                above = high - cells[:, j] + 0.5 if high < self.LEVELS - 1 else np.inf
                depth = np.minimum(depth, np.minimum(below, above))
            best = np.maximum(best, np.tanh(0.8 * depth) + self.embeddings[items] @ taste)
        best = best + (cells / (self.LEVELS - 1) - 0.5) @ self._slopes + 0.1 * normal_noise(self.concepts, items, cells)
        return np.clip(best, -1.0, 1.0).astype(np.float32)


def normal_noise(space: ConceptSpace, items: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Draw a standard normal per (item, cell) from a hash (splitmix64): the same pair always has the same noise."""
    x = (space.flat(cells).astype(np.uint64) << np.uint64(16)) + items.astype(np.uint64)
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    first, second = (x >> np.uint64(32)) + np.uint64(1), x & np.uint64(0xFFFFFFFF)
    u, v = first.astype(float) / 2.0**32, second.astype(float) / 2.0**32
    return np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
