"""What `faded usage` has to know about rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stages.core.errors import UsageError, did_you_mean
from stages.usage import measures
from stages.usage.readers import MOST, Reader, read_table_file

if TYPE_CHECKING:
    from stages.tasks.tabular.probes import RowProbes


class RowReader(Reader):
    """A table of rows, for tabular classifiers."""

    shown = measures.ROWS
    task: RowProbes

    def own(self, ids: Sequence[str], cells: np.ndarray) -> pd.DataFrame:
        _, rows = self.task.changed(ids, cells)
        return self._measure(rows)

    def _measure(self, rows: pd.DataFrame) -> pd.DataFrame:
        usual = self._usual()
        return measures.of_rows(
            rows[self.task.table.measured].to_numpy(dtype=float),
            usual.std().replace(0.0, 1.0).to_numpy(),
            usual.median().to_numpy(),
        )

    def _usual(self) -> pd.DataFrame:
        return self.task.rows.loc[self.task.items.table["split"] == "discover", self.task.table.measured]

    def production(self, path: Path, rng: np.random.Generator) -> pd.DataFrame:
        frame = read_table_file(path)
        if lacking := [name for name in self.task.table.measured if name not in frame]:
            raise UsageError(f"{path.name} has no column {lacking[0]!r}{did_you_mean(lacking[0], list(frame))}")
        rows = frame[self.task.table.measured].apply(pd.to_numeric, errors="coerce")
        chosen = np.sort(rng.permutation(len(rows))[:MOST])
        return self._measure(rows.iloc[chosen].fillna(self._usual().median()))
