"""Drift over repeated looks: rarely an alarm without one, and soon one with one."""

from math import isnan

import numpy as np
import pytest

from flows.results.glance import drift_of, spent
from stages.core.intervals import NO_RATE, Rate, wilson

WEEKS = 53  # 52 looks


def alarm(rate: float, probes: int, seed: int, *, start: int = WEEKS, by: float = 0.0) -> list[int]:
    """The looks at which one schedule shows more or fewer failures; from week `start` on the rate is higher."""
    rng = np.random.default_rng([seed, probes])
    at = np.where(np.arange(WEEKS) < start, rate, rate + by)
    known = _wilson(probes)
    rates = [known[int(failures)] for failures in rng.binomial(probes, at)]
    return [look for look in range(1, min(start + 6, WEEKS)) if drift_of(rates[: look + 1]).shown]


_KNOWN: dict[int, list[Rate]] = {}


def _wilson(probes: int) -> list[Rate]:
    """Wilson's interval of every number of failures up to half of all, as a headline rounds it."""
    if probes not in _KNOWN:
        every = (wilson(failures, probes) for failures in range(probes // 2))
        _KNOWN[probes] = [Rate(*(round(x, 3) for x in rate[:3]), probes) for rate in every]
    return _KNOWN[probes]


def test_all_looks_together_spend_what_one_look_did() -> None:
    assert sum(spent(look) for look in range(1, 10_000)) == pytest.approx(1, abs=1e-3) and spent(1) == 0.5


def test_a_drift_that_stays_is_seen_though_no_single_result_shows_it() -> None:
    before = [wilson(140, 1000)] * 12
    assert drift_of([*before, wilson(140, 1000)]).shown == 0
    once, stays = ([*before, *[wilson(172, 1000)] * weeks] for weeks in (1, 4))
    assert drift_of(once).shown == 0 and drift_of(stays).shown == 1 and drift_of(stays).last == 4
    assert drift_of([*before, *[wilson(100, 1000)] * 4]).shown == -1
    change = drift_of(stays).change
    assert change.value == pytest.approx(0.032) and 0 < change.low < change.value < change.high
    assert isnan(drift_of([*before, NO_RATE]).change.low) and drift_of([*before, NO_RATE]).shown == 0


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "probes"), [(0.05, 300), (0.14, 3600)])
def test_of_a_thousand_schedules_of_a_year_few_show_a_drift_that_is_none(rate: float, probes: int) -> None:
    """5% of 1,000 is above 6.6% in one of 100 cases."""
    assert np.mean([bool(alarm(rate, probes, seed)) for seed in range(1000)]) <= 0.066


@pytest.mark.slow
@pytest.mark.parametrize(("probes", "least"), [(1000, 0.8), (3600, 0.99)])
def test_three_points_more_are_seen_within_six_weeks(probes: int, least: float) -> None:
    starts = np.random.default_rng(0).integers(8, 45, 150)
    looks = [alarm(0.14, probes, seed, start=int(start), by=0.03) for seed, start in enumerate(starts)]
    assert np.mean([bool(seen) and seen[-1] >= start for seen, start in zip(looks, starts, strict=True)]) >= least
