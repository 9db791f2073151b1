"""Search for sets of facts that fail, level by level as in Apriori (Agrawal and Srikant 1994).

A set can only be a candidate if each of its subsets has enough failing probes, so whole branches are never counted.
A set that already fails reliably is not extended, so the sets found are minimal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

RELIABLE = 0.9  # sets with at least this share of failing probes are not extended


@dataclass(frozen=True)
class Counted:
    """The counts of a set of facts.

    Args:
        facts: columns of its facts, in order.
        probes: number of probes in which all of them hold.
        failures: number of these that failed.
        p: one-sided p-value of failing more often than with any one fact removed (Fisher's exact test, the largest
            over the removed facts).
    """

    facts: tuple[int, ...]
    probes: int
    failures: int
    p: float

    @property
    def size(self) -> int:
        """The number of facts."""
        return len(self.facts)


@dataclass(frozen=True)
class SetSearch:
    """The sets with enough failing probes, the number of sets counted, and whether some were cut."""

    sets: list[Counted]
    counted: int
    cut: bool


def level_wise(
    holds: np.ndarray, failed: np.ndarray, keys: Sequence[str], *, support: int, largest: int, most: int
) -> SetSearch:
    """Count all sets of facts with enough failing probes, smaller ones first.

    Args:
        holds: (n, facts) bool, which facts hold in which probe.
        failed: (n,) bool.
        keys: one for each fact; a set never contains two facts with the same key.
        support: minimum number of failing probes of a set.
        largest: maximum number of facts in a set.
        most: maximum number of sets to count; among sets of one size, those with the most significant subsets come
            first.
    """
    everything = Counted((), len(failed), int(failed.sum()), 1.0)
    known: dict[tuple[int, ...], Counted] = {(): everything}
    wanted: list[tuple[int, ...]] = [(j,) for j in range(holds.shape[1])]
    found: list[Counted] = []
    counted, cut = 0, False
    for _ in range(largest):
        cut |= len(wanted) > most - counted
        wanted = wanted[: most - counted]
        counted += len(wanted)
        level = list(_count(holds, failed, wanted, known, support))
        found += level
        known.update((one.facts, one) for one in level)
        grown = sorted((one for one in level if one.failures < RELIABLE * one.probes), key=lambda one: one.p)
        wanted = _joined([one.facts for one in grown], keys)
    return SetSearch(found, counted, cut)


def _count(
    holds: np.ndarray,
    failed: np.ndarray,
    wanted: Sequence[tuple[int, ...]],
    known: dict[tuple[int, ...], Counted],
    support: int,
) -> Iterator[Counted]:
    """Yield those of the wanted sets that have enough failing probes."""
    from scipy.stats import hypergeom

    if not wanted:
        return
    columns = np.array(wanted)
    probes, failures = np.zeros(len(wanted), dtype=int), np.zeros(len(wanted), dtype=int)
    for start in range(0, len(wanted), 4096):  # in blocks, to save memory
        inside = np.all(holds[:, columns[start : start + 4096]], axis=2)
        probes[start : start + 4096] = inside.sum(axis=0)
        failures[start : start + 4096] = (inside & failed[:, None]).sum(axis=0)
    kept = np.flatnonzero(failures >= support)
    p = np.zeros(len(kept))
    for part in range(columns.shape[1]):
        wider = [known[tuple(np.delete(columns[k], part).tolist())] for k in kept]
        n, f = (np.array([getattr(one, name) for one in wider]) for name in ("probes", "failures"))
        p = np.maximum(p, hypergeom.sf(failures[kept] - 1, n, f, probes[kept])) if len(kept) else p
    for k, value in zip(kept.tolist(), p.tolist(), strict=True):
        yield Counted(wanted[k], int(probes[k]), int(failures[k]), value)


def _joined(sets: Sequence[tuple[int, ...]], keys: Sequence[str]) -> list[tuple[int, ...]]:
    """Return sets with one more fact, all of whose subsets with one fact less are in `sets`; keeps their order."""
    there, found = set(sets), dict[tuple[int, ...], None]()
    by_start: dict[tuple[int, ...], list[int]] = {}
    for one in sets:
        for last in by_start.setdefault(one[:-1], []):
            larger = (*one[:-1], *sorted((last, one[-1])))
            if keys[last] != keys[one[-1]] and all(part in there for part in combinations(larger, len(one))):
                found[larger] = None
        by_start[one[:-1]].append(one[-1])
    return list(found)
