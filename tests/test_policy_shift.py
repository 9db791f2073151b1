"""Moves of the policy: measured on its draws, relative to the noise between items, and only for equal grids."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import wasserstein_distance

from stages.concepts import Concept, ConceptSpace
from stages.landscape.shift import policy_shift

TILT = Concept("tilt", (0, 10, 30, 60), "°")
SKY = Concept("sky", ("sun", "rain", "fog"), ordered=False)
SPACE = ConceptSpace((TILT, SKY))
ITEMS, EACH = [f"test-{k}" for k in range(40)], 50


def drawn(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """The draws of both policies: (items, draws, concepts) each."""
    tables = [
        pd.DataFrame(cells.reshape(-1, 2), columns=SPACE.names).assign(model=model, item=np.repeat(ITEMS, EACH))
        for model, cells in (("before", before), ("after", after))
    ]
    return pd.concat(tables, ignore_index=True)


def draws(tilt: list[float], sky: list[float], seed: int) -> np.ndarray:
    rng, shape = np.random.default_rng(seed), (len(ITEMS), EACH)
    return np.stack([rng.choice(len(p), shape, p=p) for p in (tilt, sky)], axis=2)


def test_each_concept_has_its_own_distance():
    before, after = draws([0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.5], 1), draws([0.4, 0.3, 0.2, 0.1], [0.2, 0.3, 0.5], 2)
    tilt, sky = policy_shift(SPACE, drawn(before, after), seed=0)
    levels = [np.arange(4) / 3, np.arange(4) / 3]
    assert tilt.distance == pytest.approx(wasserstein_distance(*levels, tilt.before, tilt.after))
    assert sky.distance == pytest.approx(0.5 * np.abs(np.subtract(sky.before, sky.after)).sum())
    assert tilt.beyond_noise and not sky.beyond_noise
    assert tilt.mean_before == pytest.approx(np.mean([0, 10, 30, 60] @ np.array(tilt.before)))
    assert tilt.mean_before > 30 and tilt.mean_after < 20 and sky.mean_before is sky.mean_after is None
    assert sum(tilt.before) == pytest.approx(1.0) and [len(tilt.after), len(sky.after)] == [4, 3]


def test_a_policy_is_at_no_distance_from_itself():
    cells = draws([0.25] * 4, [0.3, 0.3, 0.4], 1)
    assert [(moved.distance, moved.beyond_noise) for moved in policy_shift(SPACE, drawn(cells, cells), 0)] == [
        (0.0, False)
    ] * 2
