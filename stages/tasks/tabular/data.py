"""Tables: a data set of scikit-learn, or a file of the user."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from stages.concepts.rows import Kind
from stages.errors import UsageError, did_you_mean
from stages.files import local_file
from stages.tasks.functions.answers import spelled
from stages.tasks.source import Source, collect

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
    """

    rows: pd.DataFrame
    labels: np.ndarray
    skipped: list[dict[str, str]]


def kind_of(column: pd.Series) -> Kind:
    """Return what a column holds: numbers are measurements; what is neither a number nor a date is a category."""
    types = pd.api.types
    if types.is_datetime64_any_dtype(column):
        return "date"
    return "measurement" if types.is_numeric_dtype(column) and not types.is_bool_dtype(column) else "category"


def filled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows without gaps for the estimators that Faded fits: medians in measurements, and the rest as text."""
    rows = rows.copy()
    for column in rows:
        if kind_of(rows[column]) == "measurement":
            rows[column] = rows[column].astype(float)
            rows[column] = rows[column].fillna(rows[column].median())
        else:
            rows[column] = rows[column].astype(str)
    return rows


class _Rows(Source):
    @abstractmethod
    def load(self, inputs: Path) -> Table:
        """Read the table.

        Raises:
            UsageError: if there are no rows with labels.
        """

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
        if not len(rows) or all(kind_of(rows[column]) != "measurement" for column in rows):
            raise UsageError(f"{where}: {name} has no rows with a label and a number")
        return Table(rows, np.array([spelled(label) for label in frame[self.target]]), skipped)

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


def _dates(rows: pd.DataFrame, column: str) -> pd.Series:
    where = f"prepare.data.dates: {column}"
    if column not in rows:
        raise UsageError(f"{where}: no such column{did_you_mean(column, list(rows))}; found {', '.join(rows)}")
    if kind_of(rows[column]) == "measurement":
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
    """Read a .csv or .parquet file.

    Raises:
        UsageError: if it is not a readable table.
    """
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{where}: {path.name} is not a table that can be read: {error}") from None
    return frame.rename(columns=str)
