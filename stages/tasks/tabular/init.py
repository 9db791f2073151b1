"""`faded init` for tables: which column contains the labels, and what the other columns are.

Also what `faded usage` has to know about rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stages.concepts.rows import CATALOGUE, Kind
from stages.core.errors import UsageError, did_you_mean
from stages.tasks.init import Ask, Data, Init, Model, Option, Proposal, Seen, one_of
from stages.tasks.load import own_function, own_module_error
from stages.tasks.sources import parse_source
from stages.tasks.tabular.data import DATA_LOADERS, SETS, column_kind, read_frame, without_gaps
from stages.tasks.tabular.models import ESTIMATORS
from stages.tasks.tabular.own import FUNCTION, untrusted
from stages.tasks.tabular.probes import RowProbes
from stages.usage import measures
from stages.usage.measures import MOST, Reader, read_table_file

_FITTED = 0.4  # share of the rows that the model is fitted on
_TARGETS = ("target", "label", "class", "diagnosis", "outcome", "y")
_NAMED = 8  # maximum number of columns that are named
_CLASSES = 50  # maximum number of values in a column of labels
_CONCEPTS: Mapping[str, Sequence[float | str]] = {
    "gain": [-20, -10, 0, 10, 20],
    "drift": [-1, -0.5, 0, 0.5, 1],
    "noise": [0, 0.25, 0.5, 0.75, 1],
    "rounding": [0, 0.25, 0.5, 0.75, 1],
    "missing": [0, 0.1, 0.2, 0.3, 0.4],
}
_OF_KIND: Mapping[Kind, Mapping[str, Sequence[float | str]]] = {
    "category": {"swaps": [0, 0.25, 0.5, 1]},
    "date": {"date_shift": [0, 7, 30, 90, 365]},
}
"""Concepts of a table with categories or dates."""


@dataclass(frozen=True)
class _Table(Data):
    """Rows as data of an audit."""

    kinds: Mapping[str, Kind] = field(default_factory=dict)


class RowsInit(Init):
    """Rows with labels, and an estimator that is fitted on some of them, or a model of the user."""

    options: ClassVar[Mapping[str, Option]] = {
        "target": Option("Column to predict.", "COLUMN"),
        "classes": Option("Class names in the order of the probabilities.", "NAME,NAME"),
        "trust": Option(
            "Trust the types of scikit-learn, LightGBM and XGBoost in a .skops file that skops does not trust.",
            switch=True,
        ),
    }
    suffixes = (".skops", ".onnx")
    wants = f"Rows with a label: a .csv or .parquet file, or a set of scikit-learn ({', '.join(SETS)})"
    discrepancy: ClassVar[Mapping[str, Any]] = {"threshold": 0}
    meaning = "How wrong an answer is, from -1 to 1. At a threshold of 0 whatever is misclassified is a failure."
    method = "risk-weighted"

    def model(self, path: Path, ask: Ask) -> Model | None:
        if path.suffix not in self.suffixes:
            return None
        key, block = path.suffix[1:], {}
        if key == "skops" and (types := untrusted(path)):
            if ask.said("trust") is not True:
                raise UsageError(
                    f"--model {path} has types that skops does not trust by itself: {', '.join(types)}. If you do,"
                    " say --trust"
                )
            block["trusted"] = types
        return Model(f"{path.name}, asked as it is", block, path, key, black_box=True)

    def named_model(self, name: str) -> Model | None:
        """See Init: an estimator, which `prepare` fits, or a function in a module beside params.yaml."""
        if re.fullmatch(FUNCTION, name):
            if error := own_module_error(name, "--model"):
                raise UsageError(error)
            own_function(name, "--model")
            return Model(f"the function {name}, asked as it is", {"function": name}, black_box=True)
        if name not in ESTIMATORS:
            return None
        return Model(f"{name} of scikit-learn, fitted on some of the rows", {"estimator": name})

    def usual_model(self, data: str) -> str | None:
        return next(iter(ESTIMATORS)) if data.endswith(".csv") or data in SETS else None

    def named_data(self, name: str) -> Data | None:
        if name not in SETS:
            return None
        return _data(f"{SETS[name]}", {"sklearn": name}, Path(), None)

    def data(self, path: Path, given: str, ask: Ask) -> Data:
        if path.suffix not in (".csv", ".parquet"):
            raise UsageError(f"--data {given}: expected a .csv or .parquet file, a row of the data a line")
        frame = read_frame(path, "--data")
        columns = list(frame)
        asked = f"Which column is to be told ({', '.join(columns)})"
        typical = [name for name in columns if name.lower() in _TARGETS]
        likely = next((name for name in [*typical, columns[-1]] if 2 <= frame[name].nunique() <= _CLASSES), None)
        target = ask.text("target", asked, likely, one_of("target", columns))
        if (many := frame[target].nunique()) > _CLASSES and pd.api.types.is_numeric_dtype(frame[target]):
            raise UsageError(
                f"--target {target} has {many:,} different numbers: only classes are audited, not predicted numbers."
                " Name another column, or sort its numbers into ranges first"
            )
        block: dict[str, Any] = {path.suffix[1:]: path.name, "target": target}
        own = ask.said("model") not in (None, *ESTIMATORS)
        if own and (dates := [name for name in frame if name != target and _is_date(frame[name])]):
            block["dates"] = dates
        seen = _data("", block, path.parent, path, fitted=not own)
        unlabelled, empty = int(frame[target].isna().sum()), [name for name in columns if frame[name].isna().all()]
        also = [f"{unlabelled:,} without {target} are left out"] * bool(unlabelled)
        also += [f"nothing is known of {', '.join(empty)}"] * bool(empty)
        return replace(seen, said="; ".join([seen.said, *also]))

    def hub_data(self, name: str, ask: Ask) -> dict[str, Any]:
        raise UsageError(f"--data {name}: tables of the hub are not read; expected a .csv or .parquet file")

    def propose(self, seen: Seen) -> Proposal:
        kinds = set(_Table.of(seen.data).kinds.values())
        concepts = dict(_CONCEPTS)
        for kind in kinds & _OF_KIND.keys():
            concepts |= _OF_KIND[kind]
        concepts = {name: concepts[name] for name in CATALOGUE if name in concepts}
        notes = {name: CATALOGUE[name].doc for name in concepts}
        fitted = "estimator" in seen.model.block
        rows = round((seen.data.items or 0) / (1 - _FITTED) * _FITTED)
        said = seen.ask.said("classes")
        classes = {"classes": [name.strip() for name in said.split(",")]} if isinstance(said, str) else {}
        return Proposal(concepts, notes, {"rows": rows} if fitted else classes, batch_size=256)


def _data(said: str, block: Mapping[str, Any], folder: Path, path: Path | None, *, fitted: bool = True) -> Data:
    table = parse_source(block, DATA_LOADERS, "--data").load(folder)  # type: ignore[attr-defined]
    rows = without_gaps(table.rows) if fitted else table.rows
    kinds = {str(name): column_kind(rows[name]) for name in rows}
    labels = pd.Series(table.labels)
    counts = labels.value_counts()
    classes = ", ".join(f"{name} ({n:,})" for name, n in counts.items())
    key = next(iter(block)) if path else ""
    more = {name: value for name, value in block.items() if name != key}
    items = int(len(labels) * (1 - _FITTED)) if fitted else len(labels)
    said = f"{said or _told(kinds)}; {len(labels):,} rows in {len(counts)} classes: {classes}"
    return _Table(said, more, path, key, items=items, kinds=kinds)


def _told(kinds: Mapping[str, Kind]) -> str:
    """Return how many columns are of which kind, and which: "2 measurements (age, income), 1 category (region)"."""
    many = {"measurement": "measurements", "category": "categories", "date": "dates"}
    of = {kind: [name for name, one in kinds.items() if one == kind] for kind in many}
    found = []
    for kind, names in ((kind, names) for kind, names in of.items() if names):
        shown = ", ".join([*names[:_NAMED], *(["..."] if len(names) > _NAMED else [])])
        found.append(f"{len(names)} {kind if len(names) == 1 else many[kind]} ({shown})")
    return ", ".join(found)


def _is_date(column: pd.Series) -> bool:
    """Whether a column has texts that are all dates such as 2024-05-31."""
    if column_kind(column) != "category" or column.isna().all():
        return False
    texts = column.dropna().astype(str)
    dates = pd.to_datetime(texts, format="ISO8601", errors="coerce")
    return bool((texts.str.contains("-") & dates.notna()).all())


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
