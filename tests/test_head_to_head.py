"""Models on common probes: counted by hand, with correct intervals, and only on common probes."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace
from stages.landscape.head_to_head import HeadToHead, head_to_head
from stages.records import ModeRecord

SPACE = ConceptSpace([Concept("tilt", (0, 1)), Concept("blur", (0, 1, 2))])
ITEMS = pd.DataFrame({"label": ["cat", "dog"] * 20}, index=[f"i{n}" for n in range(40)])


def asked(fails) -> pd.DataFrame:
    """Every item in every cell, in random order, failing if `fails` of (item number, tilt, blur) is true."""
    rows = [
        {"item": f"i{n}", "tilt": tilt, "blur": blur, "repeat": 0, "failed": bool(fails(n, tilt, blur))}
        for n, tilt, blur in product(range(40), range(2), range(3))
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def mode(text: str, **region) -> ModeRecord:
    return ModeRecord.model_construct(region=region, text=text)


def compared(models, modes=None, attributes=ITEMS) -> HeadToHead | None:
    named = {name: (modes or {}).get(name, []) for name in models}
    return head_to_head(models, SPACE, named, dict.fromkeys(models, attributes))


def test_what_three_models_do_is_counted_by_hand() -> None:
    models = {
        "blurs": asked(lambda n, tilt, blur: blur == 2),  # 1/3
        "tilts": asked(lambda n, tilt, blur: tilt == 1 and blur > 0),  # 1/3, half of them where the other fails
        "tilt": asked(lambda n, tilt, blur: tilt == 1 and n % 2 == 0),  # named like a concept: 1/4
    }
    modes = {name: [mode("blur = 2", blur=[2])] for name in ("blurs", "tilts")}
    modes["tilt"] = [mode("tilt", tilt=[1], label=["cat"])]
    found = compared(models, modes)
    assert found is not None and (found.probes, found.items) == (240, 40)
    assert [rate.value for rate in found.rates] == pytest.approx([1 / 3, 1 / 3, 1 / 4])
    assert found.behind[2] is None and found.behind[0].value == pytest.approx(1 / 12)  # type: ignore[union-attr]
    assert found.all_fail.value == pytest.approx(1 / 12) and found.independent.value == pytest.approx(1 / 36)
    # blurs alone: blur 2, no tilt; tilts alone: tilt, blur 1, odd items; tilt alone: tilt, blur 0, even items
    assert [rate.value for rate in found.alone] == pytest.approx([1 / 6, 1 / 12, 1 / 12])
    # Of six cells, blurs and tilts differ in two, each passing one. blurs fails on 1/6 + 1/12 that tilt passes, and
    # passes 1/6 that tilt fails.
    assert found.wins[0].value == pytest.approx((1 / 6 + 1 / 6) / (1 / 3 + 5 / 12))
    blurred, tilted = found.modes
    assert blurred.models == ["blurs", "tilts"]
    assert [rate.value for rate in blurred.rates] == pytest.approx([1, 1 / 2, 1 / 4])
    assert tilted.rates[2].value == 1 and tilted.rates[2].n == 20 * 3
    for rate in (*found.rates, found.all_fail, found.independent, *found.wins, *found.alone):
        assert 0 <= rate.low <= rate.value <= rate.high <= 1


@pytest.mark.slow
def test_of_models_that_are_alike_hardly_any_is_shown_to_be_behind() -> None:
    shown = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        chance = dict(zip(range(40), rng.beta(1, 4, 40), strict=True))
        draws = {name: asked(lambda n, *_, rng=rng, chance=chance: rng.random() < chance[n]) for name in "abcd"}
        found = compared(draws)
        assert found is not None
        shown += any(rate is not None and rate.low > 0 for rate in found.behind)
    assert shown <= 6  # of 50 at a level of 5%; more than 6 have a chance of 1%


def test_only_what_all_were_asked_counts() -> None:
    one = asked(lambda n, tilt, blur: blur == 2)
    found = compared({"a": one, "b": one[one["blur"] < 2], "c": one[one["tilt"] == 0]})
    assert found is not None and found.probes == 40 * 2 and [rate.value for rate in found.rates] == [0, 0, 0]
    assert compared({"a": one[one["tilt"] == 0], "b": one[one["tilt"] == 1]}) is None
    assert compared({"a": one, "b": one.assign(item="x" + one["item"])}) is None
