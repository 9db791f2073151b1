"""The yardstick for scanners: where its plants are is known exactly, and its rule tells good claims from bad ones."""

import numpy as np
import pytest

from benchmarks.planted.judge import Claim, judge
from benchmarks.planted.models import SHAPES, Model, make_model
from benchmarks.planted.scanners import SCANNERS, of_table, tree

pytestmark = pytest.mark.slow  # benchmarks/planted, which no audit uses


def planted(model: Model) -> Claim:
    return Claim("the plant", model.planted, (model.rate(model.planted),) * 3)


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model("rows", SHAPES[3], 5)  # one label from half of the levels of a concept on


def test_a_model_fails_in_its_plant_as_often_as_planted(model):
    twin = make_model("rows", None, 5)
    assert model.plant is not None and twin.plant is None
    assert model.use.sum() == pytest.approx(1) and model.share.sum() == pytest.approx(1)
    assert (model.failed == twin.failed)[~model.planted].all(), "outside, nothing is planted"
    assert model.rate(model.planted) >= model.plant.rate - 0.05 > twin.rate(twin.planted | model.planted)
    assert set(model.pairs["label"][model.planted]) == {model.plant.label}


def test_a_model_answers_by_the_changed_item_alone_and_counts_what_it_is_asked(model):
    model.asked.clear()
    changed = [model.changed(item, model.cells[-1]) for item in model.items]
    again = model(changed[::-1])[::-1]
    assert (model(changed) == again).all() and len(model.asked) == len(changed)
    assert ((again != model.expected) == model.failed.reshape(len(model.items), -1)[:, -1]).all()


def test_a_claim_names_a_plant_by_half_of_either(model):
    def named(*insides: np.ndarray) -> int | None:
        return judge(model, [Claim("", inside) for inside in insides], 0.0).named

    rows = np.flatnonzero(model.planted)
    most, least = np.zeros_like(model.planted), np.zeros_like(model.planted)
    most[rows[: 2 * len(rows) // 3]], least[rows[: len(rows) // 3]] = True, True
    assert named(most) == 1 and named(least) is None and named(~model.planted, model.planted) == 2
    assert named(model.planted | (np.arange(len(most)) < len(most) // 2)) is None, "it says far too much"
    assert named(*[~model.planted] * 5, model.planted) is None, "nobody reads that far"


def test_claims_are_true_that_fail_twice_as_often_and_rates_hold_that_hold_the_truth(model):
    rate = model.rate(model.planted)
    judged = judge(model, [planted(model), Claim("elsewhere", ~model.planted, (rate, rate, 1.0))], 0.0)
    assert (judged.claims, judged.real, judged.rates, judged.held) == (2, 1, 2, 1)
    assert judged.covered == pytest.approx(1) and judged.overlap == pytest.approx(1)


def test_a_method_on_a_table_finds_what_fails_and_nothing_of_chance(model):
    model.asked.clear()
    judged = judge(model, of_table(tree)(model, 2000), 0.0)
    assert judged.overlap > 0.3 and judged.queries <= 2000 and judged.real == judged.claims > 0

    def chance(table, failed, pairs):
        for seed in range(50):
            yield "", np.random.default_rng(seed).random(len(pairs)) < 0.2

    assert not of_table(chance)(model, 2000)


def test_faded_is_judged_as_the_others_are(model):
    model.asked.clear()
    claims = SCANNERS["faded-random"](model, 1000)
    assert claims and all(claim.inside.shape == model.planted.shape for claim in claims)
    assert len(model.asked) <= 1100
