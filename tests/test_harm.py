"""How far a repair goes within its budget of harm."""

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.landscape.harm import PARTS, HeldOutAnswers, choose_share, harm_at, how_far, keep_budget
from stages.pages.comparison_report import how_far_each
from stages.params.repair import HarmConfig

SHARES = [k / PARTS for k in range(1, PARTS + 1)]
ITEMS = np.ones(10)


def answers(failed, clean=1.0, weights=None) -> HeldOutAnswers:
    failed = np.asarray(failed, dtype=bool)
    return HeldOutAnswers(failed, np.ones(len(failed)) if weights is None else np.asarray(weights), clean * ITEMS)


def chosen(newly, lost, budget, noise=0.0):
    """The share that is chosen if these parts of the way break so much: pairs newly failing of 1,000, quality lost."""
    before = answers(np.zeros(1000))

    def ask(share: float) -> HeldOutAnswers:
        at = round(PARTS * share) - 1
        return answers(np.arange(1000) < newly[at], 1.0 - lost[at])

    return choose_share(before, ask, budget, lambda: noise)


harms = st.lists(st.integers(0, 50), min_size=PARTS, max_size=PARTS)


@given(newly=harms, lost=harms, budget=st.floats(0, 0.05))
def test_what_is_chosen_was_measured_within_the_budget(newly, lost, budget):
    found = chosen(newly, [x / 1000 for x in lost], HarmConfig(newly_failing=budget, clean=budget))
    assert found.share in {0.0, *SHARES} and len(found.tried) <= 6
    if found.share:
        at = round(PARTS * found.share) - 1
        assert newly[at] / 1000 <= budget and lost[at] / 1000 <= budget + 1e-12
    assert found.share == max((one.share for one in found.tried if one.allowed), default=0.0)


@given(newly=harms, budget=st.integers(0, 50))
def test_where_harm_grows_with_the_way_it_goes_as_far_as_it_may(newly, budget):
    rising = sorted(newly)
    allowed = sum(one <= budget for one in rising)
    found = chosen(rising, [0.0] * PARTS, HarmConfig(newly_failing=budget / 1000, clean=0.0))
    assert round(PARTS * found.share) == allowed


@given(newly=harms, noise=st.integers(0, 50))
def test_what_the_model_itself_breaks_when_asked_again_is_allowed_beside_the_budget(newly, noise):
    found = chosen(newly, [0.0] * PARTS, HarmConfig(newly_failing=0.01, clean=0.0), noise / 1000)
    assert all(one.allowed == (one.newly_failing <= 0.01 + (found.noise or 0.0)) for one in found.tried)
    assert (found.noise is None) == (newly[-1] <= 10 or noise == 0), "asked only if the whole way breaks too much"


def test_harm_counts_what_passed_before_by_how_common_it_is():
    before = answers([1, 0, 0, 0], weights=[5, 1, 2, 1])
    after = answers([1, 1, 0, 0], clean=0.9, weights=[5, 1, 2, 1])
    one = harm_at(0.5, before, after, HarmConfig(newly_failing=0.25, clean=0.2))
    assert one.newly_failing == pytest.approx(0.25) and one.clean == pytest.approx(0.1) and one.allowed
    assert not harm_at(0.5, before, after, HarmConfig(newly_failing=0.24, clean=0.2)).allowed
    assert not harm_at(0.5, before, after, HarmConfig(newly_failing=0.25, clean=0.05)).allowed
    assert harm_at(0.5, answers([1, 1]), answers([1, 1]), HarmConfig()).newly_failing == 0.0  # nothing passed


def test_the_report_says_how_far_each_went_and_what_stopped_it():
    rising, budget = [2 * k for k in range(1, PARTS + 1)], HarmConfig(newly_failing=0.03)
    repaired = chosen(rising, [0.0] * PARTS, budget, 0.001)
    control = chosen([0] * PARTS, [0.005] * PARTS, HarmConfig())
    assert how_far_each({"repaired": repaired, "control": control}) == (
        "On 10 repair items held out of the training, the repair goes 75% of the way to what it learnt: 3.00% newly"
        " fail, clean quality 0.0 points; at 80%, 3.20% newly fail, clean quality 0.0 points, more than its budget of"
        " harm allows. 0.10% newly fail if the model under test is queried again, which is allowed beside the budget."
        " The control goes all the way to what it learnt: 0.00% newly fail, clean quality −0.5 points."
    )
    nowhere = how_far_each({"repaired": chosen([500] * PARTS, [0.0] * PARTS, HarmConfig())})
    assert "the repair stays the model under test; at 5%, 50.00% newly fail," in nowhere and not how_far_each({})
    assert "goes all the way" in how_far("control", control)


@pytest.mark.parametrize(
    ("newly", "console", "page"),
    [
        ([0] * PARTS, "keeps all 2 pieces (be brief; read on): on", "keeps all 2 pieces (be brief; read on): 0.00%"),
        (
            [0] * (PARTS // 2) + [500] * (PARTS // 2),
            "keeps the first 1 of 2 pieces (be brief) and takes back the others (read on): on",
            "takes back the others (read on): 0.00% newly fail, clean quality 0.0 points; at 2 of 2 pieces, 50.00%",
        ),
        ([500] * PARTS, "as 1 of 2 pieces breaks too much", "stays the model under test; at 1 of 2 pieces, 50.00%"),
    ],
)
def test_of_what_is_added_to_a_prompt_the_pieces_are_named(newly, console, page):
    found = chosen(newly, [0.0] * PARTS, HarmConfig())
    tried = [one.having(pieces=1 if one.share <= 0.5 else 2) for one in found.tried]
    found = found.having(tried=tried, pieces=["be brief", "read on"])
    assert console in how_far("repaired", found) and page in how_far_each({"repaired": found})
    assert "%" not in how_far("repaired", found).partition(": on")[0]


def test_going_no_way_hands_on_the_bytes_of_the_model_under_test(tmp_path):
    """Whatever the kind of model: its folder is copied, and no task moves weights."""
    nowhere = chosen([500] * PARTS, [0.0] * PARTS, HarmConfig())
    held_out, trained = Mock(prepared=tmp_path), {"repaired": tmp_path / "repaired"}
    held_out.judge.return_value = {"repaired": nowhere}
    (tmp_path / "model" / "part").mkdir(parents=True)
    trained["repaired"].mkdir()
    for name in ("a.safetensors", "part/b.json"):
        (tmp_path / "model" / name).write_bytes(name.encode() * 100)
    (trained["repaired"] / "a.safetensors").write_bytes(b"learnt")
    task = Mock()
    keep_budget(held_out, task, trained, Mock())
    task.move.assert_not_called()
    found = {path.relative_to(trained["repaired"]): path for path in trained["repaired"].rglob("*") if path.is_file()}
    assert found.pop(Path("README.md")).read_text().startswith("# Unchanged copy")
    assert {str(name) for name in found} == {"a.safetensors", "part/b.json"}
    assert all(path.read_bytes() == (tmp_path / "model" / name).read_bytes() for name, path in found.items())
