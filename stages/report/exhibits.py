"""Examples of failure modes as a file: what the review page shows without the model, and no script of ours in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa

from stages.errors import UsageError
from stages.files import read_table
from stages.report.gallery import Gallery
from stages.tasks.contract import Exhibit

_KINDS = {"failed": pa.bool_(), "image": pa.binary(), "drawn": pa.binary()}
_COLUMNS = ("mode", "id", "failed", "caption", "image", "text", "original", "answers", "drawn", "words")
_OPTIONAL = ("image", "text", "original", "drawn")


class ShownExample(NamedTuple):
    """An example of a mode under the id by which a decision refers to it."""

    id: str
    failed: bool
    exhibit: Exhibit


def write_exhibits(path: Path, galleries: Mapping[str, Gallery]) -> None:
    """Write the examples of all modes as parquet, one row each; images are PNG bytes, answers and words are JSON."""
    rows = [
        {
            **{name: getattr(e, name) for name in ("caption", "image", "text", "original", "drawn")},
            "mode": mode,
            "id": id_,
            "failed": failed,
            "answers": json.dumps(dict(e.answers), ensure_ascii=False),
            "words": json.dumps([list(word) for word in e.words], ensure_ascii=False),
        }
        for mode, gallery in galleries.items()
        for n, (id_, e) in enumerate(zip(gallery.ids, [*gallery.failing, *gallery.passing], strict=True))
        for failed in [n < len(gallery.failing)]
    ]
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    schema = pa.schema([(name, _KINDS.get(name, pa.string())) for name in _COLUMNS])
    table.to_parquet(path, index=False, schema=schema)


def read_exhibits(path: Path) -> dict[str, list[ShownExample]]:
    """Read what `write_exhibits` wrote: examples by mode, failing ones first.

    Raises:
        UsageError: when there is none, or it is no such file.
    """
    table = read_table(path)
    if missing := sorted(set(_COLUMNS) - set(table.columns)):
        raise UsageError(f"{path} lacks the column(s) {', '.join(missing)}, found {', '.join(table.columns)}")
    shown: dict[str, list[ShownExample]] = {}
    for row in table.to_dict("records"):
        optional = {name: row[name] if isinstance(row[name], str | bytes) else None for name in _OPTIONAL}
        exhibit = Exhibit(
            row["caption"],
            **optional,
            answers=json.loads(row["answers"]),
            words=tuple((text, slot) for text, slot in json.loads(row["words"])),
        )
        shown.setdefault(row["mode"], []).append(ShownExample(row["id"], bool(row["failed"]), exhibit))
    return shown
