"""Measure how a landscape, and the policy of its search, moved: optimal transport before and after, in concept space.

A distance that only compares lists of rates cannot see that a failure mode moved to another corner. Here moving
failures costs the distance they move through concept space. There are two views: *normalised* compares where failures
are, whatever their amount; *null_cell* also compares their amount, with a null cell that holds what does not fail.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from stages.concepts import Concept, ConceptSpace
from stages.records.repair import NoiseFloor, PolicyShift, Shift, Spread

MAX_CELLS = 2500
POLICY_SPLITS = 20  # random splits of the items, for the noise floor: they need no queries, so more than for landscapes


class Distance(NamedTuple):
    """Both distances, in units of concept coordinates (1 is the range of one concept)."""

    normalised: float
    null_cell: float


class TransportGrid(NamedTuple):
    """The places of transport: blocks of cells, each at the mean of its cells."""

    block: np.ndarray  # (cells,) number of the block
    cost: np.ndarray  # (blocks + 1, blocks + 1) distances; the last place is the null cell
    merged: int  # number of adjacent levels merged into one; 1 if none


def transport_grid(space: ConceptSpace, cells: np.ndarray, limit: int = MAX_CELLS) -> TransportGrid:
    """Merge adjacent levels of ordered concepts, two, three, ... at a time, until at most `limit` blocks are left.

    If there are still more (many categories), blocks are a seeded k-means of the coordinates. The null cell is half the
    grid's diameter from everywhere: removing a failure costs as much as moving it half across the grid.
    """
    points = space.coordinates(cells)
    ordered = np.array([concept.ordered for concept in space.concepts])
    for merged in range(1, max(space.sizes) + 1):
        coarse = np.where(ordered, cells // merged, cells)
        _, block = np.unique(coarse, axis=0, return_inverse=True)
        block = block.ravel()
        if block.max() < limit:
            break
    else:
        from sklearn.cluster import MiniBatchKMeans

        block = MiniBatchKMeans(limit // 2, n_init=1, random_state=0).fit_predict(points)
        _, block = np.unique(block, return_inverse=True)
        merged = max(space.sizes)
    counts = np.bincount(block)
    means = np.column_stack([np.bincount(block, points[:, j]) / counts for j in range(points.shape[1])])
    cost = np.full((len(means) + 1,) * 2, np.sqrt(len(space)) / 2)  # every concept spans 1, ordered or not
    cost[:-1, :-1] = cdist(means, means)
    cost[-1, -1] = 0.0
    return TransportGrid(block, cost, merged)


def distance(grid: TransportGrid, before: np.ndarray, after: np.ndarray) -> Distance:
    """Compute the distance between two landscapes, given the failures in each cell (cells,), as shares of use.

    The normalised distance is NaN if a landscape has no failures.
    """
    mass = [np.bincount(grid.block, rates) for rates in (before, after)]
    normalised = float("nan")
    if min(m.sum() for m in mass) > 0:
        normalised = transport(grid.cost[:-1, :-1], mass[0] / mass[0].sum(), mass[1] / mass[1].sum())
    full = [np.append(m, 1 - m.sum()) for m in mass]
    return Distance(normalised, transport(grid.cost, *full))


def transport(cost: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
    """Exact optimal transport (network simplex, POT).

    With a metric cost, mass common to both stays in place, so only the differences are transported: a quarter of the
    problem with the same optimum, half a second for 2,401 cells. Never entropic: with a small regularisation it
    silently returns 0.
    """
    surplus, lack = np.clip(p - q, 0, None), np.clip(q - p, 0, None)
    moved = surplus.sum()
    if moved < 1e-12:
        return 0.0
    a, b = np.flatnonzero(surplus), np.flatnonzero(lack)
    source, sink = surplus[a] / moved, lack[b] / lack[b].sum()
    import ot  # imports torch if it is installed

    return float(moved * ot.emd2(source, sink, np.ascontiguousarray(cost[np.ix_(a, b)]), numItermax=1_000_000))


def entropy(rates: np.ndarray) -> float:
    """Entropy in nats of the distribution of failures (rates normalised to sum 1): high if even; NaN without any."""
    total = rates.sum()
    if total <= 0:
        return float("nan")
    p = rates[rates > 0] / total
    return float(-(p * np.log(p)).sum())


def shift(
    space: ConceptSpace,
    before: pd.DataFrame,
    after: pd.DataFrame,
    splits: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
) -> Shift:
    """Measure how far a landscape moved.

    Args:
        after: the landscape after, over the same cells.
        splits: for each of several splits, two landscapes of the model before from disjoint halves of its items and
            probes. Their distances are the noise floor, which they overstate, as each has half of the items.
    """
    cells = before[space.names].to_numpy(dtype=np.int64)
    grid = transport_grid(space, cells)
    use = before["use"].to_numpy(dtype=float)
    use = use / use.sum()
    rates = [table["rate"].to_numpy(dtype=float) * use for table in (before, after)]
    moved = distance(grid, rates[0], rates[1])
    chance = [distance(grid, *(half["rate"].to_numpy(dtype=float) * use for half in halves)) for halves in splits]
    floor = {view: range_of([getattr(by_chance, view) for by_chance in chance]) for view in Distance._fields}
    return Shift(
        normalised=_number(moved.normalised),
        null_cell=moved.null_cell,
        noise_floor=NoiseFloor(splits=len(splits), **floor),
        beyond_noise=moved.null_cell > max(by_chance.null_cell for by_chance in chance),
        mean_rate_before=rates[0].sum(),
        mean_rate_after=rates[1].sum(),
        entropy_before=_number(entropy(rates[0])),
        entropy_after=_number(entropy(rates[1])),
        entropy_uniform=np.log(len(cells)),
        null_cost=grid.cost[-1, 0],
        blocks=len(grid.cost) - 1,
        levels_merged=grid.merged,
    )


def range_of(values: Sequence[float]) -> Spread:
    """Return the smallest, mean and largest of the known values."""
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return Spread(min=None, mean=None, max=None)
    return Spread(min=min(known), mean=float(np.mean(known)), max=max(known))


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def policy_shift(space: ConceptSpace, drawn: pd.DataFrame, seed: int) -> list[PolicyShift]:
    """Compare the cells drawn by the policies learnt before and after the repair; empty without policies.

    Distances are optimal transport in the concept's coordinates. 1 is its whole range; for unordered levels it is any
    level to any other, so the distance is the total variation.

    Args:
        drawn: as in re_evaluate's policies.parquet, with the same number of rows per item.
        seed: seed of the splits. The noise floor is the distance of the policy before to itself on two halves of the
            items, which overstates noise, as each has half of the items. Another training may differ by more.
    """
    if drawn.empty:
        return []
    before, after = (drawn[drawn["model"] == model] for model in ("before", "after"))
    codes, ids = pd.factorize(before["item"])
    rng = np.random.default_rng(seed)
    halves = [
        (rng.permutation(len(ids)) < (len(ids) + 1) // 2)[codes] for _ in range(POLICY_SPLITS if len(ids) > 1 else 0)
    ]
    found = []
    for concept in space.concepts:
        cost = cdist(concept.coordinates, concept.coordinates)
        levels = before[concept.name].to_numpy(dtype=np.int64)
        old, new = _shares(concept, levels), _shares(concept, after[concept.name].to_numpy(dtype=np.int64))
        moved = transport(cost, old, new)
        chance = [transport(cost, _shares(concept, levels[half]), _shares(concept, levels[~half])) for half in halves]
        found.append(
            PolicyShift(
                concept=concept.name,
                before=old.tolist(),
                after=new.tolist(),
                mean_before=_mean(concept, old),
                mean_after=_mean(concept, new),
                distance=moved,
                noise_floor=range_of(chance),
                beyond_noise=moved > max(chance) if chance else None,
            )
        )
    return found


def _shares(concept: Concept, levels: np.ndarray) -> np.ndarray:
    return np.bincount(levels, minlength=len(concept)) / len(levels)


def _mean(concept: Concept, shares: np.ndarray) -> float | None:
    """Return the mean level, if levels are numbers."""
    numbers = [level for level in concept.levels if isinstance(level, int | float)]
    return float(shares @ numbers) if concept.ordered and len(numbers) == len(concept) else None
