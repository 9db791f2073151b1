"""A task that fails on one kind of items, visible in their embeddings but not in their labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from stages.tasks.contract import Items, TaskContext
from tests.planted import PlantedTask


class PlantedKinds(PlantedTask):
    """Items are of the kinds a, b and c, independent of their label; regions may be about a `secret` kind."""

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> PlantedKinds:
        task = super().load(context, prepared, model)
        task.items = Items(task.items.table.assign(secret=["abc"[k // 3 % 3] for k in range(len(task.items.table))]))
        return task

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        return self._told_apart(self.items.table[["label"]], item_ids)

    def embed(self, item_ids: Sequence[str]) -> np.ndarray:
        rows = np.array([self._rows[i] for i in item_ids])
        return np.stack([5 * (rows // 3 % 3 == k) + np.sin((k + 1) * rows) for k in range(3)], axis=1).astype(
            np.float32
        )
