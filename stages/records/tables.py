"""Records that are tables, not JSON: examples and contact sheets as people see them, embeddings, probes and cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.records.base import JsonRecord, Listed
from stages.tasks.contract import Exhibit, Sheet, Tally

if TYPE_CHECKING:
    import pandas as pd

PROBES = ("role", "item", "repeat", "discrepancy", "failed", "output")  # and one column per concept
_EXHIBIT = ("caption", "image", "text", "original", "answers", "drawn", "words")
_BYTES = ("image", "drawn", "drawn_after")


class ShownExample(NamedTuple):
    """An example of a mode under the id by which decisions refer to it."""

    id: str
    failed: bool
    exhibit: Exhibit


class PairedProbe(NamedTuple):
    """A probe answered by two models.

    Args:
        exhibit: with the answer of the model before the repair.
        before: the output before the repair.
        after: the output after the repair.
        drawn: the picture (PNG) after the repair, if the answer is one.
        cell: a level of each concept.
    """

    exhibit: Exhibit
    before: str
    after: str
    drawn: bytes | None = None
    item: str = ""
    cell: Sequence[int] = ()


class Embedded(NamedTuple):
    """Items in order, their embeddings (items, d), and the attributes by which people distinguish them.

    `attributes` has one row per item and columns of strings, see `LoadedTask.attributes`; no columns if none are known.
    """

    item_ids: list[str]
    vectors: np.ndarray
    attributes: pd.DataFrame

    @property
    def told_apart(self) -> pd.DataFrame:
        """The attributes indexed by item id, with one row per item even if none are known."""
        return self.attributes.reindex(range(len(self.item_ids))).set_axis(self.item_ids)


class Tallies(JsonRecord):
    """tallies.json: a model's choices where the input leaves them open; empty for a task without tallies."""

    tallies: Listed[Tally]


class ModelTallies(JsonRecord):
    """Tallies by model ("before", "after", and optionally "control" and "noise")."""

    models: dict[str, Listed[Tally]]


def read_parquet(data: bytes | Path, where: str, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Read a table written by a stage.

    Raises a UsageError if it is missing, cannot be read, or lacks a column.

    Args:
        data: the file, or its bytes.
        where: its name, for messages.
    """
    table = read_table(data, where)
    check_table(table, where, columns)
    return table


def check_table(table: pd.DataFrame, where: str, columns: Iterable[str]) -> None:
    """Check that a table has these columns. Raises a UsageError with those that are missing."""
    if missing := sorted(set(columns) - set(table.columns)):
        raise UsageError(f"{where} lacks the column(s) {', '.join(missing)}, found {', '.join(table.columns)}")


def _write(path: Path, rows: list[dict[str, object]], columns: Sequence[str], **kinds: object) -> None:
    import pandas as pd
    import pyarrow as pa

    types = {name: pa.binary() for name in _BYTES} | kinds
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    pd.DataFrame(rows, columns=list(columns)).to_parquet(path, index=False, schema=schema)


def _row(exhibit: Exhibit) -> dict[str, object]:
    return {
        **{name: getattr(exhibit, name) for name in ("caption", "image", "text", "original", "drawn")},
        "answers": json.dumps(dict(exhibit.answers), ensure_ascii=False),
        "words": json.dumps([list(word) for word in exhibit.words], ensure_ascii=False),
    }


def _exhibit(row: Mapping[str, object]) -> Exhibit:
    optional = {name: _given(row[name]) for name in ("image", "text", "original", "drawn")}
    words = tuple((text, slot) for text, slot in json.loads(str(row["words"])))
    return Exhibit(str(row["caption"]), **optional, answers=json.loads(str(row["answers"])), words=words)  # type: ignore[arg-type]


def _given(value: object) -> str | bytes | None:
    return value if isinstance(value, str | bytes) else None


_SHOWN = ("mode", "id", "failed", *_EXHIBIT)


def write_exhibits(path: Path, shown: Mapping[str, Sequence[ShownExample]]) -> None:
    """Write examples by mode, one row each; images are PNG bytes, answers and words are JSON."""
    import pyarrow as pa

    rows = [
        {"mode": mode, "id": one.id, "failed": one.failed, **_row(one.exhibit)}
        for mode, shelf in shown.items()
        for one in shelf
    ]
    _write(path, rows, _SHOWN, failed=pa.bool_())


def read_exhibits(data: bytes | Path, where: str) -> dict[str, list[ShownExample]]:
    """Read a file written by `write_exhibits`: examples by mode, failing ones first.

    Raises a UsageError if it is missing or not such a file.
    """
    shown: dict[str, list[ShownExample]] = {}
    for row in read_parquet(data, where, _SHOWN).to_dict("records"):
        shown.setdefault(row["mode"], []).append(ShownExample(row["id"], bool(row["failed"]), _exhibit(row)))
    return shown


_COMPARED = ("kind", *_EXHIBIT, "before", "after", "drawn_after", "item", "cell")


def write_compared(path: Path, compared: Mapping[str, Sequence[PairedProbe]]) -> None:
    """Write examples of a repair's changes by kind ("fixed", "newly_failing"), and their items "unchanged"."""
    rows = [
        {
            "kind": kind,
            **_row(one.exhibit),
            "before": one.before,
            "after": one.after,
            "drawn_after": one.drawn,
            "item": one.item,
            "cell": json.dumps(list(one.cell)),
        }
        for kind, shelf in compared.items()
        for one in shelf
    ]
    _write(path, rows, _COMPARED)


def read_compared(data: bytes | Path, where: str) -> dict[str, list[PairedProbe]]:
    """Read a file written by `write_compared`; see `read_exhibits`."""
    compared: dict[str, list[PairedProbe]] = {"fixed": [], "newly_failing": [], "unchanged": []}
    for row in read_parquet(data, where, _COMPARED).to_dict("records"):
        drawn = row["drawn_after"] if isinstance(row["drawn_after"], bytes) else None
        cell = tuple(json.loads(row["cell"]))
        compared[row["kind"]].append(PairedProbe(_exhibit(row), row["before"], row["after"], drawn, row["item"], cell))
    return compared


_SHEET = ("model", "sheet", "title", "columns", "label", "image")


def write_sheets(path: Path, sheets: Mapping[str, Sequence[Sheet]]) -> None:
    """Write contact sheets by model, one table row per row of pictures."""
    rows: list[dict[str, object]] = [
        {
            "model": model,
            "sheet": str(n),
            "title": sheet.title,
            "columns": json.dumps(list(sheet.columns), ensure_ascii=False),
            "label": label,
            "image": image,
        }
        for model, drawn in sheets.items()
        for n, sheet in enumerate(drawn)
        for label, image in sheet.rows
    ]
    _write(path, rows, _SHEET)


def read_sheets(data: bytes | Path, where: str) -> dict[str, list[Sheet]]:
    """Read a file written by `write_sheets`; see `read_exhibits`."""
    sheets: dict[str, list[Sheet]] = {}
    table = read_parquet(data, where, _SHEET)
    for (model, _), rows in table.groupby(["model", "sheet"], sort=False):
        strips = list(zip(rows["label"].tolist(), rows["image"].tolist(), strict=True))
        sheets.setdefault(model, []).append(Sheet(rows["title"].iloc[0], json.loads(rows["columns"].iloc[0]), strips))
    return sheets


def write_embedded(path: Path, embedded: Embedded) -> None:
    """Write items, their embeddings, and one column per attribute."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {
        "item": pa.array(embedded.item_ids, pa.string()),
        "embedding": pa.array(list(embedded.vectors)),
    }
    attributes = embedded.attributes
    columns |= {name: pa.array(attributes[name].tolist(), pa.string(), from_pandas=True) for name in attributes}
    pq.write_table(pa.table(columns), path)


def read_embedded(data: bytes | Path, where: str) -> Embedded:
    """Read a file written by `write_embedded`; see `read_exhibits`. Files of earlier versions have no attributes."""
    table = read_parquet(data, where, ("item", "embedding"))
    attributes = table.drop(columns=["item", "embedding"])
    return Embedded(table["item"].tolist(), np.stack(table["embedding"].tolist()), attributes)
