"""Small steps: one concept by one level, away from an item's start."""

from __future__ import annotations

from itertools import product

import numpy as np

from stages.concepts import ConceptSpace

SUBSETS = 7  # largest number of categories of a change for which all subsets are probed: at most 126


class Moves:
    """The numbered moves of microscopic exploration; each is one step in one direction of one concept.

    An ordered concept moves by one level, a categorical one from its start to any other category. All moves lead away
    from the start: the shortest path to a failure never steps back, so after k steps a cell is k steps from the start,
    whatever the path, and the number of steps is the size of the change.

    Args:
        space: the grid.
        start: (concepts,) level indices at which all paths start.
    """

    def __init__(self, space: ConceptSpace, start: np.ndarray) -> None:
        self.space, self.start = space, np.asarray(start, dtype=np.int64)
        self._ordered = np.array([concept.ordered for concept in space.concepts])
        directions: list[tuple[int, int, int]] = []  # concept, change of its level index, maximum number of steps
        for j, (concept, at) in enumerate(zip(space.concepts, self.start.tolist(), strict=True)):
            if concept.ordered:
                directions += [(j, 1, len(concept) - 1 - at), (j, -1, at)]
            else:
                directions += [(j, level - at, 1) for level in range(len(concept)) if level != at]
        directions = [direction for direction in directions if direction[2] > 0]
        self.concept, self.change, self.reach = np.array(directions, dtype=np.int64).reshape(-1, 3).T

    def __len__(self) -> int:
        return len(self.concept)

    @property
    def varied(self) -> list[int]:
        """Positions of the concepts that can move."""
        return sorted(set(self.concept.tolist()))

    @property
    def lines(self) -> list[np.ndarray]:
        """The moves of each concept that can move."""
        return [np.flatnonzero(self.concept == j) for j in self.varied]

    @property
    def longest(self) -> int:
        """Number of steps to the cell furthest from the start."""
        return sum(int(self.reach[self.concept == j].max()) for j in self.varied)

    def steps(self, cells: np.ndarray) -> np.ndarray:
        """Return the number of steps from the start to cells (n, concepts): (n,) int64."""
        away = np.abs(np.asarray(cells) - self.start)
        return np.where(self._ordered, away, away > 0).sum(axis=1)

    def valid(self, cells: np.ndarray) -> np.ndarray:
        """Return which moves are possible from cells (n, concepts): (n, moves) bool."""
        away = np.asarray(cells)[:, self.concept] - self.start[self.concept]
        onward = (away * self.change >= 0) & (np.abs(away) < self.reach)
        return np.where(self._ordered[self.concept], onward, away == 0)

    def take(self, cells: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Return the cells after one valid move (n,) each from cells (n, concepts)."""
        taken = np.array(cells, dtype=np.int64)
        taken[np.arange(len(taken)), self.concept[moves]] += self.change[moves]
        return taken

    def onward(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all cells one step further than cells (n, concepts): rows of origin (m,), and cells (m, concepts)."""
        rows, moves = np.nonzero(self.valid(cells))
        return rows, self.take(np.asarray(cells)[rows], moves)

    def back(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all cells one step nearer than cells (n, concepts), in the format of `onward`."""
        cells = np.asarray(cells, dtype=np.int64)
        rows, concepts = np.nonzero(cells != self.start)
        nearer = cells[rows]
        away = nearer[np.arange(len(rows)), concepts] - self.start[concepts]
        nearer[np.arange(len(rows)), concepts] -= np.where(self._ordered[concepts], np.sign(away), away)
        return rows, nearer

    def fewer(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all cells that keep some, but not all, categories of cells (n, concepts), in the format of `onward`.

        Cells with more than SUBSETS categories are left out, because they have too many subsets.
        """
        cells = np.asarray(cells, dtype=np.int64)
        rows, left = [np.empty(0, dtype=np.int64)], [np.empty((0, len(self.start)), dtype=np.int64)]
        for row, cell in enumerate(cells):
            said = np.flatnonzero(~self._ordered & (cell != self.start))
            if not 2 < len(said) <= SUBSETS:  # `back` covers cells with two
                continue
            gone = np.array(list(product((False, True), repeat=len(said)))[1:-1])
            some = np.tile(cell, (len(gone), 1))
            some[:, said] = np.where(gone, self.start[said], cell[said])
            rows.append(np.full(len(some), row))
            left.append(some)
        return np.concatenate(rows), np.vstack(left)
