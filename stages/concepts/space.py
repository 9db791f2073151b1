"""The concept space: named dimensions people can act on, each with a few levels, and how often they occur in use.

A *cell* is one full assignment of levels, stored as integer level indices. All code that chooses, counts or compares
cells uses this module, so that explorers, landscapes and reports agree on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.concepts.usage import Usage, chance_in_turn
from stages.core.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

Level = float | str
RegionJson = dict[str, list[int] | list[str]]

# Columns of the tables that stages write, in addition to one for each concept.
COLUMNS = frozenset(
    {
        *("model", "purpose", "role", "explorer", "order", "item", "group", "repeat", "uniform"),
        *("discrepancy", "failed", "valid", "output", "automatic", "automatic_failed"),
        *("status", "radius", "at_least", "searched", "queries", "tried_alone", "epsilon_fgsm", "epsilon_pgd"),
        *("probes", "failures", "rate", "low", "high", "certain", "policy_mean", "policy_std"),
        *("rate_automatic", "low_automatic", "high_automatic", "use"),
    }
)


@dataclass(frozen=True)
class Concept:
    """One dimension of the grid.

    Args:
        name: shown to people, and the column name in every table.
        levels: the values, from weak to strong if `ordered`.
        unit: printed after a value ("°"); empty for a bare number.
        ordered: ordered concepts have ranges ("rotation >= 30°"), categorical ones have sets.
        neutral: the value that changes nothing, if there is one.
        apply: (item, level) -> changed item, if the user's own function defines the concept; other concepts are applied
            by their task.
    """

    name: str
    levels: tuple[Level, ...]
    unit: str = ""
    ordered: bool = True
    neutral: Level | None = None
    apply: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.levels)

    def __call__(self, item: Any, level: Level) -> Any:
        """Change one item with the user's own function."""
        if self.apply is None:
            raise TypeError(f"the concept {self.name!r} has no function: its task applies it")
        return self.apply(item, level)

    @property
    def falling(self) -> bool:
        """Whether values decrease as levels grow stronger."""
        first, last = self.levels[0], self.levels[-1]
        return isinstance(first, int | float) and isinstance(last, int | float) and first > last

    @cached_property
    def coordinates(self) -> np.ndarray:
        """Points of the levels (levels, k) float64 whose Euclidean distances are concept distances.

        Ordered levels are spread evenly over [0, 1]; categories become one-hot vectors, scaled so that two different
        ones are 1 apart.
        """
        if not self.ordered:
            return np.asarray(np.eye(len(self)) / np.sqrt(2))
        return np.arange(len(self))[:, None] / max(1, len(self) - 1)

    def label(self, index: int) -> str:
        """Format a level for people; the level "" of a prompt is "unsaid"."""
        value = self.levels[index]
        return f"{value:g}{self.unit}" if isinstance(value, int | float) else value or "unsaid"


@dataclass(frozen=True)
class ConceptSpace:
    """An ordered tuple of concepts, the grid of cells they span, and how often each cell occurs in use.

    Raises a ValueError when there are no concepts, or 2^63 cells or more, which int64 cannot number.

    Args:
        concepts: at least one.
        usage: how often cells occur; None if all are equally common (`usage: uniform`).
    """

    concepts: tuple[Concept, ...]
    usage: Usage | None = field(default=None, repr=False, compare=False)
    _strides: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.concepts:
            raise ValueError("a concept space needs at least one concept, found none")
        sizes = [len(c) for c in self.concepts]
        if prod(sizes) >= 2**63:
            raise ValueError(
                f"grid too large: {len(sizes)} concepts of {min(sizes)} to {max(sizes)} levels have"
                f" 2^{prod(sizes).bit_length() - 1} cells or more, fewer than 2^63 can be numbered:"
                " use fewer concepts or levels"
            )
        strides = np.cumprod([1, *sizes[:0:-1]], dtype=np.int64)[::-1]
        object.__setattr__(self, "_strides", strides)

    @property
    def names(self) -> list[str]:
        """Concept names, in the order of the columns of a cell."""
        return [c.name for c in self.concepts]

    @property
    def sizes(self) -> list[int]:
        return [len(c) for c in self.concepts]

    @property
    def n_cells(self) -> int:
        """Number of cells of the whole grid."""
        return prod(self.sizes)

    def __len__(self) -> int:
        return len(self.concepts)

    def flat(self, cells: np.ndarray) -> np.ndarray:
        """Cells (n, d) -> their numbers (n,) int64 in row-major order, last concept fastest."""
        return np.asarray(cells, dtype=np.int64) @ self._strides

    def cells(self, flat: np.ndarray | None = None) -> np.ndarray:
        """Cell numbers (n,) -> level indices (n, d) int64; all cells of the grid if None."""
        numbers = np.arange(self.n_cells) if flat is None else np.asarray(flat, dtype=np.int64)
        return numbers[:, None] // self._strides % np.array(self.sizes)

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n cells as they occur in use, with replacement: (n, d) int64."""
        if self.usage is None:
            return rng.integers(0, self.sizes, size=(n, len(self)))
        return self.usage.sample(n, rng)

    def density(self, cells: np.ndarray) -> np.ndarray:
        """Return the share of use of each cell (n, d): (n,), summing to 1 over the grid."""
        return np.full(len(cells), 1 / self.n_cells) if self.usage is None else self.usage.density(cells)

    @cached_property
    def even(self) -> ConceptSpace:
        """The grid as a control draws from it: rare conditions more often than in use, see `Usage.even`."""
        return self if self.usage is None else replace(self, usage=self.usage.even())

    @cached_property
    def n_used(self) -> int:
        """Number of cells that occur in use."""
        return self.n_cells if self.usage is None else self.usage.count()

    def used(self, most: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells that occur in use, or a sample if there are more than `most`, with their shares of use.

        Returns:
            Cells (n, d), in the order of their numbers, and weights (n,) that sum to 1, under which they stand for all.
        """
        if self.n_used <= most:
            cells = self.cells() if self.usage is None else self.usage.cells()
            return cells, self.density(cells)
        if self.usage is None:
            numbers = np.sort(rng.choice(self.n_cells, most, replace=False))
            return self.cells(numbers), np.full(most, 1 / most)
        numbers, counts = np.unique(self.flat(self.even.sample(most, rng)), return_counts=True)
        cells = self.cells(numbers)
        return cells, self._weights(cells, self.even.density(cells) / counts)

    def chances(self, cells: np.ndarray, items: int, allowed: Mapping[int, Sequence[int]] | None = None) -> np.ndarray:
        """Return the chance of each probe to be among the distinct ones that even draws found: (n,), at most 1.

        A pair that is drawn again is not probed again. So a small condition, whose pairs are soon all probed, is rarer
        among distinct probes than among draws: each item has its turn in every cell of share q with a chance of
        1 - (1 - q)^t after t turns. t follows, for each number of changes, from the pairs there are: they are as many
        as the sum of 1 / chance over the probes (Horvitz and Thompson 1952). Where all pairs were probed, it is 1.

        Args:
            cells: (n, d) cells of the distinct probes that a control drew from `even`, or of those within `allowed`.
            items: number of items that it drew.
            allowed: levels of concepts that all of `cells` are within.
        """
        if self.usage is None or self.even.usage is None:
            return np.full(len(cells), min(1.0, len(cells) / (items * self.n_cells)))
        even, pairs = self.even.usage, self.usage.pairs(allowed) * items
        changes, drawn, of_changes = even.number_of_changes(cells), even.density(cells), even.by_changes()
        found = np.ones(len(cells))
        for k in np.unique(changes).tolist():
            rows = np.flatnonzero(changes == k)
            # Unchanged items have turns of their own, see `Turns`.
            part = of_changes[0] if k == 0 else of_changes[1:].sum()
            share, which, counts = np.unique(drawn[rows] / part, return_inverse=True, return_counts=True)
            found[rows] = _found(share, counts, max(float(pairs[k]), 1.0))[which]
        return found

    def error_of_mean(self, cells: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float:
        """Return by how much a mean in use varies with the inputs that the usage was measured on, see `Usage`."""
        return 0.0 if self.usage is None else self.usage.error_of_mean(cells, values, weights)

    def weights(self, cells: np.ndarray, items: int) -> np.ndarray:
        """Return weights (n,), summing to 1, under which a control's distinct probes stand for use.

        Those with the same number of changes together have its share of use (post-stratification).

        Args:
            cells: (n, d) cells of the probes.
        """
        return self._weights(cells, self.chances(cells, items))

    def _weights(self, cells: np.ndarray, chances: np.ndarray) -> np.ndarray:
        ratio = np.ones(len(cells))
        if self.usage is not None and len(cells):
            ratio = self.density(cells) / chances
            changes = self.usage.number_of_changes(cells)
            found = np.bincount(changes, ratio, len(self) + 1)
            ratio = ratio * (self.usage.by_changes() / np.where(found > 0, found, 1.0))[changes]
        total = float(ratio.sum())
        return ratio / total if total > 0 else ratio

    @property
    def neutral_levels(self) -> tuple[int | None, ...]:
        """For each concept the level that changes nothing, or None if it has none."""
        return tuple(c.levels.index(c.neutral) if c.neutral in c.levels else None for c in self.concepts)

    @property
    def neutral(self) -> np.ndarray | None:
        """The cell that changes nothing (d,), or None if some concept has no neutral level."""
        return None if None in self.neutral_levels else np.array(self.neutral_levels)

    @property
    def start(self) -> np.ndarray:
        """The cell from which small steps start (concepts,): each concept's neutral level, or its first if it has none.

        If every concept has a neutral level, this is the unchanged item.
        """
        return np.array([level or 0 for level in self.neutral_levels], dtype=np.int64)

    @property
    def adds_words(self) -> bool:
        """Whether steps add words: every concept starts unsaid ("") or as a word of its own name."""
        return all(
            not c.ordered and c.neutral in c.levels and (c.neutral == "" or str(c.neutral) in c.name.split("_"))
            for c in self.concepts
        )

    def neutral_region(self) -> Region:
        """Return the region of the neutral cell alone.

        Raises a UsageError when some concepts have no neutral level; the message names them.
        """
        if self.neutral is None:
            without = [c.name for c in self.concepts if c.neutral not in c.levels]
            raise UsageError(
                f"no cell of the grid leaves an input unchanged: none of the levels of {', '.join(without)} does"
            )
        return Region({name: (int(level),) for name, level in zip(self.names, self.neutral, strict=True)})

    def coordinates(self, cells: np.ndarray) -> np.ndarray:
        """Cells (n, d) -> points (n, k) float64 whose Euclidean distances are concept distances.

        This is the ground metric of the shift and the input of the estimator.
        """
        cells = np.asarray(cells)
        return np.hstack([concept.coordinates[cells[:, j]] for j, concept in enumerate(self.concepts)])

    def describe(self, cell: Sequence[int]) -> str:
        """One cell (d,) in words: "rotation 30°, blur 1.2"."""
        return ", ".join(f"{c.name} {c.label(int(i))}" for c, i in zip(self.concepts, cell, strict=True))

    def to_json(self) -> list[dict[str, Any]]:
        """The space as plain data, read back by `from_json`."""
        return [
            {"name": c.name, "levels": list(c.levels), "unit": c.unit, "ordered": c.ordered, "neutral": c.neutral}
            for c in self.concepts
        ]

    @classmethod
    def from_json(cls, data: Sequence[Mapping[str, Any]]) -> ConceptSpace:
        return cls(tuple(Concept(**{**c, "levels": tuple(c["levels"])}) for c in data))


def _found(share: np.ndarray, counts: np.ndarray, pairs: float) -> np.ndarray:
    """Return the chance to be found of cells of each share (k,) of the turns, given how many were: (k,).

    `counts` (k,) of them were found, of as many pairs as `pairs` in all.
    """
    from scipy.optimize import brentq

    n = float(counts.sum())
    if n >= pairs or len(share) == 1 or share[-1] - share[0] < 1e-9 * share[-1]:
        return np.full(len(share), min(1.0, n / pairs))

    def too_many(turns: float) -> float:
        """Compare the pairs there would be with those there are."""
        return float(np.log(counts @ (1 / chance_in_turn(share, turns)) / pairs))

    low = high = float(counts @ (1 / share) / pairs)  # too few turns, or just enough if no pair is drawn again
    while too_many(high) > 0:
        high *= 2
    return chance_in_turn(share, brentq(too_many, low, high) if too_many(low) > 0 else low)


@dataclass(frozen=True)
class Region:
    """A box of cells that people can read, for all items or for those with certain attributes.

    Args:
        allowed: the level indices that each named concept may have; other concepts are free. Those of ordered concepts
            are contiguous, as the search for modes makes them.
        items: the values that each named attribute of the items (`LoadedTask.attributes`) may have.
    """

    allowed: Mapping[str, tuple[int, ...]]
    items: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def contains(self, space: ConceptSpace, cells: np.ndarray, attributes: pd.DataFrame | None = None) -> np.ndarray:
        """Which probes are in the region, by their cells (n, d) and the attributes of their items (n rows): (n,) bool.

        Raises a ValueError when the region covers only some items and `attributes` is None.
        """
        if self.items and attributes is None:
            raise ValueError(f"the region is about items by {', '.join(self.items)}: expected their attributes")
        inside = self.in_box(space, cells)
        return inside if attributes is None else inside & self.about(attributes)

    def in_box(self, space: ConceptSpace, cells: np.ndarray) -> np.ndarray:
        """Which of the cells (n, d) are in the region, for the items that it covers: (n,) bool."""
        inside = np.ones(len(cells), dtype=bool)
        for name, levels in self.allowed.items():
            inside &= np.isin(cells[:, space.names.index(name)], levels)
        return inside

    def about(self, attributes: pd.DataFrame) -> np.ndarray:
        """Which items (n rows of attributes) the region covers: (n,) bool."""
        chosen = np.ones(len(attributes), dtype=bool)
        for name, values in self.items.items():
            chosen &= attributes[name].isin(values).to_numpy()
        return chosen

    def sample(self, space: ConceptSpace, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n cells of the region as they occur in use, with replacement: (n, d) int64."""
        if space.usage is not None:
            return space.usage.sample(n, rng, self._levels(space))
        cells = space.sample(n, rng)
        for name, levels in self.allowed.items():
            cells[:, space.names.index(name)] = rng.choice(np.asarray(levels), size=n)
        return cells

    def share(self, space: ConceptSpace) -> float:
        """Share of use in the region's cells, for the items that it covers."""
        if space.usage is None:
            return self.n_cells(space) / space.n_cells
        return space.usage.share(self._levels(space))

    def _levels(self, space: ConceptSpace) -> dict[int, tuple[int, ...]]:
        return {space.names.index(name): levels for name, levels in self.allowed.items()}

    def n_cells(self, space: ConceptSpace) -> int:
        return prod(len(self.allowed.get(c.name, range(len(c)))) for c in space.concepts)

    def describe(self, space: ConceptSpace) -> str:
        """The region in words: "label is 9 and rotation >= 30° and 1 <= blur <= 2"."""
        parts = [f"{name} is {' or '.join(values)}" for name, values in self.items.items()]
        for concept in space.concepts:
            levels = self.allowed.get(concept.name)
            if levels is None or len(levels) == len(concept):
                continue
            if not concept.ordered:
                others = [i for i in range(len(concept)) if i not in levels]
                # If the list is long, the excluded levels are easier to read.
                named, verb = (others, "is not") if len(levels) > max(3, len(others)) else (levels, "is")
                parts.append(f"{concept.name} {verb} {' or '.join(concept.label(i) for i in named)}")
                continue
            weakest, strongest = concept.label(min(levels)), concept.label(max(levels))
            # Strength can grow as the value falls (saturation 1, 0.5, 0), but people read values.
            at_least, at_most = ("<=", ">=") if concept.falling else (">=", "<=")
            if len(levels) == 1:
                parts.append(f"{concept.name} = {weakest}")
            elif max(levels) == len(concept) - 1:
                parts.append(f"{concept.name} {at_least} {weakest}")
            elif min(levels) == 0:
                parts.append(f"{concept.name} {at_most} {strongest}")
            else:
                low, high = (strongest, weakest) if concept.falling else (weakest, strongest)
                parts.append(f"{low} <= {concept.name} <= {high}")
        return " and ".join(parts) or "everywhere"

    def to_json(self) -> RegionJson:
        """The region as plain data, read back by `from_json`: level indices of concepts, values of attributes."""
        levels: RegionJson = {name: [int(i) for i in levels] for name, levels in self.allowed.items()}
        return levels | {name: list(values) for name, values in self.items.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[int] | Sequence[str]]) -> Region:
        allowed: dict[str, tuple[int, ...]] = {}
        items: dict[str, tuple[str, ...]] = {}
        for name, values in data.items():
            if levels := tuple(value for value in values if isinstance(value, int)):
                allowed[name] = levels
            else:
                items[name] = tuple(str(value) for value in values)
        return cls(allowed, items)
