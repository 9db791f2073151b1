"""Small steps: one concept by one level, away from where an item starts."""

from __future__ import annotations

from itertools import product

import numpy as np

from stages.concepts import ConceptSpace

SUBSETS = 7  # categories of a change of which all subsets are asked: 126 at most


class Moves:
    """The moves of microscopic exploration, numbered; each is one step in one direction of one concept.

    An ordered concept moves by one level, a categorical one from its start to any other category. All lead away from
    the start: the shortest way to a failure never steps back, so after k steps a cell is k steps from the start,
    whatever the way, and the number of steps is the size of the change.

    Args:
        space: the grid.
        start: (concepts,) level indices where all ways start.
    """

    def __init__(self, space: ConceptSpace, start: np.ndarray) -> None:
        self.space, self.start = space, np.asarray(start, dtype=np.int64)
        self._ordered = np.array([concept.ordered for concept in space.concepts])
        directions: list[tuple[int, int, int]] = []  # concept, change of its level index, how often
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
        """Positions of the concepts that can move at all."""
        return sorted(set(self.concept.tolist()))

    @property
    def lines(self) -> list[np.ndarray]:
        """The moves of each concept that can move at all."""
        return [np.flatnonzero(self.concept == j) for j in self.varied]

    @property
    def longest(self) -> int:
        """Steps to the cell furthest from the start."""
        return sum(int(self.reach[self.concept == j].max()) for j in self.varied)

    def steps(self, cells: np.ndarray) -> np.ndarray:
        """How far cells (n, concepts) are from the start: (n,) int64."""
        away = np.abs(np.asarray(cells) - self.start)
        return np.where(self._ordered, away, away > 0).sum(axis=1)

    def valid(self, cells: np.ndarray) -> np.ndarray:
        """Which moves are possible from cells (n, concepts): (n, moves) bool."""
        away = np.asarray(cells)[:, self.concept] - self.start[self.concept]
        onward = (away * self.change >= 0) & (np.abs(away) < self.reach)
        return np.where(self._ordered[self.concept], onward, away == 0)

    def take(self, cells: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Where one valid move (n,) each leads from cells (n, concepts)."""
        taken = np.array(cells, dtype=np.int64)
        taken[np.arange(len(taken)), self.concept[moves]] += self.change[moves]
        return taken

    def onward(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All cells one step further than cells (n, concepts): the row each came from (m,), and they (m, concepts)."""
        rows, moves = np.nonzero(self.valid(cells))
        return rows, self.take(np.asarray(cells)[rows], moves)

    def back(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All cells one step nearer than cells (n, concepts), as `onward` returns them."""
        cells = np.asarray(cells, dtype=np.int64)
        rows, concepts = np.nonzero(cells != self.start)
        nearer = cells[rows]
        away = nearer[np.arange(len(rows)), concepts] - self.start[concepts]
        nearer[np.arange(len(rows)), concepts] -= np.where(self._ordered[concepts], np.sign(away), away)
        return rows, nearer

    def fewer(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All cells with some, not all, of the categories of cells (n, concepts) left, as `onward` returns them.

        Of a cell with more than SUBSETS categories there are too many, so it has none here.
        """
        cells = np.asarray(cells, dtype=np.int64)
        rows, left = [np.empty(0, dtype=np.int64)], [np.empty((0, len(self.start)), dtype=np.int64)]
        for row, cell in enumerate(cells):
            said = np.flatnonzero(~self._ordered & (cell != self.start))
            if not 2 < len(said) <= SUBSETS:  # of two, `back` takes either
                continue
            gone = np.array(list(product((False, True), repeat=len(said)))[1:-1])
            some = np.tile(cell, (len(gone), 1))
            some[:, said] = np.where(gone, self.start[said], cell[said])
            rows.append(np.full(len(some), row))
            left.append(some)
        return np.concatenate(rows), np.vstack(left)
