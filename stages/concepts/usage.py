"""How often the cells of a grid occur in use: the measure under every rate, draw and share.

Most inputs of a model in use are unchanged, or changed in one or two ways. So a usage first says how many concepts
change at once, then which, then to which levels:

    P(cell) = P(changes = k) * product of the weights of its levels / E_k

where k is the number of concepts that the cell changes, and E_k, an elementary symmetric polynomial of the weights, is
the sum of that product over all cells that change k concepts. Given k, concepts are independent (the conditional
Bernoulli design; Chen and Liu 1997, "Statistical applications of the Poisson-binomial and conditional Bernoulli
distributions"), and without a condition on k they are independent altogether. Named combinations get a share of their
own on top.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, product
from math import prod
from typing import Self

import numpy as np

CHANGES = (0.3, 0.4, 0.2, 0.1)  # assumed shares of inputs with 0, 1, 2 and 3 concepts changed
_ANY = -1  # a level that a combination leaves open
_REDRAWN = 200  # usages that other inputs might have shown
_FEW = 200_000  # cells that are counted one by one, where combinations may be among the others or not


@dataclass(frozen=True)
class Usage:
    """A distribution over the cells of a grid of d concepts.

    Args:
        weights: for each concept (levels,) the relative frequency of its levels, 0 for those that never occur.
        neutral: for each concept the level that changes nothing, or None; concepts without one do not count as changed.
        changes: (k,) share of inputs with 0, 1, 2, ... concepts changed; None if concepts change independently.
        combined: (m, d) combinations of levels that occur more often than by chance, -1 where any level may occur.
        shares: (m,) share of inputs with each combination.
        measured_on: by concept whose weights were measured, the number of inputs that this was worth.
    """

    weights: tuple[np.ndarray, ...]
    neutral: tuple[int | None, ...]
    changes: np.ndarray | None
    combined: np.ndarray
    shares: np.ndarray
    measured_on: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        sizes: Sequence[int],
        neutral: Sequence[int | None],
        changes: Sequence[float] | None = None,
        levels: Mapping[int, np.ndarray] | None = None,
        combined: Sequence[tuple[float, Mapping[int, int]]] = (),
        measured_on: Mapping[int, float] | None = None,
    ) -> Self:
        """Complete what somebody stated about the use of a grid by assumptions.

        Levels of a concept are assumed to be equally common, and each concept to change equally often. `CHANGES` are
        assumed for the number of concepts that change, unless `levels` says how often some concept does not change:
        then concepts are assumed to change independently.

        Args:
            sizes: number of levels of each concept.
            changes: relative frequency of inputs with 0, 1, 2, ... concepts changed; those with more than there are
                concepts count as having all changed.
            levels: by concept (levels,) weights. Where the weight of the neutral level is 0, the others only say how
                common they are among themselves.
            combined: the share of inputs with each combination, and its levels by concept.
        """
        given = {} if levels is None else levels
        countable = sum(level is not None for level in neutral)
        known = [j for j, level in enumerate(neutral) if j in given and level is not None and given[j][level] > 0]
        shares = np.array(CHANGES if changes is None else changes, dtype=float)
        shares = np.append(shares[:countable], shares[countable:].sum())[: countable + 1]
        shares = shares / shares.sum()
        mean = float(shares @ np.arange(len(shares)))
        odds = mean / max(countable - mean, 0.1) if countable else 0.0
        weights = []
        for j, (size, unchanged) in enumerate(zip(sizes, neutral, strict=True)):
            own = np.asarray(given.get(j, np.ones(size)), dtype=float).copy()
            if unchanged is not None and j not in known:
                own[unchanged] = 0.0
                own = own * odds / own.sum() if own.any() else own
                own[unchanged] = 1.0
            weights.append(own / own.sum())
        cells = np.full((len(combined), len(sizes)), _ANY)
        for row, (_, chosen) in zip(cells, combined, strict=True):
            row[:] = [chosen.get(j, _ANY if level is None else level) for j, level in enumerate(neutral)]
        independent = changes is None and bool(known)
        return cls(
            tuple(weights),
            tuple(neutral),
            None if independent else shares,
            cells,
            np.array([share for share, _ in combined], dtype=float),
            measured_on or {},
        )

    @classmethod
    def uniform(cls, sizes: Sequence[int], neutral: Sequence[int | None]) -> Self:
        """Return the usage in which all cells are equally common."""
        weights = tuple(np.ones(size) for size in sizes)
        return cls(weights, tuple(neutral), None, np.zeros((0, len(sizes)), dtype=np.int64), np.zeros(0))

    @cached_property
    def _total(self) -> np.ndarray:
        """E_k for every k (d + 1,): the sum of the products of weights over all cells that change k concepts."""
        return self._sums({})

    @cached_property
    def _per_change(self) -> np.ndarray:
        """P(k) / E_k for every k (d + 1,), of what is in no named combination; 0 where no cell changes k concepts."""
        total = self._total
        if self.changes is None:
            return np.full(len(total), (1 - self.shares.sum()) / total.sum())
        share = np.zeros(len(total))
        share[: len(self.changes)] = self.changes
        share = np.where(total > 0, share, 0.0)
        return (1 - self.shares.sum()) * share / share.sum() / np.where(total > 0, total, 1.0)

    def _factors(self, j: int, allowed: Mapping[int, Sequence[int]]) -> tuple[float, float]:
        """Return the weight of leaving concept j unchanged, and of changing it, within the allowed levels."""
        own = self.weights[j]
        if j in allowed:
            own = np.where(np.isin(np.arange(len(own)), allowed[j]), own, 0.0)
        if (unchanged := self.neutral[j]) is None:
            return float(own.sum()), 0.0
        return float(own[unchanged]), float(own.sum() - own[unchanged])

    def _sums(self, allowed: Mapping[int, Sequence[int]], first: int = 0) -> np.ndarray:
        """Sum the products of weights over the allowed cells of the concepts from `first` on, by changes (d + 1,)."""
        sums = np.zeros(len(self.weights) + 1)
        sums[0] = 1.0
        for j in range(len(self.weights) - 1, first - 1, -1):
            same, changed = self._factors(j, allowed)
            sums = same * sums + changed * np.append(0.0, sums[:-1])
        return sums

    def number_of_changes(self, cells: np.ndarray) -> np.ndarray:
        """Return how many concepts each of the cells (n, d) changes: (n,)."""
        neutral = np.array([_ANY if level is None else level for level in self.neutral])
        return np.asarray(((cells != neutral) & (neutral != _ANY)).sum(axis=1))

    def density(self, cells: np.ndarray) -> np.ndarray:
        """Return the share of use of each cell (n, d): (n,), summing to 1 over the grid."""
        cells = np.asarray(cells)
        products = np.prod([own[cells[:, j]] for j, own in enumerate(self.weights)], axis=0)
        found = self._per_change[self.number_of_changes(cells)] * products
        for share, levels in zip(self.shares, self.combined, strict=True):
            free = [j for j, level in enumerate(levels) if level == _ANY]
            inside = ((cells == levels) | (levels == _ANY)).all(axis=1)
            found = found + share * inside * np.prod([self.weights[j][cells[:, j]] for j in free], axis=0)
        return np.asarray(found, dtype=float)

    def by_changes(self, allowed: Mapping[int, Sequence[int]] | None = None) -> np.ndarray:
        """Return the share of use within the allowed levels of concepts, by the number of changes: (d + 1,)."""
        inside = {} if allowed is None else allowed
        found = self._per_change * self._sums(inside)
        np.add.at(found, self._changes_combined, self._combined_within(inside))
        return found

    @cached_property
    def _changes_combined(self) -> np.ndarray:
        return self.number_of_changes(self.combined)

    def _combined_within(self, allowed: Mapping[int, Sequence[int]]) -> np.ndarray:
        """Return the share of use of each named combination (m,) within the allowed levels."""
        found = self.shares.copy()
        for j, levels in allowed.items():
            column = self.combined[:, j]
            found *= np.where(column == _ANY, self.weights[j][list(levels)].sum(), np.isin(column, levels))
        return found

    def share(self, allowed: Mapping[int, Sequence[int]]) -> float:
        """Return the share of use within the allowed levels of concepts."""
        return float(self.by_changes(allowed).sum())

    def sample(
        self, n: int, rng: np.random.Generator, allowed: Mapping[int, Sequence[int]] | None = None
    ) -> np.ndarray:
        """Draw n cells as they occur in use, with replacement, within allowed levels that occur: (n, d) int64."""
        inside = {} if allowed is None else allowed
        suffix = np.stack([self._sums(inside, j) for j in range(len(self.weights) + 1)])
        masses = np.concatenate([self._per_change * suffix[0], self._combined_within(inside)])
        if masses.sum() <= 0:
            raise ValueError(f"these levels never occur in use: {dict(inside)}")
        part = rng.choice(len(masses), size=n, p=masses / masses.sum())
        left = np.minimum(part, len(self.weights))
        cells = np.zeros((n, len(self.weights)), dtype=np.int64)
        for j, own in enumerate(self.weights):
            same, changed = self._factors(j, inside)
            ways = changed * np.append(0.0, suffix[j + 1])[left]
            both = ways + same * suffix[j + 1][left]
            change = rng.random(n) * both < ways
            within = np.isin(np.arange(len(own)), inside[j]) if j in inside else np.ones(len(own), dtype=bool)
            unchanged = self.neutral[j]
            if unchanged is None:
                cells[:, j] = _pick(own * within, rng.random(n))
            elif changed:
                others = own * within * (np.arange(len(own)) != unchanged)
                cells[:, j] = np.where(change, _pick(others, rng.random(n)), unchanged)
            else:
                cells[:, j] = unchanged
            left = left - np.where(part <= len(self.weights), change, 0)
        for number, levels in enumerate(self.combined, start=len(self.weights) + 1):
            rows = part == number
            fixed = levels != _ANY
            cells[np.ix_(rows, fixed)] = levels[fixed]
        return cells

    def even(self) -> Self:
        """Return the distribution by which a control draws, so that rare conditions are measured, too.

        Every number of changes gets a share of the draws that grows with the root of its share of use; among cells
        with the same number of changes, concepts and levels that occur at all are drawn equally often. Its draws
        measure every usage with the same numbers of changes, by weights.
        """
        weights = []
        for own, unchanged in zip(self.weights, self.neutral, strict=True):
            flat = (own > 0).astype(float)
            if unchanged is not None:
                same, flat[unchanged] = flat[unchanged], 0.0
                flat = flat / max(flat.sum(), 1.0)
                flat[unchanged] = same
            weights.append(flat / flat.sum())
        changes = np.sqrt(self._per_change * self._total)
        shares = np.sqrt(self.shares)
        total = float(changes.sum() + shares.sum())
        return replace(
            self, weights=tuple(weights), changes=changes / max(changes.sum(), 1e-12), shares=shares / max(total, 1e-12)
        )

    def error_of_mean(self, cells: np.ndarray, values: np.ndarray, weights: np.ndarray) -> float:
        """Return by how much a mean in use varies with the inputs that the usage was measured on; 0 if it was not.

        It is the standard deviation of the mean under usages that other inputs might have shown: the weights of each
        measured concept follow a Dirichlet distribution around its own, as wide as counts of `measured_on` inputs are.

        Args:
            cells: (n, d) where the values are from.
            values: (n,) what the mean is of.
            weights: (n,) by which the values stand for this usage.
        """
        if not self.measured_on:
            return 0.0
        rng = np.random.default_rng(0)
        own, means = self.density(cells), []
        for _ in range(_REDRAWN):
            other = list(self.weights)
            for j, n in self.measured_on.items():
                drawn = rng.gamma(self.weights[j] * n)
                other[j] = drawn / drawn.sum()
            ratio = replace(self, weights=tuple(other)).density(cells) / np.where(own > 0, own, 1.0)
            total = float(weights @ ratio)
            means.append(float((weights * ratio) @ values) / total if total > 0 else 0.0)
        return float(np.std(means, ddof=1))

    @property
    def mean_changes(self) -> float:
        masses = self.by_changes()
        return float(masses @ np.arange(len(masses)))

    def times(self, factor: float) -> Self:
        """Return the usage in which `factor` times as much changes on average, with all else alike.

        The odds of every change are multiplied by the same number. Where so many changes never occur, it goes half of
        the way to the most that do.
        """
        from scipy.optimize import brentq

        share = self._per_change * self._total
        share, k = share / share.sum(), np.arange(len(share))
        mean, most = float(share @ k), float(k[share > 0].max())
        goal = min(factor * mean, (mean + most) / 2) if factor > 1 else factor * mean
        if mean <= 0 or most <= mean:
            return self

        def tilted(log: float) -> np.ndarray:
            odds = share * np.exp(log * (k - most / 2))
            return np.asarray(odds / odds.sum())

        found = brentq(lambda log: float(tilted(log) @ k) - goal, -50, 50)
        return replace(self, changes=tilted(found))

    def pairs(self, allowed: Mapping[int, Sequence[int]] | None = None) -> np.ndarray:
        """Return the number of cells that occur within the allowed levels, by the number of changes: (d + 1,)."""
        ways = [1] + [0] * len(self.weights)
        for j, (own, unchanged) in enumerate(zip(self.weights, self.neutral, strict=True)):
            occurs = own > 0
            if allowed and j in allowed:
                occurs = occurs & np.isin(np.arange(len(own)), allowed[j])
            same = int(occurs.sum() if unchanged is None else occurs[unchanged])
            others = int(occurs.sum()) - same
            ways = [same * a + others * b for a, b in zip(ways, [0, *ways[:-1]], strict=True)]
        found = np.where(self._per_change > 0, np.array(ways, dtype=float), 0.0)
        for levels in np.unique(self.combined, axis=0):
            k = int(self.number_of_changes(levels[None])[0])
            fixed = [j for j, level in enumerate(levels) if level != _ANY]
            if self._per_change[k] > 0 and all(self.weights[j][levels[j]] > 0 for j in fixed):
                continue  # among the others
            choices = [[levels[j]] if j in fixed else np.flatnonzero(own > 0) for j, own in enumerate(self.weights)]
            found[k] += prod(
                np.isin(of, allowed[j]).sum() if allowed and j in allowed else len(of) for j, of in enumerate(choices)
            )
        return found

    def count(self) -> int:
        """Number of cells that occur in use."""
        count = int(self.pairs().sum())
        return len(self.cells()) if len(self.combined) and count <= _FEW else count

    def cells(self) -> np.ndarray:
        """Return all cells that occur in use, (n, d) int64, in row-major order; only for a modest `count`."""
        occurring = [np.flatnonzero(own > 0).tolist() for own in self.weights]
        countable = [j for j, level in enumerate(self.neutral) if level is not None]
        found: set[tuple[int, ...]] = set()
        for k in np.flatnonzero(self._per_change > 0).tolist():
            for changed in combinations(countable, k):
                choices = [
                    levels
                    if (unchanged := self.neutral[j]) is None
                    else [level for level in levels if (level != unchanged) == (j in changed)]
                    for j, levels in enumerate(occurring)
                ]
                found.update(product(*choices))
        for levels in self.combined.tolist():
            found.update(product(*([level] if level != _ANY else occurring[j] for j, level in enumerate(levels))))
        return np.array(sorted(found), dtype=np.int64).reshape(-1, len(self.weights))


def chance_in_turn(share: np.ndarray, turns: float) -> np.ndarray:
    """Return the chance of cells (n,) to be drawn for an item at least once, given their shares of draws.

    Args:
        share: (n,) shares of draws.
        turns: how many turns items had, one after the other; the last one of only some items.
    """
    whole, share = np.floor(turns), np.minimum(share, 1 - 1e-15)
    # By logarithms, as shares may be far below the precision of 1 - share.
    return np.asarray(-np.expm1(whole * np.log1p(-share) + np.log1p(-share * (turns - whole))))


def chance_at_random(share: np.ndarray, draws: float) -> np.ndarray:
    """Return the same if each item is drawn at random, and `draws` times on average."""
    return np.asarray(-np.expm1(-share * draws))


def _pick(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return levels drawn by weights (levels,), one for each uniform number (n,)."""
    edges = np.cumsum(weights / weights.sum())
    return np.minimum(np.searchsorted(edges, uniform, side="right"), np.flatnonzero(weights)[-1])
