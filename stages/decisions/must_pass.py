"""Pairs of item and cell that must pass after the next repair: data/<audit>/decisions/must_pass.csv."""

import io
import re

from stages.concepts import ConceptSpace
from stages.core.errors import UsageError, did_you_mean, first_of, one_line
from stages.decisions.files import decisions_dir
from stages.records import PlannedPair

MUST_PASS = "must_pass.csv"
_QUOTED = re.compile(r"^'(?=[=+\-@\t\r])")  # see `stages.pages.page.not_computed`


def read_must_pass(audit: str, space: ConceptSpace) -> list[PlannedPair]:
    """Return the pairs that an audit's file lists; empty without one; see `parse_must_pass`."""
    path = decisions_dir(audit) / MUST_PASS
    return parse_must_pass(path.read_bytes(), path.as_posix(), space) if path.exists() else []


def parse_must_pass(data: bytes, path: str, space: ConceptSpace) -> list[PlannedPair]:
    """Return the pairs in a table like conclude/broken.csv, which a person may have edited.

    Raises a UsageError if it is not a table, or lacks a column, or names an unknown level.

    Args:
        path: the file's name for messages.
        space: the grid of the landscape; every level is named as people read it.
    """
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except ValueError as error:
        raise UsageError(f"{path} cannot be read as a table: {one_line(error)}") from None
    table = table.rename(columns=_unquoted).map(_unquoted)
    if missing := [name for name in ("item", *space.names) if name not in table]:
        raise UsageError(
            f"{path} lacks the column(s) {', '.join(missing)}, found {', '.join(map(str, table))}; expected those of"
            " conclude/broken.csv"
        )
    cells = {}
    for concept in space.concepts:
        levels = {concept.label(level): level for level in range(len(concept))}
        for row, told in enumerate(table[concept.name]):
            if told not in levels:
                raise UsageError(
                    f"{path}, row {row + 1}: {concept.name} is {told!r}{did_you_mean(told, levels)}; expected"
                    f" {first_of(list(levels), 12)}"
                )
        cells[concept.name] = table[concept.name].map(levels)
    pairs = pd.DataFrame({"item": table["item"]} | cells).drop_duplicates()
    return [PlannedPair(item=item, cell=cell) for item, *cell in pairs.to_numpy().tolist()]


def _unquoted(text: str) -> str:
    return _QUOTED.sub("", text)
