"""Common probes of several models: the same pairs of item and cell, inside and outside the target regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.concepts import ConceptSpace, Region

MAX_DRAWS = 200  # rounds of drawing cells before a side counts as exhausted


def draw_pairs(
    space: ConceptSpace, n_items: int, targets: Sequence[Region], n: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw common probes: n different (item, cell) pairs uniform over the target regions, and n uniform outside.

    Returns:
        Item numbers (pairs,) and cells (pairs, concepts). Fewer where a side has fewer pairs; none inside without
        targets.
    """
    rng = np.random.default_rng([seed, 1])
    sides = []
    for wanted in (True, False):
        chosen: list[np.ndarray] = []
        known: set[tuple[int, int]] = set()
        for _ in range(MAX_DRAWS):
            cells = space.sample(4 * n, rng)
            cells = cells[inside_any(space, targets, cells) == wanted]
            items = rng.permutation(np.arange(len(cells)) % n_items)  # every item equally often
            for item, number, cell in zip(items.tolist(), space.flat(cells).tolist(), cells, strict=True):
                if len(chosen) < n and (item, number) not in known:
                    known.add((item, number))
                    chosen.append(np.array([item, *cell]))
            if len(chosen) == n or (wanted and not targets):
                break
        sides += chosen
    pairs = np.array(sides, dtype=np.int64).reshape(-1, 1 + len(space))
    return pairs[:, 0], pairs[:, 1:]


def inside_any(space: ConceptSpace, regions: Sequence[Region], cells: np.ndarray) -> np.ndarray:
    """Which cells (n, concepts) lie in any of the regions: (n,) bool."""
    inside = np.zeros(len(cells), dtype=bool)
    for region in regions:
        inside |= region.contains(space, cells)
    return inside


def covered_share(space: ConceptSpace, regions: Sequence[Region], seed: int) -> float:
    """Share of the grid in any of the regions; on huge grids by a million seeded draws."""
    small = space.n_cells <= 2_000_000
    cells = space.cells() if small else space.sample(1_000_000, np.random.default_rng(seed))
    return float(inside_any(space, regions, cells).mean())
