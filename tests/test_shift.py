"""Shifts of landscape and policy have to show where failures moved, and how far chance alone moves them."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

from stages.concepts import Concept, ConceptSpace, Region
from stages.landscape.shift import distance, entropy, policy_shift, shift, transport_grid

SPACE = ConceptSpace(tuple(Concept(n, tuple(range(7))) for n in ("tilt", "fog", "dust")))
CELLS = SPACE.cells()


def rates(region: dict[str, list[int]], high: float = 0.8, seed: int | None = None, n: int = 200) -> np.ndarray:
    """Rates that are high in a region and low elsewhere; counted on n probes per cell if a seed is given."""
    rate = np.where(Region.from_json(region).contains(SPACE, CELLS), high, 0.1)
    return rate if seed is None else np.random.default_rng(seed).binomial(n, rate) / n


LOW, HIGH, NEAR = {"tilt": [0, 1], "fog": [0, 1]}, {"tilt": [5, 6], "fog": [5, 6]}, {"tilt": [1, 2], "fog": [0, 1]}


def failures(region: dict[str, list[int]]) -> np.ndarray:
    """The share of use that fails in each cell, all cells being equally common."""
    return rates(region) / len(CELLS)


def table(rate: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(CELLS, columns=SPACE.names).assign(rate=rate, use=1 / len(CELLS))


def test_a_mode_moved_to_another_corner_is_seen_where_lists_of_rates_see_nothing():
    before, after = rates(LOW), rates(HIGH)
    assert wasserstein_distance(before, after) == pytest.approx(0.0, abs=1e-12)
    splits = [(table(rates(LOW, seed=s)), table(rates(LOW, seed=s + 1))) for s in (1, 3)]
    moved = shift(SPACE, table(before), table(after), splits)
    assert moved.normalised > 3 * moved.noise_floor.normalised.max and moved.beyond_noise
    assert moved.null_cell > 3 * moved.noise_floor.null_cell.max
    assert moved.mean_rate_before == pytest.approx(moved.mean_rate_after)


def test_distances_of_known_moves():
    grid, low = transport_grid(SPACE, CELLS), failures(LOW)
    assert distance(grid, low, low) == (0.0, 0.0)
    near, far = distance(grid, low, failures(NEAR)), distance(grid, low, failures(HIGH))
    assert far.normalised > 2 * near.normalised and far.null_cell > near.null_cell > 0
    fewer = distance(grid, low, low / 2)  # in the same places
    assert fewer == pytest.approx((0.0, low.sum() / 2 * grid.cost[-1, 0]), abs=1e-9)
    nothing = distance(grid, low, np.zeros(len(CELLS)))
    assert np.isnan(nothing.normalised) and nothing.null_cell > 0
    line = ConceptSpace((Concept("x", (0, 1, 2)),))
    ends = np.array([1 / 3, 0, 0])
    assert distance(transport_grid(line, line.cells()), ends, ends[::-1]) == pytest.approx((1.0, 1 / 3))
    assert np.isnan(entropy(np.zeros(3))) and entropy(np.array([0.0, 0.5])) == 0.0
    assert entropy(np.full(8, 0.3)) == pytest.approx(np.log(8))


def test_the_same_model_stays_at_its_noise_floor():
    a, b, *more = (table(rates(LOW, seed=s, n=30)) for s in range(12))
    moved = shift(SPACE, a, b, list(zip(more[::2], more[1::2], strict=True)))
    floor = moved.noise_floor.normalised
    assert moved.normalised == pytest.approx(floor.mean, rel=0.5) and floor.min < floor.mean < floor.max


def test_beyond_noise_is_above_every_split():
    low, high, near = table(rates(LOW)), table(rates(HIGH)), table(rates(NEAR))
    assert shift(SPACE, low, near, [(low, low)]).beyond_noise
    moved = shift(SPACE, low, near, [*[(low, low)] * 9, (low, high)])
    assert moved.noise_floor.splits == 10
    assert moved.noise_floor.null_cell.mean < moved.null_cell < moved.noise_floor.null_cell.max
    assert not moved.beyond_noise


def test_large_grids_are_coarsened_and_still_see_the_move():
    grid = transport_grid(SPACE, CELLS, limit=70)
    assert (grid.merged, len(grid.cost)) == (2, 65)
    fine = distance(transport_grid(SPACE, CELLS), failures(LOW), failures(HIGH))
    assert distance(grid, failures(LOW), failures(HIGH)).normalised == pytest.approx(fine.normalised, rel=0.2)


TILT = Concept("tilt", (0, 10, 30, 60), "°")
SKY = Concept("sky", ("sun", "rain", "fog"), ordered=False)
MIXED = ConceptSpace((TILT, SKY))
ITEMS, EACH = [f"test-{k}" for k in range(40)], 50


def drawn(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """The draws of both policies: (items, draws, concepts) each."""
    tables = [
        pd.DataFrame(cells.reshape(-1, 2), columns=MIXED.names).assign(model=model, item=np.repeat(ITEMS, EACH))
        for model, cells in (("before", before), ("after", after))
    ]
    return pd.concat(tables, ignore_index=True)


def draws(tilt: list[float], sky: list[float], seed: int) -> np.ndarray:
    rng, shape = np.random.default_rng(seed), (len(ITEMS), EACH)
    return np.stack([rng.choice(len(p), shape, p=p) for p in (tilt, sky)], axis=2)


def test_each_concept_has_its_own_distance():
    before, after = draws([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.5], 1), draws([0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.5], 2)
    tilt, sky = policy_shift(MIXED, drawn(before, after), seed=0)
    levels = [np.arange(4) / 3, np.arange(4) / 3]
    assert tilt.distance == pytest.approx(wasserstein_distance(*levels, tilt.before, tilt.after))
    assert sky.distance == pytest.approx(0.5 * np.abs(np.subtract(sky.before, sky.after)).sum())
    assert tilt.beyond_noise and not sky.beyond_noise
    assert tilt.mean_before == pytest.approx(np.mean([0, 10, 30, 60] @ np.array(tilt.before)))
    assert tilt.mean_before > 30 and tilt.mean_after < 20 and sky.mean_before is sky.mean_after is None
    assert not any(same.distance or same.beyond_noise for same in policy_shift(MIXED, drawn(before, before), 0))
    assert sum(tilt.before) == pytest.approx(1.0) and [len(tilt.after), len(sky.after)] == [4, 3]
