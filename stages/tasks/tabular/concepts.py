"""Concepts for the measurements of a row, applied in the order in which such errors occur.

First come errors of the instrument (gain, drift, noise), then those of whoever records its reading (decimal slips,
rounding, missing). Sizes are in standard deviations of each measurement, because units differ. A concept for a group of
columns has the group's name as a suffix: `drift_worst`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from zlib import crc32

import numpy as np

from stages.concepts import ConceptSpace
from stages.concepts.catalogue import Change

Apply = Callable[[np.ndarray, float, np.ndarray, np.ndarray, np.random.Generator], np.ndarray]
"""(values (d,), level, spread (d,), usual (d,), draws) -> changed values (d,)."""


@dataclass(frozen=True)
class RowConcept(Change):
    """A concept for the measurements of a row.

    Args:
        apply: applies it.
        columns: patterns of the column names it applies to.
    """

    neutral: float = 0
    apply: Apply = lambda values, *_: values
    columns: tuple[str, ...] = ("*",)


def _slip(
    values: np.ndarray, level: float, spread: np.ndarray, usual: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    chosen = rng.permutation(len(values))[: round(level)]
    return values * np.where(np.isin(np.arange(len(values)), chosen), np.where(rng.random() < 0.5, 10.0, 0.1), 1.0)


def _missing(
    values: np.ndarray, level: float, spread: np.ndarray, usual: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    return np.where(rng.permutation(len(values)) < round(level * len(values)), usual, values)


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
        RowConcept("missing", "share of measurements replaced by the usual value", 0, 1, apply=_missing),
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


class RowChanges:
    """Applies cells to rows.

    Args:
        space: the grid.
        catalogue: how each concept is applied, in this order.
        columns: names of the d measurements.
        spread: (d,) their standard deviations.
        usual: (d,) their medians.
    """

    def __init__(
        self,
        space: ConceptSpace,
        catalogue: Mapping[str, RowConcept],
        columns: Sequence[str],
        spread: np.ndarray,
        usual: np.ndarray,
    ) -> None:
        self._spread, self._usual = spread, usual
        self._steps = []
        for name, concept in catalogue.items():
            if name in space.names:
                at = space.names.index(name)
                among = [i for i, column in enumerate(columns) if any(fnmatchcase(column, p) for p in concept.columns)]
                self._steps.append((concept, at, space.concepts[at].levels, np.array(among, dtype=int)))

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
