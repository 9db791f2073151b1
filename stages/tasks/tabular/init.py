"""`faded init` for tables: which column contains the labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from stages.errors import UsageError, did_you_mean
from stages.tasks.init import Ask, Data, Init, Model, Option, Proposal, Seen
from stages.tasks.tabular.concepts import CATALOGUE
from stages.tasks.tabular.data import DATA_LOADERS, SETS, read_frame
from stages.tasks.tabular.models import ESTIMATORS

_FITTED = 0.4  # share of the rows that the model is fitted on
_TARGETS = ("target", "label", "class", "diagnosis", "outcome", "y")
_CLASSES = 50  # maximum number of values in a column of labels
_CONCEPTS: Mapping[str, Sequence[float | str]] = {
    "gain": [0, 5, 10, 15, 20],
    "drift": [0, 0.25, 0.5, 0.75, 1],
    "noise": [0, 0.25, 0.5, 0.75, 1],
    "rounding": [0, 0.25, 0.5, 0.75, 1],
    "missing": [0, 0.1, 0.2, 0.3, 0.4],
}


class RowsInit(Init):
    """Rows with labels, and an estimator that is fitted on some of them."""

    options: ClassVar[Mapping[str, Option]] = {"target": Option("Column to predict.", "COLUMN")}
    wants = f"Rows with a label: a .csv or .parquet file, or a set of scikit-learn ({', '.join(SETS)})"
    discrepancy: ClassVar[Mapping[str, Any]] = {"threshold": 0}
    meaning = "How wrong an answer is, from -1 to 1. At a threshold of 0 whatever is misclassified is a failure."
    method = "risk-weighted"

    def named_model(self, name: str) -> Model | None:
        """See Init: an estimator, which `prepare` fits."""
        if name not in ESTIMATORS:
            return None
        return Model(f"{name} of scikit-learn, fitted on some of the rows", {"estimator": name})

    def usual_model(self, data: str) -> str | None:
        """See Init."""
        return next(iter(ESTIMATORS)) if data.endswith(".csv") or data in SETS else None

    def named_data(self, name: str) -> Data | None:
        """See Init."""
        if name not in SETS:
            return None
        return _data(f"{SETS[name]}", {"sklearn": name}, Path(), None)

    def data(self, path: Path, given: str, ask: Ask) -> Data:
        """See Init: asks for the column of labels."""
        if path.suffix not in (".csv", ".parquet"):
            raise UsageError(f"--data {given}: expected a .csv or .parquet file, a row of the data a line")
        frame = read_frame(path, "--data")
        columns = list(frame)

        def check(answer: str) -> None:
            if answer not in columns:
                hint = did_you_mean(answer, columns)
                raise UsageError(f"--target {answer}: no such column{hint}; found {', '.join(columns)}")

        asked = f"Which column is to be told ({', '.join(columns)})"
        target = ask.text("target", asked, _likely(frame), check)
        return _data(
            f"{len(frame.columns) - 1} columns", {path.suffix[1:]: path.name, "target": target}, path.parent, path
        )

    def hub_data(self, name: str, ask: Ask) -> dict[str, Any]:
        """See Init."""
        raise UsageError(f"--data {name}: tables of the hub are not read; expected a .csv or .parquet file")

    def propose(self, seen: Seen) -> Proposal:
        """See Init."""
        notes = {name: CATALOGUE[name].doc for name in _CONCEPTS}
        rows = round((seen.data.items or 0) / (1 - _FITTED) * _FITTED)
        return Proposal(_CONCEPTS, notes, {"rows": rows}, batch_size=256)


def _data(said: str, block: Mapping[str, Any], folder: Path, path: Path | None) -> Data:
    from stages.tasks.sources import parse_source

    labels = pd.Series(parse_source(block, DATA_LOADERS, "--data").load(folder).labels)  # type: ignore[attr-defined]
    counts = labels.value_counts()
    classes = ", ".join(f"{name} ({n:,})" for name, n in counts.items())
    key = next(iter(block)) if path else ""
    more = {name: value for name, value in block.items() if name != key}
    items = int(len(labels) * (1 - _FITTED))
    return Data(f"{said}, {len(labels):,} rows in {len(counts)} classes: {classes}", more, path, key, items=items)


def _likely(frame: pd.DataFrame) -> str | None:
    """Return the column with a typical name for labels, or else the last one, if it has few values."""
    named = [name for name in frame if name.lower() in _TARGETS]
    return next((name for name in [*named, frame.columns[-1]] if 2 <= frame[name].nunique() <= _CLASSES), None)
