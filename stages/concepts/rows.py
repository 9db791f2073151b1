"""Concepts for the columns of a row, applied in the order in which such errors occur.

First come errors of the instrument (gain, drift, noise), then those of whoever records its reading (decimal slips,
rounding, swaps of categories, wrong dates, missing). Sizes are in standard deviations of each measurement, because
units differ. A concept for a group of columns has the group's name as a suffix: `drift_worst`.

A row is d numbers: measurements as they are, the number of each category, dates in days; NaN is a gap.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal
from zlib import crc32

import numpy as np

from stages.concepts.catalogue import Change, steps_of
from stages.concepts.space import ConceptSpace

Kind = Literal["measurement", "category", "date"]
Apply = Callable[[np.ndarray, float, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""(values (d,), level, spread (d,), usual (d,), draws) -> changed values (d,), see `RowChanges`."""


@dataclass(frozen=True)
class RowConcept(Change):
    """A concept for some columns of a row.

    Args:
        kinds: the kinds of columns it applies to.
        columns: patterns of the column names it applies to.
    """

    neutral: float = 0
    apply: Apply = lambda values, *_: values
    kinds: tuple[Kind, ...] = ("measurement",)
    columns: tuple[str, ...] = ("*",)


def _slip(
    values: np.ndarray, level: float, spread: np.ndarray, usual: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    chosen = rng.permutation(len(values))[: round(level)]
    return values * np.where(np.isin(np.arange(len(values)), chosen), np.where(rng.random() < 0.5, 10.0, 0.1), 1.0)


def _swaps(
    values: np.ndarray, level: float, spread: np.ndarray, usual: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    others = (values + rng.integers(1, np.maximum(spread, 2))) % spread
    return np.where(_some(len(values), level, rng), others, values)


def _missing(
    values: np.ndarray, level: float, spread: np.ndarray, usual: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    return np.where(_some(len(values), level, rng), usual, values)


def _some(n: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Choose a share of n values, (n,) bool; a fraction of a value is one with that probability."""
    return rng.permutation(n) < np.floor(share * n + rng.random())


CATALOGUE: Mapping[str, RowConcept] = {
    concept.name: concept
    for concept in (
        RowConcept(
            "gain", "measured too high by so many percent", -90, 900, unit="%", apply=lambda v, x, *_: v * (1 + x / 100)
        ),
        RowConcept(
            "drift",
            "added to each measurement, in its standard deviations",
            -20,
            20,
            apply=lambda v, x, s, *_: v + x * s,
        ),
        RowConcept(
            "noise",
            "Gaussian noise, in standard deviations",
            0,
            20,
            apply=lambda v, x, s, u, rng: v + x * s * rng.standard_normal(len(v)),
        ),
        RowConcept("decimal_slips", "measurements with the decimal point one place off", 0, 100, apply=_slip),
        RowConcept(
            "rounding",
            "to steps of so many standard deviations",
            0,
            10,
            apply=lambda v, x, s, *_: np.round(v / (x * s)) * x * s,
        ),
        RowConcept(
            "swaps",
            "share of categories replaced by another value of their column",
            0,
            1,
            apply=_swaps,
            kinds=("category",),
        ),
        RowConcept(
            "date_shift",
            "dates too late by so many days",
            -3650,
            3650,
            unit=" days",
            apply=lambda v, x, *_: v + x,
            kinds=("date",),
        ),
        RowConcept(
            "missing",
            "share of values that are missing",
            0,
            1,
            apply=_missing,
            kinds=("measurement", "category", "date"),
        ),
    )
}
"""All concepts, in the order in which they are applied."""


def with_groups(groups: Mapping[str, Sequence[str]]) -> dict[str, RowConcept]:
    """Return the concepts of all measurements, each followed by its variants for groups of columns."""
    found = {}
    for name, concept in CATALOGUE.items():
        found[name] = concept
        for group, columns in groups.items():
            doc = f"{concept.doc}, of {', '.join(columns)}"
            found[f"{name}_{group}"] = replace(concept, name=f"{name}_{group}", doc=doc, columns=tuple(columns))
    return found


def columns_of(concept: RowConcept, columns: Mapping[str, Kind]) -> list[int]:
    """Return the indices of the columns that a concept applies to, given the kind of each by name."""
    return [
        i
        for i, (column, kind) in enumerate(columns.items())
        if kind in concept.kinds and any(fnmatchcase(column, pattern) for pattern in concept.columns)
    ]


def idle_concepts(names: Iterable[str], catalogue: Mapping[str, RowConcept], columns: Mapping[str, Kind]) -> list[str]:
    """List the concepts of an audit that have no column to change, one line each."""
    found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    return [
        f"concepts.{name}: no column to change, expected a {' or '.join(catalogue[name].kinds)} named"
        f" {' or '.join(catalogue[name].columns)}; found {found}"
        for name in names
        if not columns_of(catalogue[name], columns)
    ]


class RowChanges:
    """Applies cells to rows.

    Args:
        catalogue: how each concept is applied, in this order.
        columns: the kind of each of the d columns, by name.
        spread: (d,) standard deviations of measurements, numbers of values of categories.
        usual: (d,) what stands for a missing value; NaN for a gap.
    """

    def __init__(
        self,
        space: ConceptSpace,
        catalogue: Mapping[str, RowConcept],
        columns: Mapping[str, Kind],
        spread: np.ndarray,
        usual: np.ndarray,
    ) -> None:
        self._spread, self._usual = spread, usual
        self._steps = [
            (*step, np.array(columns_of(step[0], columns), dtype=int)) for step in steps_of(space, catalogue)
        ]

    def __call__(self, rows: np.ndarray, cells: np.ndarray, chance: np.ndarray) -> np.ndarray:
        """Change each of n rows by a cell.

        Args:
            rows: (n, d).
            cells: (n, concepts) level indices.
            chance: (n,) uint64, a random number per probe, so that a result does not depend on the rest of the batch.

        Returns:
            (n, d); a row of the neutral cell is unchanged, bit for bit.
        """
        changed = rows.copy()
        for concept, at, levels, among in self._steps:
            stream = crc32(concept.name.encode())
            for row in np.flatnonzero([levels[i] != concept.neutral for i in cells[:, at]]):
                rng = np.random.default_rng([int(chance[row]), stream])
                changed[row, among] = concept.apply(
                    changed[row, among], float(levels[cells[row, at]]), self._spread[among], self._usual[among], rng
                )
        return changed
