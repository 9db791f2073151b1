"""The estimated landscape against the truth: error, coverage, and the effect of adaptive sampling."""

import sys

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from threadpoolctl import threadpool_limits

from benchmarks.study.landscapes import Planted
from stages.concepts import Concept, ConceptSpace
from stages.core.intervals import CHANGE, MOST_HELD, SHARE, Resampler, holm, resamples_for, share, wilson
from stages.explorers import kernel
from stages.landscape.calibrate import blocks_of, folds_of, importance
from stages.landscape.describe import main_effects, overall_rate
from stages.landscape.estimate import as_data, drawn_evenly, estimate_landscape
from stages.landscape.estimators import TREES, Average, Link, Logistic, ProcessEstimator, Trees
from tests.landscapes import ask, every_pair, landscape_of, planted, truth, uniform


@pytest.fixture(autouse=True, scope="module")
def quick():
    """Fewer trees, where how well they fit does not matter; and a second thread spins more than it computes."""
    with threadpool_limits(1), pytest.MonkeyPatch.context() as patch:
        patch.setitem(TREES, "max_iter", 50)
        yield


class Smooth:
    """A model whose margin decreases smoothly with two of three concepts, differently for each item."""

    threshold = 0.0

    def __init__(self, items: int = 60) -> None:
        rng = np.random.default_rng(1)
        self.concepts = ConceptSpace(tuple(Concept(n, tuple(range(6))) for n in ("rotation", "blur", "noise")))
        self.hard = rng.normal(size=items)
        self.ids = [f"i{k}" for k in range(items)]
        self.embeddings = np.column_stack([self.hard, rng.normal(size=(items, 3))])
        x = self.concepts.coordinates(self.concepts.cells())
        push = 1.6 * x[:, 0] + 1.2 * x[:, 0] * x[:, 1] - 1.1
        self.margin = np.tanh(push[None] + 0.5 * self.hard[:, None] + rng.normal(0, 0.15, (items, len(x))))

    def probes(self, n: int, *, greedy: bool, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        weights = np.exp(4 * self.margin).ravel() if greedy else np.ones(self.margin.size)
        pairs = rng.choice(self.margin.size, n, replace=False, p=weights / weights.sum())
        items, numbers = np.divmod(pairs, self.concepts.n_cells)
        table = pd.DataFrame(self.concepts.cells(numbers), columns=self.concepts.names)
        margin = self.margin[items, numbers]
        ids = [self.ids[i] for i in items]
        role = "agent" if greedy else "control"
        return table.assign(role=role, item=ids, repeat=0, discrepancy=margin, failed=margin > 0)

    def landscape(self, probes: pd.DataFrame, **keywords):
        return estimate_landscape(probes, self.ids, self.embeddings, self.concepts, threshold=0.0, seed=0, **keywords)

    @property
    def truth(self) -> np.ndarray:
        return (self.margin > 0).mean(axis=0)


@pytest.fixture(scope="module")
def smooth() -> Smooth:
    return Smooth()


@pytest.fixture(scope="module")
def both(smooth):
    probes = pd.concat([smooth.probes(900, greedy=False), smooth.probes(900, greedy=True)], ignore_index=True)
    return probes, smooth.landscape(probes)


def test_intervals_hold_the_true_rate(smooth, both):
    table = both[1].table
    assert np.abs(table["rate"] - smooth.truth).mean() < 0.05
    covered = (table["low"] <= smooth.truth) & (smooth.truth <= table["high"])
    assert covered.mean() > 0.88
    assert (table["high"] - table["low"]).mean() < 0.3, "an interval that says nothing always holds the truth"
    assert ((table["low"] <= table["rate"]) & (table["rate"] <= table["high"])).all()


@pytest.fixture(scope="module")
def searched(smooth):
    """The probes of one explorer: four of five where it expects failures, the rest uniform and marked as such."""
    greedy, rest = smooth.probes(800, greedy=True), smooth.probes(200, greedy=False, seed=1)
    probes = pd.concat([rest.assign(uniform=True), greedy.assign(uniform=False)], ignore_index=True)
    return probes.drop(columns="role").drop_duplicates(["item", *smooth.concepts.names], ignore_index=True)


@pytest.mark.parametrize("marked", [True, False])
def test_probes_of_a_search_alone_give_honest_rates(smooth, searched, marked):
    landscape = smooth.landscape(searched if marked else searched.drop(columns="uniform"))
    assert searched["failed"].mean() > smooth.truth.mean() + 0.15, "most probes lie where the model fails"
    assert abs(landscape.rates.mean() - smooth.truth.mean()) < 0.03
    covered = (landscape.table["low"] <= smooth.truth) & (smooth.truth <= landscape.table["high"])
    assert covered.mean() > 0.88
    assert landscape.diagnostics["judged_on"].startswith("the control's probes" if marked else "all probes, weighted")


def test_density_weights_undo_what_the_search_preferred(smooth, searched):
    data = as_data(searched, smooth.ids, smooth.concepts, 0.0)
    (fold, _), unmarked = folds_of(data.cells, smooth.concepts, 0), np.zeros(len(data), dtype=bool)
    weights, _ = importance(data, unmarked, fold, smooth.concepts, smooth.embeddings, 0)
    raw, weighted = data.failed.mean(), np.average(data.failed, weights=weights)
    assert abs(weighted - smooth.truth.mean()) < 0.5 * abs(raw - smooth.truth.mean())


def test_uniform_draws_are_those_of_the_control_and_those_marked():
    probes = pd.DataFrame({"role": ["agent", "agent", "control"], "uniform": [False, True, False]})
    assert drawn_evenly(probes).tolist() == [False, True, True] and not drawn_evenly(probes[["uniform"]].iloc[:1]).any()


def test_cells_beyond_all_probes_are_uncertain(smooth):
    """Levels without probes may have any rate, however sure the trend up to them is."""
    probes = smooth.probes(1500, greedy=False)
    table = smooth.landscape(probes[probes["rotation"] >= 3].drop(columns="role")).table
    beyond = table["rotation"] < 2
    assert not table.loc[beyond, "certain"].any() and table.loc[~beyond, "certain"].mean() > 0.3


def test_where_two_levels_were_never_asked_together_anything_may_be():
    task = planted()
    probes = uniform(task, 1500)
    table = landscape_of(task, probes[(probes["tilt"] < 3) | (probes["fog"] < 3)]).table
    corner = table[(table["tilt"] == 4) & (table["fog"] == 4)]
    assert (corner["high"] >= np.quantile(table["rate"], 0.975)).all()


def test_adaptive_sampling_does_not_inflate_rates(smooth, both):
    probes, landscape = both
    raw = probes["failed"].mean() - smooth.truth.mean()
    assert raw > 0.1, "the agent has to oversample failures for this to test anything"
    assert abs(landscape.rates.mean() - smooth.truth.mean()) < 0.025
    overall = overall_rate(landscape, probes, smooth.concepts)
    assert overall.low <= smooth.truth.mean() <= overall.high and overall.n == (probes["role"] == "control").sum()


def test_the_estimator_is_the_one_of_the_lowest_log_loss_held_out(both):
    scores = both[1].diagnostics
    assert scores["held_out_probes"] == 900 and scores["log_loss"] < 0.75 * scores["log_loss_constant"]
    assert scores["brier"] < scores["brier_constant"] and scores["calibration_error"] < 0.1
    losses = scores["log_losses"]
    assert len(losses) == 5, "three, the mean of two, and the constant"
    assert scores["name"] == min(losses, key=losses.get) and scores["log_loss"] == min(losses.values())


def test_effects_follow_the_truth(smooth, both):
    probes, landscape = both
    rows = pd.DataFrame([effect.to_json() for effect in main_effects(landscape, smooth.concepts, probes)])
    assert len(rows) == 18
    levels = smooth.concepts.cells()[:, 0]
    for row in rows[rows["concept"] == "rotation"].itertuples():
        assert row.rate == pytest.approx(smooth.truth[levels == row.level].mean(), abs=0.05)
        assert row.low <= row.rate <= row.high
    assert rows.groupby("concept")["probes"].sum().eq(900).all()
    for row in rows.itertuples():
        at = probes[(probes["role"] == "control") & (probes[row.concept] == row.level)]
        assert (row.rate, row.low, row.high) == tuple(share(at["failed"].to_numpy(), at)[:3])


@pytest.mark.parametrize("kind", [Logistic, Average])
def test_margins_of_the_grid_are_those_of_its_probes(kind):
    """Each estimator computes the grid by a shortcut: as products of items and cells."""
    space = ConceptSpace((Concept("a", tuple(range(12))), Concept("b", ("x", "y", "z"), ordered=False)))
    rng = np.random.default_rng(0)
    embeddings, items, cells = rng.normal(size=(6, 3)), rng.integers(0, 6, 200), space.sample(200, rng)
    margin = np.tanh(0.5 * cells[:, 0] - 2.6 + embeddings[items, 0] * (cells[:, 1] == 2))
    data, (fold, _) = kernel.ProbeArrays(items, cells, margin, margin > 0), folds_of(cells, space, 0)
    if kind is Average:
        hyper = kernel.Hyper(scales=(0.5, 1.0))
        features = kernel.Features(space, kernel.ItemFactor(embeddings), hyper, 40)
        two = [ProcessEstimator(features, hyper, data, fold, 0), Trees(space, embeddings, data, fold, 0)]
        fitted = Average(two, [Link(1.5, 0.2), Link(2.5, 0.0)])
    else:
        fitted = kind(space, embeddings, data, fold, np.ones(200))
    mean, spread = fitted.over_items(space.cells())
    pairs = np.repeat(np.arange(6), 36), np.tile(space.cells(), (6, 1))
    members = fitted.of_probes(*pairs).reshape(-1, 6, 36)
    np.testing.assert_allclose(mean, np.mean(members, axis=0), atol=1e-6)
    slopes = rng.random((6, 36))
    moved = spread(lambda at: (slopes * (at - mean)).sum(axis=0), slopes)
    expected = fitted.scale[:, None] * (slopes * (members - mean)).sum(axis=1)
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    assert np.corrcoef(fitted.held_out, margin)[0, 1] > 0.6


def test_an_enumerated_grid_is_exact():
    task = planted(items=6, levels=3)
    every = every_pair(task)
    landscape = landscape_of(task, every)
    assert landscape.exact
    np.testing.assert_allclose(landscape.rates, truth(task))
    assert overall_rate(landscape, every, task.concepts).value == pytest.approx(truth(task).mean())
    assert landscape.mean_rate().high - landscape.mean_rate().low > 0.2, "six items are six items"
    assert (landscape.table["high"] - landscape.table["low"] > 0.3).all()
    missing = landscape_of(task, every.iloc[:-1])
    assert not missing.exact
    np.testing.assert_allclose(missing.rates[:-1], truth(task)[:-1], err_msg="what was asked is not guessed")


def test_an_enumerated_grid_is_exact_however_large(monkeypatch):
    monkeypatch.setattr(sys.modules["stages.landscape.estimate"], "MAX_CELLS", 50)
    task = planted(items=3, levels=3)
    every = every_pair(task)
    landscape = landscape_of(task, every)
    assert (landscape.exact, landscape.sampled) == (True, False)
    np.testing.assert_allclose(landscape.rates, truth(task))
    known = landscape_of(task, every.iloc[:-1], spread=False)
    assert (known.exact, known.sampled) == (False, True)


def coin(space: ConceptSpace, rates: np.ndarray, n: int, items: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Uniform probes of a model that fails at random with each cell's rate, and the items."""
    rng, ids = np.random.default_rng(seed), [f"i{k}" for k in range(items)]
    pairs = rng.choice(items * space.n_cells, n, replace=False)
    failed = rng.random(n) < rates[pairs % space.n_cells]
    table = pd.DataFrame(space.cells(pairs % space.n_cells), columns=space.names)
    margin = np.where(failed, 1, -1) * rng.uniform(0.1, 0.5, n)
    item = [ids[k] for k in pairs // space.n_cells]
    return table.assign(role="control", item=item, repeat=0, discrepancy=margin, failed=failed), ids


def test_few_cells_are_judged_by_probes_of_all_of_them():
    """With two levels, a fold of whole cells would need the rate of a level that no other probe has."""
    space, rates = ConceptSpace((Concept("fog", ("none", "dense")),)), np.array([0.02, 0.91])
    probes, ids = coin(space, rates, 100, 100, seed=0)
    embeddings = np.random.default_rng(0).normal(size=(100, 4))
    landscape = estimate_landscape(probes, ids, embeddings, space, threshold=0.0, seed=0)
    table, scores = landscape.table, landscape.diagnostics
    assert scores["log_loss"] < 0.6 * scores["log_loss_constant"]
    assert scores["held_out_together"].startswith("single probes")
    np.testing.assert_allclose(table["rate"], rates, atol=0.1)
    assert ((table["low"] <= rates) & (rates <= table["high"])).all()


def test_of_many_cells_whole_ones_are_held_out(smooth, both):
    data = as_data(both[0], smooth.ids, smooth.concepts, 0.0)
    fold, _ = folds_of(data.cells, smooth.concepts, 0)
    folds = pd.Series(fold).groupby(smooth.concepts.flat(data.cells)).nunique()
    assert len(folds) > 150 and (folds == 1).all() and both[1].diagnostics["held_out_together"] == "whole cells"


def test_where_nothing_explains_the_failures_the_constant_is_taken():
    space = ConceptSpace(tuple(Concept(n, tuple(range(7))) for n in ("fog", "rain")))
    probes, ids = coin(space, np.full(49, 0.3), 200, 60, seed=2)
    embeddings = np.random.default_rng(0).normal(size=(60, 6))
    landscape = estimate_landscape(probes, ids, embeddings, space, threshold=0.0, seed=0)
    losses = landscape.diagnostics["log_losses"]
    assert landscape.diagnostics["name"] == min(losses, key=losses.get) == "constant"
    assert min(loss for name, loss in losses.items() if name != "constant") > landscape.diagnostics["log_loss_constant"]
    assert landscape.rates.mean() == pytest.approx(probes["failed"].mean(), abs=0.02)
    assert (landscape.table["low"] < 0.3).all() and (landscape.table["high"] > 0.3).all()


def test_only_ordered_levels_have_neighbours():
    space = ConceptSpace((Concept("fog", tuple(range(4))), Concept("job", ("a", "b", "c", "d"), ordered=False)))
    blocks = blocks_of(space.cells(), space).reshape(4, 4)
    assert (blocks[0] == blocks[1]).all() and len(np.unique(blocks)) == 2 * 4


def test_an_enumerated_grid_without_failures_is_not_certain_to_have_none():
    task = planted(items=20, levels=2, noise=0.0, regions=[])
    every = every_pair(task)
    rate = overall_rate(landscape_of(task, every), every, task.concepts)
    assert rate.value == 0.0 and rate.high == pytest.approx(1 - 0.025 ** (1 / 20), rel=0.1)


def test_repeats_of_a_pair_are_averaged_not_counted_twice():
    task = planted(items=2, levels=2, noise=0.0, regions=[])
    every = every_pair(task)
    again = every.assign(repeat=1, failed=True, discrepancy=0.5)
    np.testing.assert_allclose(landscape_of(task, pd.concat([every, again])).rates, 0.5)


def test_wilson_and_holm():
    rate = wilson(7, 10)
    assert (round(rate.low, 3), round(rate.high, 3)) == (0.397, 0.892) and np.isnan(wilson(0, 0).value)
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])


@pytest.mark.parametrize(("failing", "n"), [(0, 20), (6, 12), (30, 1000)])
def test_where_items_say_yes_or_no_intervals_and_p_values_are_those_of_the_binomial_test(failing, n):
    """So the interval never collapses: 20 of 20 equal items are evidence, but not of exactly 0."""
    values, resampler = (np.arange(n) < failing).astype(float), Resampler(np.arange(n), 20_000, 0)
    rate = resampler.mean(values, np.ones(n), SHARE)
    exact = stats.binomtest(failing, n).proportion_ci(0.95, method="exact")
    assert (rate.low, rate.high) == pytest.approx((exact.low, exact.high), rel=0.05, abs=1e-3)
    if failing == 6:
        expected = stats.binomtest(failing, n, 0.25, alternative="greater").pvalue
        assert resampler.p_value(values, np.ones(n), above=0.25, lowest=0.0) == pytest.approx(expected, rel=0.1)
        assert resampler.p_value(values, np.zeros(n), above=0.25, lowest=0.0) == 1.0
        certain = Resampler(np.arange(n), 99, 0).p_value(np.ones(n), np.ones(n), above=-1.5, lowest=-1.0)
        assert certain == 1 / 100, "of 99 resamples nothing is less likely than that"


def test_no_change_in_few_items_is_no_proof_of_no_change():
    """Whatever the number of probes: five cells of each item are not five items, and nor are items without weight."""
    change = Resampler(np.repeat(np.arange(20), 5), 4000, 0).mean(np.zeros(100), np.ones(100), CHANGE)
    assert change.value == 0.0 and (change.low, change.high) == pytest.approx((-0.168, 0.168), abs=0.01)
    many = Resampler(np.arange(2000), 4000, 0)
    assert many.mean(np.zeros(2000), np.ones(2000), CHANGE).low > -0.0025, "with many items it is"
    ten = many.mean(np.zeros(2000), (np.arange(2000) < 10).astype(float), SHARE)
    assert ten.high == pytest.approx(1 - 0.025 ** (1 / 10), rel=0.05)


def test_the_controls_probes_stay_the_controls(smooth):
    """An agent that repeats most of the control's failing pairs removes none of them from the calibration data."""
    control = smooth.probes(400, greedy=False)
    agent = control[control["failed"]].assign(role="agent")
    alone = smooth.landscape(control)
    both = smooth.landscape(pd.concat([agent, control], ignore_index=True))
    assert both.diagnostics["held_out_probes"] == 400
    pd.testing.assert_frame_equal(alone.table, both.table)


def test_resampling_items_is_wider_than_resampling_probes():
    """Ten equal probes of one item are one piece of evidence, not ten."""
    by_item = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    values, items = np.repeat(by_item, 10), np.repeat(np.arange(40), 10)
    clustered = Resampler(items, 500, 0).mean(values, np.ones(400))
    alone = Resampler(np.arange(400), 500, 0).mean(values, np.ones(400))
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)
    assert clustered.value == alone.value == by_item.mean()


@pytest.mark.parametrize("items", [10, 50_000, 200_000])
def test_more_items_than_memory_holds_have_fewer_resamples(items):
    found = resamples_for(0.95, items)
    assert found * items <= MOST_HELD and found == min(2000, MOST_HELD // items)
    assert resamples_for(0.999, 100) == 20_000


def test_a_jump_between_levels_is_counted_where_it_can_be_and_else_estimated():
    space = ConceptSpace((Concept("jump", (0, 1, 2)), Concept("other", (0, 1, 2))))
    rng = np.random.default_rng(0)
    cells = space.sample(600, rng)
    items = [f"i{n}" for n in rng.integers(0, 20, 600)]
    jumped = pd.DataFrame(cells, columns=space.names).assign(item=items, repeat=0, role="control")
    jumped["failed"] = (jumped["jump"] == 2) & (rng.random(600) < 0.8)
    jumped["discrepancy"] = np.where(jumped["failed"], 0.5, -0.5)
    ids = [f"i{n}" for n in range(20)]
    smooth = estimate_landscape(jumped, ids, rng.normal(size=(20, 3)), space, threshold=0.0, seed=0)
    rows = main_effects(smooth, space, jumped)[:3]
    assert [round(row.rate, 1) for row in rows] == [0.0, 0.0, 0.8] and rows[0].low == 0 < rows[0].high < 0.2
    few = main_effects(smooth, space, jumped.iloc[:100])[:3]
    jump = smooth.table["jump"].to_numpy()
    assert [row.rate for row in few] == [smooth.mean_rate(jump == level).value for level in range(3)]


@pytest.mark.slow
def test_boxes_with_sharp_edges_need_trees(monkeypatch):
    """Smoothness is wrong there, and held-out probes show it; intervals contain the truth all the same."""
    monkeypatch.setitem(TREES, "max_iter", 120)
    task = Planted(5, 100, searched=30, unseen=0)
    ids, rng = task.items.ids("discover"), np.random.default_rng(0)
    probes = ask(task, rng.integers(0, 30, 1500), task.concepts.sample(1500, rng), "control")
    landscape = estimate_landscape(probes, ids, task.embed(ids), task.concepts, threshold=0.0, seed=0)
    assert "boosted trees" in landscape.diagnostics["name"]
    losses = landscape.diagnostics["log_losses"]
    assert losses["boosted trees"] < losses["Gaussian process"] < losses["logistic regression"]
    rows = rng.choice(len(landscape.table), 1000, replace=False)
    true, table = task.true_rates(ids, landscape.cells(task.concepts)[rows]), landscape.table.iloc[rows]
    assert ((table["low"] <= true) & (true <= table["high"])).mean() > 0.88
    assert (table["high"] - table["low"]).mean() < 0.45


def test_a_model_that_never_fails(smooth):
    landscape = smooth.landscape(smooth.probes(300, greedy=False).assign(failed=False, discrepancy=-0.5))
    assert np.isfinite(landscape.table[["rate", "low", "high"]].to_numpy()).all() and landscape.rates.mean() < 0.1
