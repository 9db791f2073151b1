"""Learning from ratings: the chosen map, its estimated error, and when nothing is learnt."""

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from stages.core.intervals import Rate
from stages.params import AuditConfig
from stages.provenance import scale_of
from stages.ratings.fit import ExampleScore, Fit, fit_ratings, too_few_scores
from tests.workspace import audit_params


def two_peaks(n: int, rng: np.random.Generator, each: int = 1) -> list[ExampleScore]:
    """Half of the items are rated 2, half 9, whatever their discrepancy."""
    scores = rng.permutation([2, 9] * (n // 2))
    return [ExampleScore(float(rng.random()), int(s), f"i{k}", "A") for k, s in enumerate(scores) for _ in range(each)]


def people(
    curve: Callable[[np.ndarray], np.ndarray], n: int = 60, noise: float = 0.7, seed: int = 0, items: int = 30
) -> list[ExampleScore]:
    """Scores of two people who follow the same curve, with noise (in rating points), rounded to whole points."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    scores = np.clip(np.round(curve(x) + rng.normal(0, noise, n)), 1, 10).astype(int)
    given = enumerate(zip(x, scores, strict=True))
    return [ExampleScore(float(d), int(s), f"i{k % items}", "AB"[k % 2]) for k, (d, s) in given]


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
    assert 0.4 < found.error.value < 0.85 and found.constant.value > 1.5
    assert found.error.low < found.error.value < found.error.high


@pytest.mark.parametrize("seed", range(4))
def test_ratings_that_have_nothing_to_do_with_the_discrepancy_teach_nothing(seed: int) -> None:
    assert not fit_ratings(people(lambda x: np.full(len(x), 5.5), noise=2.5, seed=seed), "quality").teaches


def test_the_error_is_that_on_new_items_although_the_map_was_chosen() -> None:
    def rate(items: int, rng: np.random.Generator) -> list[ExampleScore]:
        """Two scores per item, which depend more on the item than on the discrepancy."""
        own = rng.normal(5.5, 1.5, items)
        x = rng.random((items, 2))
        scores = np.clip(np.round(own[:, None] + 4 * (0.5 - x) + rng.normal(0, 1, x.shape)), 1, 10).astype(int)
        pairs = product(range(items), range(2))
        return [ExampleScore(float(x[i, k]), int(scores[i, k]), f"i{i}", "AB"[k]) for i, k in pairs]

    rng = np.random.default_rng(4)
    told, true = [], []
    for _ in range(30):
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
    own = enumerate(rng.integers(1, 11, 20))
    scored = [ExampleScore(float(k) + d / 10, s, f"i{k}", "A") for k, s in own for d in range(5)]
    assert not fit_ratings(scored, "quality").teaches


@pytest.mark.parametrize(("n", "items", "enough"), [(20, 10, True), (19, 10, False), (30, 9, False)])
def test_too_few_ratings_are_said(n: int, items: int, enough: bool) -> None:
    said = too_few_scores(people(line, n, items=items))
    assert (said == "") == enough
    assert enough or f"found {n} of {items}" in said


def test_bias_is_read_the_other_way_round() -> None:
    scored = [ExampleScore(s.discrepancy, 11 - s.score, s.item, s.reviewer) for s in people(line)]
    quality, bias = fit_ratings(people(line), "quality"), fit_ratings(scored, "bias")
    assert (bias.kind, bias.x) == (quality.kind, quality.x) and bias.y == pytest.approx(quality.y)


@pytest.mark.parametrize(("n", "each"), [(20, 1), (10, 2)])
def test_ratings_of_two_peaks_teach_nothing_by_themselves(n: int, each: int) -> None:
    # The median of all others is on the peak that an item is not on, so anything near the middle seems better.
    rng = np.random.default_rng(n)
    taught = [fit_ratings(two_peaks(n, rng, each), "quality").teaches for _ in range(6)]
    assert sum(taught) <= 1  # one in fifty does by chance


@pytest.mark.parametrize(("n", "seed"), [(20, 6), (60, 32)])
def test_ratings_near_both_ends_teach_nothing_by_themselves(n: int, seed: int) -> None:
    # Compared only with the median, each of these would teach something.
    rng = np.random.default_rng(seed)
    scores = rng.choice([1, 2, 3, 8, 9, 10], n)
    scored = [ExampleScore(float(rng.random()), int(s), f"i{k}", "A") for k, s in enumerate(scores)]
    assert not fit_ratings(scored, "quality").teaches


def test_a_flat_map_is_never_put_in_force() -> None:
    at, far = Rate(1.0, 0.9, 1.1, 20), Rate(3.0, 2.5, 3.5, 20)
    assert Fit("linear", [0.0, 1.0], [0.2, 0.8], at, far, at).teaches
    assert not Fit("linear", [0.0, 1.0], [0.5, 0.5], at, far, at).teaches


def test_ratings_that_contradict_the_discrepancy_teach_nothing() -> None:
    assert fit_ratings(people(lambda x: 5.5 + 4 * x), "quality").kind == "constant"


def test_ratings_of_one_discrepancy_say_nothing_of_others() -> None:
    scored = [ExampleScore(1.0, s, f"i{k}", "A") for k, s in enumerate([2, 9] * 12)]
    assert too_few_scores(scored) == (
        "all examples rated have the same automatic discrepancy, 1: nothing follows for others"
    )
    assert not too_few_scores([*scored, ExampleScore(0.9, 9, "i0", "A")])


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"discrepancy": {"measure": "m", "threshold": 0.3, "false_alarms": 0.1}}, True),
        ({"discrepancy": {"measure": "m", "ratings": {"file": "f", "sha256": "0" * 64, "fails_below": 5}}}, True),
        ({"prepare": {"judge": "a", "images": 3, "items": {"discover": 9}, "calibrate": {"articles": 9}}}, True),
        ({"seed": 9, "concepts": {"tilt": [0, 1]}, "summarize": {"modes": 1}}, True),
        ({"discrepancy": {"measure": "n"}}, False),
        ({"prepare": {"judge": "b", "images": 3, "items": {"discover": 5}}}, False),
        ({"prepare": {"judge": "a", "images": 1, "items": {"discover": 5}}}, False),
        ({"task": "planted:Other"}, False),
    ],
)
def test_a_scale_is_what_an_answer_is_measured_by(changes: dict[str, Any], same: bool) -> None:
    given = {"prepare": {"judge": "a", "images": 3, "items": {"discover": 5}}, "discrepancy": {"measure": "m"}}
    before, after = (AuditConfig.model_validate(audit_params(**given | more)) for more in ({}, changes))
    assert (scale_of(before) == scale_of(after)) == same
