"""The statistics of tallies: chance alone, intervals with correct coverage, tests, gates."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from stages.core.errors import UsageError
from stages.landscape.bias import (
    Skew,
    at_highest_guidance,
    compare_bias,
    largest_bias,
    mean_change,
    measure_bias,
    newly_skewed,
    total_variation,
)
from stages.landscape.gates import judge_landscape
from stages.params import LandscapeGates
from stages.tasks.contract import Tally


def tally(counts, reference=None, *, subject="nurse", guidance=7.5, unread=0):
    values = "abcdefgh"[: len(counts)]
    shares = reference or [1 / len(counts)] * len(counts)
    counted, reference = (dict(zip(values, numbers, strict=True)) for numbers in (counts, shares))
    return Tally(subject, "gender", guidance, counted, reference, unread)


def all_counts(n, k):
    return np.array([counts for counts in product(range(n + 1), repeat=k) if sum(counts) == n])


@pytest.mark.parametrize("reference", [[0.5, 0.5], [0.2, 0.3, 0.5]])
def test_what_chance_gives_is_as_enumeration_says(reference):
    n, reference = 9, np.array(reference)
    counts = all_counts(n, len(reference))
    chance = stats.multinomial(n, reference).pmf(counts)
    distances = total_variation(counts, reference)
    seen = counts[np.argmax(counts[:, 0] == 7)]
    entry = measure_bias([tally(seen.tolist(), reference.tolist())], seed=1)[0]
    assert entry.chance.mean == pytest.approx(distances @ chance, abs=0.01)
    assert entry.p == pytest.approx(chance[distances >= total_variation(seen, reference) - 1e-9].sum(), abs=0.015)
    assert entry.excess == pytest.approx(entry.counted - entry.chance.mean)
    below = chance[distances < entry.chance.high - 1e-9].sum()
    assert below < 0.96 and chance[distances <= entry.chance.high + 1e-9].sum() > 0.94


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.6, 0.25, 0.15]])
def test_the_interval_holds_the_truth(shares):
    rng, truth = np.random.default_rng(5), np.abs(np.array(shares) - 1 / len(shares)).sum() / 2
    rates = [Skew(tally(rng.multinomial(48, shares).tolist()), [i]).rate for i in range(16)]
    held = sum(rate.low - 1e-6 <= truth <= rate.high + 1e-6 for rate in rates)
    assert held >= 14, "of 16 that hold in 95% fewer than 14 come once in 20 times"
    assert np.mean([rate.high - rate.low for rate in rates]) < 0.3


def test_a_mean_change_holds_the_truth_both_ways():
    rng, shares = np.random.default_rng(3), [(0, [0.5, 0.5]), (1, [0.8, 0.2])]
    held = {"better": 0, "worse": 0}
    for i in range(5):
        a, b = ([Skew(tally(rng.multinomial(48, p).tolist()), [i, k, s]) for s in range(4)] for k, p in shares)
        better, worse = mean_change(b, a), mean_change(a, b)
        held["better"] += better.low <= -0.3 <= better.high
        held["worse"] += worse.low <= 0.3 <= worse.high
    assert min(held.values()) >= 4, held


def test_of_many_fair_subjects_none_is_called_biased():
    fair = [tally([32, 16] if i == 7 else [25, 23], subject=f"s{i}") for i in range(30)]
    *entries, skewed = measure_bias([*fair, tally([46, 2])], seed=0)
    assert min(entry.p for entry in entries) < 0.05, "one is beyond its own 95% point"
    assert skewed.beyond_noise and not any(entry.beyond_noise for entry in entries)


@pytest.mark.parametrize(
    ("counts", "reference", "said"),
    [
        ({"a": 1}, {"a": 0.5, "b": 0.5}, "counts a, but its reference is of a, b"),
        ({"a": 1, "b": 2}, {"a": 0.5, "b": 0.6}, "expected shares from 0 on that sum to 1"),
    ],
)
def test_a_tally_that_does_not_fit_its_reference_is_told(counts, reference, said):
    with pytest.raises(UsageError, match=said):
        measure_bias([Tally("nurse", "gender", 1.0, counts, reference)], seed=0)


def models(**named):
    return {m: [tally(c, subject=s) for s, c in counts.items()] for m, counts in named.items()}


def test_a_change_is_tested_by_permuting_the_models():
    """With two values and n answers each, the permutations are hypergeometric, so the exact probability is known."""
    found = compare_bias(models(before={"x": [15, 5]}, after={"x": [10, 10]}), seed=1)
    after = np.arange(5, 21)
    chance = stats.hypergeom(40, 25, 20).pmf(after)
    change = np.abs(after / 20 - 0.5) - np.abs((25 - after) / 20 - 0.5)
    tails = chance[change <= -0.25 + 1e-9].sum(), chance[change >= -0.25 - 1e-9].sum()
    assert found.subjects[0].changes["after"].p == pytest.approx(2 * min(tails), abs=0.03)


def test_what_a_repair_skews_is_named_and_what_it_mends_is_not():
    before = {"nurse": [46, 2], "clerk": [25, 23], "cook": [24, 24]}
    after = {"nurse": [25, 23], "clerk": [45, 3], "cook": [26, 22]}
    bias = compare_bias(models(before=before, after=after, control=before), seed=1)
    assert [subject.subject for subject in newly_skewed(bias)] == ["clerk"]
    changes = {s.subject: s.changes for s in bias.subjects}
    assert changes["nurse"]["after"].high < 0 < changes["clerk"]["after"].low
    assert changes["nurse"]["control"].low < 0 < changes["nurse"]["control"].high
    assert bias.mean_change["after"].low < 0 < bias.mean_change["after"].high


def test_the_gate_judges_the_subject_whose_interval_reaches_highest():
    gates, overall = LandscapeGates(max_bias=0.3), largest_bias([])

    def gate(*tallies):
        return judge_landscape(gates, overall, [], largest_bias(measure_bias(list(tallies), seed=0)))[0]

    assert gate(tally([25, 23]), tally([60, 40], subject="clerk")).passed
    assert gate(tally([25, 23]), tally([48, 0], subject="clerk")).passed is False
    assert gate(tally([3, 2])).passed is False, "too little evidence passes no gate"
    assert gate().passed is None and gate(tally([0, 0], unread=9)).passed is None


def test_that_nothing_else_came_does_not_prove_that_nothing_else_can():
    alike = [Skew(tally([48, 0]), [k]) for k in range(2)]
    assert alike[0].rate.low < 0.45
    change = mean_change(alike[:1], alike[1:])
    assert change.low < -0.03 and change.high > 0.03


def test_guidance_1_is_shown_but_not_judged():
    entries = measure_bias([tally([25, 23]), tally([48, 0], guidance=1.0)], seed=0)
    assert [entry.guidance for entry in at_highest_guidance(entries)] == [7.5] and largest_bias(entries).value < 0.1


def test_answers_nobody_could_read_count_for_nothing_and_values_nobody_expects_are_a_bias():
    tallies = [tally([0, 0], unread=48), tally([30, 18], unread=3), tally([20, 20, 8], [0.5, 0.5, 0.0])]
    unread, read, odd = measure_bias(tallies, seed=0)
    assert (unread.n, unread.p, unread.bias.value, unread.beyond_noise) == (0, None, None, False)
    assert (read.n, read.unread) == (48, 3) and largest_bias([unread, read]).n == 48
    assert odd.counted == pytest.approx(8 / 48) and odd.p < 0.05 and odd.bias.high > 8 / 48


def test_models_are_compared_on_the_same_subjects():
    assert compare_bias({"before": [], "after": []}, seed=0) is None
    with pytest.raises(UsageError, match="'after' have other subjects"):
        compare_bias({"before": [tally([1, 2])], "after": [tally([1, 2], subject="clerk")]}, seed=0)
