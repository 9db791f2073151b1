"""Agreement of reviewers: Krippendorff's own worked examples, and its sentences in the plan and the report."""

from typing import Any

import pytest

from stages.decisions import RecordedDecision, merge_decisions
from stages.decisions.merge import agreement, ceiling, krippendorff_alpha

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": examples A and C.
MEG_OWEN = ("0100000010", "1110010000")
WITH_GAPS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def units(observers: tuple[str, ...]) -> list[list[str]]:
    """The values given to each unit, without gaps."""
    return [[value for value in unit if value != "."] for unit in zip(*observers, strict=True)]


@pytest.mark.parametrize(
    ("observers", "metric", "alpha"),
    [(MEG_OWEN, "nominal", 0.095), (WITH_GAPS, "nominal", 0.743), (WITH_GAPS, "interval", 0.849)],
)
def test_alpha_is_as_published(observers: tuple[str, ...], metric: Any, alpha: float) -> None:
    assert krippendorff_alpha(units(observers), metric) == pytest.approx(alpha, abs=5e-4)


PROBE = {"mode": "M1", "item": "x", "cell": [0], "output": "o", "discrepancy": 0.1}


def decided(
    reviewer: str, actions: str, ratings: dict[str, int], landscape: str = "0" * 16, **more
) -> RecordedDecision:
    names = {"r": "repair", "a": "accept", "i": "ignore"}
    said = {"landscape": landscape, "reviewer": reviewer, "approve": True, "time": "2026-01-01T00:00:00Z"}
    said |= {"tool": "faded", "via": "page", "scale": "s", "previous": []}
    modes = [{"id": f"M{i}", "action": names[a]} for i, a in enumerate(actions, 1)]
    examples = [{"id": key, "rating": value, **PROBE} for key, value in ratings.items()]
    return RecordedDecision.model_validate({**said, "modes": modes, "examples": examples, **more})


def test_what_two_reviewers_say_is_counted_by_hand() -> None:
    ada = decided("Ada", "rra", {"M1.1": 2, "M1.2": 9, "M1.3": 4})
    found = agreement([ada, decided("Ben", "rai", {"M1.1": 3, "M1.2": 6, "M1.9": 1})])
    assert found is not None and found.reviewers == ["Ada", "Ben"]
    assert found.actions.share == pytest.approx(1 / 3) and found.actions.modes == 3
    assert found.rating.difference == pytest.approx((1 + 3) / 2) and found.rating.examples == 2
    # Observed: mean of 1 and 9. Expected: mean of the squared differences of 2, 3, 9, 6 in pairs.
    assert found.rating.alpha == pytest.approx(1 - 5 / ((1 + 49 + 16 + 36 + 9 + 9) / 6))
    # Observed: 4 of 6 values are paired with a different one. Expected: 22 of 30 pairs of values are.
    assert found.actions.alpha == pytest.approx(1 - (4 / 6) / (22 / 30)) and found.bias is None
    assert found.statement == (
        "2 reviewers agree in 33% of their words on what to do about 3 failure modes (Krippendorff's alpha 0.09);"
        " their ratings of 2 examples differ by 2.0 points on average (Krippendorff's alpha 0.75)."
    )


def test_an_example_that_most_of_those_who_speak_of_it_cannot_read_is_unreadable() -> None:
    def unreadable(name: str) -> dict[str, Any]:
        return {"id": name, "unreadable": True, **PROBE}

    ada, ben = decided("Ada", "r", {"M1.1": 2, "M1.2": 9, "M1.4": 1}), decided("Ben", "r", {"M1.1": 3})
    assert ceiling([ada, ben]) is None
    # M1.1: one of three cannot read it; M1.2: one of two; M1.3 and M1.5: the only one who judged them.
    cas = decided("Cas", "r", {}, examples=[unreadable(name) for name in ("M1.1", "M1.2", "M1.3", "M1.5")])
    found = ceiling([ada, ben, cas])
    assert found is not None and (found.unreadable.value, found.unreadable.n) == (0.4, 5)
    assert found.statement.startswith(
        "Of the examples that reviewers rated, corrected or could not read themselves (5), they could not read 2: 40.0%"
        " (11.8 to 76.9); M1 2 of 5."
    )
    assert merge_decisions([ada, cas], []).ceiling is not None and merge_decisions([ada], []).ceiling is None


def test_nothing_is_said_where_nothing_can_be_told() -> None:
    assert krippendorff_alpha([[1], [2], []], "interval") is None  # no item was judged twice
    assert krippendorff_alpha([["a", "a"], ["a", "a"]], "nominal") is None  # no variation to agree on
    assert krippendorff_alpha([[1, 1], [9, 9]], "interval") == 1.0
    assert krippendorff_alpha([[1, 9], [9, 1]], "interval") < 0


def test_those_who_judged_nothing_that_another_did_are_not_counted() -> None:
    found = agreement([decided("Ada", "r", {}), decided("Ben", "r", {}), decided("Cas", "r", {}, landscape="1" * 16)])
    assert found is not None and found.reviewers == ["Ada", "Ben"]
    assert found.statement.startswith("2 reviewers agree in 100%")
    here, there = decided("Ada", "r", {"M1.1": 2}), decided("Ben", "r", {"M1.1": 9}, landscape="1" * 16)
    assert agreement([here, there]) is None, "examples of two landscapes are two things"
