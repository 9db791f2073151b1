"""Attributes by which people distinguish items: the label, and every column that sorts items into a few groups.

Where they have none, clusters of their embeddings are unnamed kinds. Explorers see features of items, on a few axes of
comparable scale.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd

from stages.concepts.space import COLUMNS
from stages.core.errors import UsageError

MOST_VALUES = 30  # of a column; more groups would be too small to say anything about
MOST_COLUMNS = 20  # each value of each column is one more test, which makes all other tests harder to pass
LABEL = "label"
META = "meta:"  # prefix of columns of items.parquet that came with the user's data
MAX_NAME = 64  # characters in the name of a column
RANGES = 4  # number of ranges that numbers are cut into
MOST_CHARACTERS = 80  # of a value; longer values are text to read, not groups
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # would control a terminal
_TAKEN = COLUMNS - {"group"} | {"embedding", "id", "split"}  # columns of the tables that attributes are written to


def details(row: Mapping[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Return what a row of the user's data contains besides the task's own fields: numbers and short texts."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(name, str) and name not in own and _is_name(name) and _is_detail(value)
    }


def detail_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return details of n items as columns named `META` + name; a column of mixed types becomes text."""
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
    """Return the columns of a table by which people can distinguish items.

    A column counts if it has 2 to 30 values, at least twice as many items as values, and no long texts. Numbers with
    more values are cut into four ranges with about the same number of items each. A column that sorts items exactly as
    an earlier one does is left out, and so is every column after the twentieth.

    Args:
        items: all items of all splits, so that every split has the same ranges; without ids and splits.
        concepts: names already in use; a column of that name becomes "NAME of the item".

    Returns:
        One row for each of `items`, with the same index; strings, None if an item has no value.
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
    """Return the name of an attribute, changed if a concept or a column of a table already has it."""
    return f"{name} of the item" if name in concepts or name in _TAKEN else name


def ranges_of(numbers: Sequence[float], unit: str = "") -> list[str | None]:
    """Return the range of each number, from at most four ranges of about equal size: "12 to 40".

    Args:
        numbers: any numbers; NaN has no range.
        unit: appended to each range ("words").
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
    """Check the attributes a task returned, because a user's task may return anything.

    Raises a UsageError if it is not a table of this form.

    Args:
        found: the result of `LoadedTask.attributes`.
        items: number of items that were requested.
        concepts: names already in use.
        task: name of the task, for messages.

    Returns:
        The same table with rows numbered from 0, each value one line of text, and None for missing values.
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
    """Whether a column has so many distinct numbers that only ranges of them form groups."""
    numbers = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return bool(numbers and not pd.api.types.is_complex_dtype(column) and not _few(column))


def _few(column: pd.Series) -> bool:
    """Whether a column has so few values that each of them forms a group."""
    values = column.nunique()
    return 2 <= values <= MOST_VALUES and 2 * values <= column.count()


def _ranges(column: pd.Series) -> pd.Series | None:
    """Return numbers as ranges; None if there are fewer than two ranges."""
    numbers = column.astype(float)
    said = pd.Series(ranges_of(numbers.where(np.isfinite(numbers)).tolist()), column.index, dtype=object)
    return said if _few(said) else None


def _categories(column: pd.Series) -> pd.Series | None:
    """Return values as people read them; None if they do not form groups."""
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
    """Format a number without a needless fraction or exponent."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"


DIMENSIONS = 64  # more dimensions cost an explorer time and add little


@dataclass(frozen=True)
class PrincipalAxes:
    """Standardised features on at most `DIMENSIONS` principal axes, with unit variance on average.

    Args:
        mean: (d,) mean of the features that the axes were computed from.
        std: (d,) their standard deviation.
        axes: (d, k).
    """

    mean: np.ndarray
    std: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Compute the axes of n feature vectors (n, d); if d <= `DIMENSIONS`, features are only standardised."""
        mean, std = features.mean(0), features.std(0)
        std = np.where(std > 1e-6, std, 1.0)  # a constant feature stays at 0
        scaled = (features - mean) / std
        if scaled.shape[1] <= DIMENSIONS:
            return cls(mean, std, np.eye(scaled.shape[1]))
        _, _, axes = np.linalg.svd(scaled, full_matrices=False)
        axes = axes[:DIMENSIONS]
        # The sign of an axis is arbitrary; fix it, or the same model could give mirrored vectors.
        axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
        spread = (scaled @ axes.T).std() or 1.0
        return cls(mean, std, axes.T / spread)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Project features (n, d) onto the axes: (n, k) float32."""
        return ((features - self.mean) / self.std @ self.axes).astype(np.float32)


KIND = "kind"  # the name of the attribute


@dataclass(frozen=True)
class Kinds:
    """Clusters of items by k-means (Lloyd 1982).

    Args:
        centres: (k, d).
        names: name of each kind, after the item nearest to its centre: "like item 17 (label 9)".
        nearest: by name of a kind, its items, those nearest to the centre first.
    """

    centres: np.ndarray
    names: list[str]
    nearest: dict[str, list[str]]

    @classmethod
    def of(cls, item_ids: Sequence[str], vectors: np.ndarray, labels: Sequence[str | None], count: int) -> Self:
        """Find `count` kinds; the result depends only on the items, not on the seed of the audit.

        Raises a UsageError if the items do not differ enough.

        Args:
            item_ids: n ids.
            vectors: (n, d) what explorers see of them.
            labels: n labels, None for an item without one.
        """
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        vectors = vectors.astype(float)
        if (distinct := len(np.unique(vectors, axis=0))) < count:
            raise UsageError(
                f"summarize.clusters: found {count} kinds to sort the discover items into, whose embeddings take"
                f" {distinct} different value{'s' if distinct != 1 else ''}; expected as many at least (0 for no kinds)"
            )
        with threadpool_limits(1):  # so that sums do not depend on the number of cores
            found = KMeans(count, n_init=10, random_state=0).fit(vectors)
            distances = found.transform(vectors)
        names, nearest = [], {}
        for kind in range(count):
            order = np.argsort(distances[:, kind], kind="stable")
            members = order[distances[order].argmin(axis=1) == kind]
            label = labels[members[0]]
            names.append(f"like item {item_ids[members[0]]}" + ("" if label is None else f" (label {label})"))
            nearest[names[-1]] = [item_ids[member] for member in members]
        return cls(found.cluster_centers_, names, nearest)

    def __call__(self, vectors: np.ndarray) -> list[str]:
        """Return the kind of n items of any split, the one with the centre nearest to each vector (n, d)."""
        from sklearn.metrics import pairwise_distances_argmin

        return [self.names[kind] for kind in pairwise_distances_argmin(vectors.astype(float), self.centres)]
