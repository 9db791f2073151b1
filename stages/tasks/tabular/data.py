"""Tables: a data set of scikit-learn, or a file of the user; and their rows as numbers, which concepts change."""

import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from stages.concepts.rows import Kind
from stages.core.errors import UsageError, did_you_mean
from stages.core.files import local_file, parquet_metadata
from stages.tasks.labels import spelled
from stages.tasks.sources import Source, collect

_DAY = pd.Timedelta("1D")
SETS: Mapping[str, str] = {
    "breast_cancer": "Wisconsin Diagnostic Breast Cancer: 569 tumours, 30 measurements of their cells, benign or not",
    "wine": "Wine recognition: 178 wines of three growers, 13 measurements",
    "digits": "Handwritten digits: 1,797 pictures of 8x8 pixels as 64 measurements",
    "iris": "Iris: 150 flowers of three species, 4 measurements",
}


@dataclass(frozen=True)
class Table:
    """Rows with labels.

    Args:
        rows: one column per feature, with the types and gaps of the file, see `kind_of`.
        labels: the class of each row, as people write it.
        skipped: {file, reason} of rows that were left out.
        protected: columns from which an estimator does not learn.
    """

    rows: pd.DataFrame
    labels: np.ndarray
    skipped: list[dict[str, str]]
    protected: Sequence[str] = ()


def column_kind(column: pd.Series) -> Kind:
    """Return what a column holds: numbers are measurements; what is neither a number nor a date is a category."""
    types = pd.api.types
    if types.is_datetime64_any_dtype(column):
        return "date"
    return "measurement" if types.is_numeric_dtype(column) and not types.is_bool_dtype(column) else "category"


def without_gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows without gaps for the estimators that Faded fits: medians in measurements, and the rest as text."""
    rows = rows.copy()
    for column in rows:
        if column_kind(rows[column]) == "measurement":
            rows[column] = rows[column].astype(float)
            rows[column] = rows[column].fillna(rows[column].median())
        else:
            rows[column] = rows[column].astype(str)
    return rows


class _Rows(Source):
    @abstractmethod
    def load(self, inputs: Path) -> Table:
        """Read the table. Raises a UsageError if there are no rows with labels."""

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: self.load(inputs))

    def available(self, inputs: Path, enough: int) -> Mapping[str, int]:
        return {"": len(self.load(inputs).labels)}


class SklearnSet(_Rows):
    """`sklearn: breast_cancer`."""

    sklearn: str

    def load(self, inputs: Path) -> Table:
        import sklearn.datasets

        if self.sklearn not in SETS:
            hint = did_you_mean(self.sklearn, SETS)
            raise UsageError(f"prepare.data.sklearn: no set {self.sklearn!r}{hint}; expected one of {', '.join(SETS)}")
        loaded = getattr(sklearn.datasets, f"load_{self.sklearn}")()
        rows = pd.DataFrame(loaded.data, columns=[str(name) for name in loaded.feature_names])
        return Table(rows, np.array([str(loaded.target_names[i]) for i in loaded.target]), [])

    def origin(self, inputs: Path) -> str:
        from sklearn import __version__

        return f"{self.sklearn} of scikit-learn {__version__}"


class _File(_Rows):
    target: str = Field(description="column with what is to be told")
    dates: list[str] = Field(default_factory=list, description="columns of text that are read as dates")
    protected: list[str] = Field(
        default_factory=list, description="columns with groups of people: who fails, and is not to be learnt from"
    )
    key: ClassVar[str]

    def load(self, inputs: Path) -> Table:
        where, name = f"prepare.data.{self.key}", str(getattr(self, self.key))
        frame = read_frame(local_file(inputs, name, where), where)
        if self.target not in frame:
            hint = did_you_mean(self.target, list(frame))
            raise UsageError(f"{where}: {name} has no column {self.target!r}{hint}; found {', '.join(frame)}")
        labelled = frame[self.target].notna()
        skipped = [{"file": f"{name}, row {i + 1}", "reason": "no label"} for i in np.flatnonzero(~labelled)]
        frame = frame[labelled].reset_index(drop=True)
        rows = frame.drop(columns=[self.target])
        for column in self.dates:
            rows[column] = _dates(rows, column)
        for column in self.protected:
            _require_groups(rows, column)
        if not len(rows) or all(column_kind(rows[column]) != "measurement" for column in rows):
            raise UsageError(
                f"{where}: {name} has no rows with a label and a number, found the columns {', '.join(rows)};"
                " a classifier of texts is audited from Python, see docs/python.md"
            )
        return Table(rows, np.array([spelled(label) for label in frame[self.target]]), skipped, self.protected)

    def origin(self, inputs: Path) -> str:
        return str(getattr(self, self.key))


class CsvFile(_File):
    """`csv: patients.csv, target: diagnosis`."""

    key = "csv"
    csv: str


class ParquetFile(_File):
    """`parquet: patients.parquet, target: diagnosis`."""

    key = "parquet"
    parquet: str


DATA_LOADERS: Mapping[str, type[Source]] = {"sklearn": SklearnSet, "csv": CsvFile, "parquet": ParquetFile}


def _require_groups(rows: pd.DataFrame, column: str) -> None:
    where = f"prepare.data.protected: {column}"
    if column not in rows:
        raise UsageError(f"{where}: no such column{did_you_mean(column, list(rows))}; found {', '.join(rows)}")
    if column_kind(rows[column]) != "category":
        raise UsageError(f"{where}: expected a column of names; write groups into one, such as '25 to 45'")


def _dates(rows: pd.DataFrame, column: str) -> pd.Series:
    where = f"prepare.data.dates: {column}"
    if column not in rows:
        raise UsageError(f"{where}: no such column{did_you_mean(column, list(rows))}; found {', '.join(rows)}")
    if column_kind(rows[column]) == "measurement":
        raise UsageError(f"{where}: the column has numbers, expected dates such as 2024-05-31")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # dates of several formats, which pandas would guess one by one
            return pd.to_datetime(rows[column])
    except (ValueError, TypeError, UserWarning) as error:
        raise UsageError(
            f"{where}: expected dates of one format, such as 2024-05-31: {str(error).splitlines()[0]}"
        ) from None


def read_frame(path: Path, where: str) -> pd.DataFrame:
    """Read a .csv or .parquet file. Raises a UsageError if it is not a readable table."""
    if path.suffix == ".parquet":
        parquet_metadata(path, where)
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: {path.name} is not a table that can be read: {error}") from None
    return frame.rename(columns=str)


class Rows:
    """Rows as numbers, and back with the types and gaps of the data file.

    Measurements are as they are, categories their number, dates in days; NaN is a gap.

    Args:
        frame: n rows with d columns.
        gaps: whether concepts may leave gaps. Whole numbers then become floats, and yes or no becomes an object, which
            is how pandas reads a column with gaps: the types do not depend on the batch.
    """

    def __init__(self, frame: pd.DataFrame, *, gaps: bool) -> None:
        self.kinds: dict[str, Kind] = {str(name): column_kind(frame[name]) for name in frame}
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
