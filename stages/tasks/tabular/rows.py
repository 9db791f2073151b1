"""Rows of a table as numbers, which concepts change, and back with the types and gaps of the data file."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from stages.concepts.rows import Kind
from stages.tasks.tabular.data import kind_of

_DAY = pd.Timedelta("1D")


class Rows:
    """Rows as numbers: measurements as they are, the number of each category, dates in days; NaN is a gap.

    Args:
        frame: n rows with d columns.
        gaps: whether concepts may leave gaps. Whole numbers then become floats, and yes or no becomes an object, which
            is how pandas reads a column with gaps: the types do not depend on the batch.
    """

    def __init__(self, frame: pd.DataFrame, *, gaps: bool) -> None:
        self.kinds: dict[str, Kind] = {str(name): kind_of(frame[name]) for name in frame}
        self.measured = [name for name, kind in self.kinds.items() if kind == "measurement"]
        texts = frame.select_dtypes("object")
        frame = frame.assign(**texts.where(texts.notna(), np.nan))  # a gap has one form, whatever the file was
        if gaps:
            whole = {name: float for name in self.measured if pd.api.types.is_integer_dtype(frame[name])}
            frame = frame.astype({**whole, **dict.fromkeys(frame.select_dtypes("bool"), object)})
        self.frame = frame
        self._values: dict[str, pd.Index] = {}
        self.numbers = np.empty(frame.shape)  # (n, d)
        for i, name in enumerate(self.kinds):
            self.numbers[:, i] = self._encoded(name)

    def _encoded(self, name: str) -> np.ndarray:
        column = self.frame[name]
        if self.kinds[name] == "measurement":
            return column.to_numpy(dtype=float, na_value=np.nan)
        if self.kinds[name] == "date":
            return ((column - column.min()) / _DAY).to_numpy(dtype=float)
        codes, self._values[name] = pd.factorize(column)
        return np.where(codes < 0, np.nan, codes)

    def scales(self, among: np.ndarray, *, gaps: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return what `RowChanges` needs of the columns, both (d,): their spread, and what stands for a missing value.

        Args:
            among: (n,) bool, the rows on which both are measured.
            gaps: whether a missing value is a gap; otherwise it is the median, or the most frequent category.
        """
        spread, usual = np.ones(len(self.kinds)), np.full(len(self.kinds), np.nan)
        measured = self.frame.loc[among, self.measured]
        at = [i for i, kind in enumerate(self.kinds.values()) if kind == "measurement"]
        spread[at] = measured.std().replace(0.0, 1.0).fillna(1.0)
        usual[at] = np.nan if gaps else measured.median()
        for i, (name, kind) in enumerate(self.kinds.items()):
            if kind == "category":
                spread[i] = max(1, len(self._values[name]))
                usual[i] = np.nan if gaps else pd.Series(self.numbers[among, i]).mode()[0]
        return spread, usual

    def changed(self, at: np.ndarray, numbers: np.ndarray) -> pd.DataFrame:
        """Return m rows with other numbers (m, d); values whose number is the same stay as they are, bit for bit."""
        rows, before = self.frame.iloc[at].reset_index(drop=True), self.numbers[at]
        differ = (numbers != before) & ~(np.isnan(numbers) & np.isnan(before))
        for i, name in enumerate(self.kinds):
            if differ[:, i].any():
                rows[name] = rows[name].where(
                    ~differ[:, i], self._decoded(name, rows[name], numbers[:, i], before[:, i])
                )
        return rows

    def _decoded(self, name: str, column: pd.Series, numbers: np.ndarray, before: np.ndarray) -> pd.Series:
        found: pd.Series
        if self.kinds[name] == "measurement":
            found = pd.Series(numbers).round() if pd.api.types.is_integer_dtype(column) else pd.Series(numbers)
        elif self.kinds[name] == "date":
            found = column + pd.Series(pd.to_timedelta(numbers - before, unit="D")).dt.round("s")
        else:
            codes = np.where(np.isnan(numbers), -1, numbers).astype(int)
            found = pd.Series(pd.Categorical.from_codes(codes, self._values[name]))
        return found.astype(column.dtype)

    def about(self) -> pd.DataFrame:
        """Return the columns as attributes of items, see `stages.tasks.attributes`: of dates the year."""
        years: Mapping[str, pd.Series] = {n: self.frame[n].dt.year for n, kind in self.kinds.items() if kind == "date"}
        return self.frame.assign(**years)
