"""Data inside a page: JSON for its script, and compressed tables, so that thousands of rows fit."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any, NamedTuple

import pandas as pd
from markupsafe import Markup

from stages.concepts import ConceptSpace

PAGE_BYTES = 5_000_000  # of a whole page
_FORMULA = r"^(?=[=+\-@\t\r])"  # cells that a spreadsheet would evaluate


def json_block(data: Any) -> Markup:
    """Return data for a <script type="application/json">, escaped so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def packed(data: bytes) -> str:
    """Return the base64 of the gzip; the same bytes on every run."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


class Packed(NamedTuple):
    """A CSV file inside a page: the compressed data, the number of rows included, and the total."""

    data: str
    rows: int
    of: int


def pack_probes(probes: pd.DataFrame, space: ConceptSpace, room: int) -> Packed:
    """Pack all probes with readable levels, or a random sample of them if not all fit.

    Args:
        probes: as in discover's probes.parquet.
        space: the grid.
        room: bytes available in the page.
    """
    before = [name for name in ("role", "item", "repeat") if name in probes]
    after = [name for name in ("output", "discrepancy", "failed", "valid") if name in probes]
    table = probes[[*before, *space.names, *after]].copy()
    for concept in space.concepts:
        table[concept.name] = table[concept.name].map(dict(enumerate(map(concept.label, range(len(concept))))))
    for name in table.columns.difference(["repeat", "discrepancy", "failed", "valid"]):
        table[name] = table[name].astype(str).str.replace(_FORMULA, "'", regex=True)
    table.columns = table.columns.str.replace(_FORMULA, "'", regex=True)
    table["discrepancy"] = table["discrepancy"].round(4)
    kept, data = table, packed(table.to_csv(index=False).encode())
    while len(data) > room:
        kept = table.sample(int(0.95 * len(kept) * room / len(data)), random_state=0).sort_index()
        data = packed(kept.to_csv(index=False).encode())
    return Packed(data, len(kept), len(table))
