"""By what people tell items apart: their label, and every other column that sorts them into a few groups."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts.space import COLUMNS
from stages.errors import UsageError

MOST_VALUES = 30  # of a column; more groups than that are too small to say anything about
MOST_COLUMNS = 20  # each value of each is one more test, which makes all others harder to pass
LABEL = "label"
META = "meta:"  # before the name of a column of items.parquet that came with the user's data
MAX_NAME = 64  # characters of the name of a column
RANGES = 4  # that numbers are cut into
MOST_CHARACTERS = 80  # of a value; what is longer is text to read, not a group
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # would act on a terminal
_TAKEN = COLUMNS - {"group"} | {"embedding", "id", "split"}  # columns of the tables that attributes are written to


def details(row: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """What a row of the user's data says of an item beside the fields that the task reads: numbers and short texts."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(name, str) and name not in own and _is_name(name) and _is_detail(value)
    }


def detail_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Details of n items as columns of items.parquet, `META` before each name; a column of mixed kinds becomes text."""
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = {"number" if _is_number(value) else type(value) for value in values if value is not None}
        columns[META + name] = values if len(kinds) == 1 else [None if v is None else _said(v) for v in values]
    return columns


def _is_name(name: str) -> bool:
    return 0 < len(name) <= MAX_NAME and name.isprintable()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_detail(value: Any) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= MOST_CHARACTERS
    return isinstance(value, bool) or (_is_number(value) and abs(value) < 2**63)


def attributes_of(items: pd.DataFrame, concepts: Collection[str] = ()) -> pd.DataFrame:
    """The columns of a table by which people can tell items apart.

    A column counts if it has 2 to 30 values, at least twice as many items as values, and no long texts. Numbers with
    more values are cut into four ranges of about as many items each. A column that sorts items exactly as an earlier
    one does is left out, and so is every column after the twentieth.

    Args:
        items: all items, whatever their split, so that every split has the same ranges; ids and splits left out.
        concepts: names that are taken; a column of such a name becomes "NAME of the item".

    Returns:
        A row for each of `items`, with the same index; strings, None where an item has no value.
    """
    found: dict[str, pd.Series] = {}
    groups: set[tuple[int, ...]] = set()
    for name, column in items.items():
        values = _ranges(column) if _is_measured(column) else _categories(column)
        if values is None or len(found) == MOST_COLUMNS:
            continue
        group = tuple(pd.factorize(values)[0].tolist())
        if group not in groups:
            groups.add(group)
            found[free_name(str(name).removeprefix(META), concepts)] = values
    return pd.DataFrame(found, index=items.index)


def free_name(name: str, concepts: Collection[str]) -> str:
    """The name of an attribute, changed where a concept or a column of a table has it."""
    return f"{name} of the item" if name in concepts or name in _TAKEN else name


def ranges_of(numbers: Sequence[float], unit: str = "") -> list[str | None]:
    """Numbers as the range each lies in, of at most four that hold about as many: "12 to 40".

    Args:
        numbers: any; NaN is in none.
        unit: said behind each range ("words").
    """
    values = pd.Series(numbers, dtype=float)
    if values.nunique() <= 1:
        return [None if np.isnan(value) else f"{_plain(value)} {unit}".rstrip() for value in values]
    groups = values.groupby(pd.qcut(values, RANGES, labels=False, duplicates="drop"))
    low, high = groups.transform("min"), groups.transform("max")
    ends = pd.concat([low, high]).dropna().unique()
    digits = next((d for d in range(3, 17) if len({_plain(e, d) for e in ends}) == len(ends)), 17)
    said = [
        _plain(a, digits) if a == b else f"{_plain(a, digits)} to {_plain(b, digits)}"
        for a, b in zip(low, high, strict=True)
    ]
    return [None if np.isnan(value) else f"{s} {unit}".rstrip() for value, s in zip(values, said, strict=True)]


def check_attributes(found: pd.DataFrame, items: int, concepts: Collection[str], task: str) -> pd.DataFrame:
    """Check what a task says of its items, as a task of the user's own may say anything.

    Args:
        found: what `LoadedTask.attributes` returned.
        items: how many were asked for.
        concepts: names that are taken.
        task: its name, for messages.

    Returns:
        The same with rows numbered from 0, each value one line of text, and None for what is missing.

    Raises:
        UsageError: when it is not such a table.
    """
    what = f"{task}.attributes"
    if not isinstance(found, pd.DataFrame) or len(found) != items:
        rows = f"{len(found)} rows" if isinstance(found, pd.DataFrame) else type(found).__name__
        raise UsageError(f"{what}: found {rows}, expected a DataFrame with a row for each of {items} items")
    names = list(found.columns)
    if odd := [name for name in names if not (isinstance(name, str) and _is_name(name)) or names.count(name) > 1]:
        raise UsageError(f"{what}: found a column named {odd[0]!r}, expected names that are a line of text, each once")
    if taken := [name for name in names if name in _TAKEN or name in concepts]:
        raise UsageError(f"{what}: {taken[0]!r} is the name of a concept or of a column of the tables, choose another")
    table = found.reset_index(drop=True).astype(object)
    table = table.where(table.notna(), None)
    for name in names:
        if wrong := [value for value in table[name] if value is not None and not isinstance(value, str)]:
            raise UsageError(f"{what}: {name!r} holds {wrong[0]!r}, expected text, or None where there is no value")
        lines = [None if value is None else _said(value) for value in table[name]]
        table[name] = pd.Series(lines, dtype=object)
    return table


def _is_measured(column: pd.Series) -> bool:
    """Whether a column holds so many numbers that only ranges of them are groups."""
    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return bool(numbers and not pd.api.types.is_complex_dtype(column) and not _few(column))


def _few(column: pd.Series) -> bool:
    """Whether a column has so few values that each is a group of items."""
    values = column.nunique()
    return 2 <= values <= MOST_VALUES and 2 * values <= column.count()


def _ranges(column: pd.Series) -> pd.Series | None:
    """Numbers as ranges; None where there are not two."""
    numbers = column.astype(float)
    said = pd.Series(ranges_of(numbers.where(np.isfinite(numbers)).tolist()), column.index, dtype=object)
    return said if _few(said) else None


def _categories(column: pd.Series) -> pd.Series | None:
    """Values as people read them; None where they are not groups of items."""
    said = {}
    for value in column.dropna():
        if not isinstance(value, str | bool | int | float | np.bool_ | np.integer | np.floating):
            return None  # bytes, vectors
        said[value] = _said(value)
        if len(said[value]) > MOST_CHARACTERS or len(said) > MOST_VALUES:
            return None
    named = column.map(said).astype(object)
    named = named.where(named.notna() & (named != ""), None)
    return named if _few(named) else None


def _said(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return " ".join(_CONTROL.sub(" ", value).split()) if isinstance(value, str) else _plain(float(str(value)), 15)


def _plain(value: float, digits: int = 6) -> str:
    """A number without a needless fraction or exponent."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
