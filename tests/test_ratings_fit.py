"""Learning from ratings: the chosen map, its estimated error, and when nothing is learnt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from stages.ratings.fit import ExampleScore, fit_ratings, too_few_scores


def people(
    curve: Callable[[np.ndarray], np.ndarray], n: int = 60, noise: float = 0.7, seed: int = 0, items: int = 30
) -> list[ExampleScore]:
    """Scores of two people who follow the same curve, with noise (in rating points), rounded to whole points."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    scores = np.clip(np.round(curve(x) + rng.normal(0, noise, n)), 1, 10).astype(int)
    return [
        ExampleScore(float(d), int(s), f"i{k % items}", "AB"[k % 2])
        for k, (d, s) in enumerate(zip(x, scores, strict=True))
    ]


def line(x: np.ndarray) -> np.ndarray:
    return 5.5 - 4 * x


def step(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0.3, 9.0, 2.0)


@pytest.mark.parametrize(("curve", "kind"), [(line, "linear"), (step, "isotonic")])
def test_a_planted_scale_is_recovered_with_an_error_near_the_noise(curve, kind: str) -> None:
    found = fit_ratings(people(curve, n=200, items=100), "quality")
    assert found.kind == kind and found.teaches
    x = np.concatenate([np.linspace(-0.9, 0.2, 20), np.linspace(0.4, 0.9, 10)])  # a step is known up to the gap
    expected = 10 - 9 * np.interp(x, found.x, found.y)
    assert np.abs(expected - curve(x)).mean() < 0.3
    # Noise of 0.7, rounded to whole points: its mean absolute value is 0.56, and rounding adds a little.
    assert 0.4 < found.error.value < 0.85
    assert found.constant.value > 1.5
    assert found.error.low < found.error.value < found.error.high


@pytest.mark.parametrize("seed", range(12))
def test_ratings_that_have_nothing_to_do_with_the_discrepancy_teach_nothing(seed: int) -> None:
    assert not fit_ratings(people(lambda x: np.full(len(x), 5.5), noise=2.5, seed=seed), "quality").teaches


def test_the_error_is_that_on_new_items_although_the_map_was_chosen() -> None:
    def rate(items: int, rng: np.random.Generator) -> list[ExampleScore]:
        """Two scores per item, which depend more on the item than on the discrepancy."""
        own = rng.normal(5.5, 1.5, items)
        x = rng.random((items, 2))
        scores = np.clip(np.round(own[:, None] + 4 * (0.5 - x) + rng.normal(0, 1, x.shape)), 1, 10).astype(int)
        return [
            ExampleScore(float(x[i, k]), int(scores[i, k]), f"i{i}", "AB"[k]) for i in range(items) for k in range(2)
        ]

    rng = np.random.default_rng(4)
    told, true = [], []
    for _ in range(60):
        found, new = fit_ratings(rate(5, rng), "quality"), rate(200, rng)  # with so few, the choice is mostly luck
        expected = 10 - 9 * np.interp([s.discrepancy for s in new], found.x, found.y)
        told.append(found.error.value)
        true.append(np.abs(expected - [s.score for s in new]).mean())
    assert np.mean(told) > np.mean(true) - 0.1


def test_maps_never_fall_and_stay_on_the_scale() -> None:
    for curve in (line, step, lambda x: 5.5 - 12 * x):
        found = fit_ratings(people(curve, noise=1.5), "quality")
        assert (np.diff(found.x) > 0).all() and (np.diff(found.y) >= 0).all()
        assert min(found.y) >= 0 and max(found.y) <= 1


def test_an_item_is_never_on_both_sides_of_the_cross_validation() -> None:
    # Each item has its own score, whatever its discrepancy, so scores can be predicted for seen items only.
    rng = np.random.default_rng(0)
    scored = [
        ExampleScore(float(k) + d / 10, s, f"i{k}", "A")
        for k, s in enumerate(rng.integers(1, 11, 20))
        for d in range(5)
    ]
    assert not fit_ratings(scored, "quality").teaches


@pytest.mark.parametrize(("n", "items", "enough"), [(20, 10, True), (19, 10, False), (30, 9, False)])
def test_too_few_ratings_are_said(n: int, items: int, enough: bool) -> None:
    said = too_few_scores(people(line, n, items=items))
    assert (said == "") == enough
    assert enough or f"found {n} of {items}" in said


# The scale of ratings
