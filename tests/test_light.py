"""The light of a verdict: green only where all that was found lies within bounds that somebody set."""

from typing import Any

import pytest

from stages.landscape.gates import landscape_concerns, light_of
from stages.landscape.verdict import conclude
from stages.params import Gates, LandscapeGates
from stages.records import Gate, Landscape, RepairVerdict
from tests.report_samples import FOUR, difference, make_comparison, make_inputs, measured, plan_of, records_of

PASSED = Gate(gate="max_failure_rate", bound=0.5, value=0.3, low=0.28, high=0.32, passed=True)
LEVELS = {"failure_rate": {"max": 0.2}, "target_failure_rate": {"max": 0.4}, "clean_quality": {"min": 0.9}}


def verdict_of(gates: dict[str, Any], **more: Any) -> RepairVerdict:
    """The verdict on a repair that makes nothing worse, but for what is given."""
    given = make_comparison(*FOUR)["verdict"] | {"failures_moved": {"found": False, "regions": []}} | more
    comparison, judged = records_of(given)
    return conclude(comparison, plan_of(comparison, judged), Gates.model_validate(gates))


@pytest.mark.parametrize("without", ["failure_rate", "target_failure_rate", "clean_quality"])
def test_a_repair_is_green_only_if_levels_are_bounded(without: str) -> None:
    full = verdict_of(LEVELS)
    assert (full.light, full.passed, full.concerns) == ("green", True, [])
    changes = {"failure_rate": {"change_max": 0.01}, "target_failure_rate": {"change_max": -0.05}}
    one = verdict_of({**LEVELS, **{without: changes.get(without)}})
    assert one.passed and one.light == "amber"
    assert len(one.concerns) == 1 and f"({without}." in one.concerns[0]


def test_bounds_inside_and_outside_the_targets_bound_all_of_use() -> None:
    both = {"target_failure_rate": {"max": 0.4}, "other_failure_rate": {"max": 0.2}}
    assert verdict_of({**both, "clean_quality": {"change_min": -0.1}}).light == "green"


@pytest.mark.parametrize("action", ["repair", "accept"])
def test_a_mode_that_still_fails_above_its_bound_is_a_concern_whoever_chose_it(action: str) -> None:
    modes = make_comparison(*FOUR)["verdict"]["modes"]
    modes[0] |= {"action": action, **difference(0.805, -0.1, -0.2, 0.0, before=0.909)}
    modes[0] |= {"after_low": 0.677, "after_high": 0.899}
    found = verdict_of(LEVELS, modes=modes)
    assert (found.passed, found.light) == (True, "amber")
    (concern,) = found.concerns
    assert "M1" in concern and "80.5% (67.7–89.9%)" in concern and "40%" in concern and "M2" not in concern
    assert ("not repaired" in concern) == (action == "accept")


def test_a_kind_of_item_shown_to_fail_above_the_bound_of_use_is_a_concern() -> None:
    def kinds(low: float) -> list[dict[str, Any]]:
        joint = {"joint_after": {"low": low, "high": 0.5}, "joint_change": {"low": -0.2, "high": 0.0}}
        one = {"value": "9", "items": 90, "p": 1.0, "worse": False, **joint}
        values = [one | difference(0.3, -0.1, -0.2, 0.0, before=0.4)]
        return [{"attribute": "label", "missing": 0, "values": values}]

    assert verdict_of(LEVELS, slices=kinds(0.19)).light == "green", "not shown: its interval reaches below the bound"
    above = verdict_of(LEVELS, slices=kinds(0.21))
    assert above.light == "amber" and "label 9 30.0% (21.0–50.0%)" in above.concerns[0]
    own = {**LEVELS, "slices": {"label": {"max": 0.6}}}
    assert verdict_of(own, slices=kinds(0.21)).light == "green", "kinds of this attribute have a bound of their own"


@pytest.mark.parametrize(
    ("measure", "numbers", "word"),
    [
        ("clean_quality", {"change": -0.05, "low": -0.08, "high": -0.02}, "clean accuracy fell"),
        ("target_failure_rate", difference(0.3, 0.1, 0.05, 0.15, before=0.2), "20.0% to 30.0%"),
    ],
)
def test_what_got_worse_beyond_chance_is_a_concern(measure: str, numbers: dict[str, float], word: str) -> None:
    differences = make_comparison(*FOUR)["verdict"]["differences"]
    differences[measure] |= numbers
    found = verdict_of(LEVELS, differences=differences)
    assert found.light == "amber" and word in found.concerns[0] and found.concerns[0] in found.statement


def test_failures_that_moved_are_a_concern_and_a_failed_gate_is_red() -> None:
    moved = make_comparison(*FOUR)["verdict"]["failures_moved"]
    assert verdict_of(LEVELS, failures_moved=moved).concerns == ["Failures rose elsewhere: darkening >= 0.9."]
    assert verdict_of({**LEVELS, "newly_failing": {"max": 0.01}}).light == "red"


@pytest.mark.parametrize(("high", "light"), [(-0.02, "green"), (0.02, "red")])
def test_superiority_that_is_not_shown_is_red(high: float, light: str) -> None:
    differences = make_comparison(*FOUR)["verdict"]["differences"]
    differences["target_failure_rate"]["control"]["repair_minus_control"] = measured(-0.05, -0.08, high, 3000)
    superior = {"target_failure_rate": {**LEVELS["target_failure_rate"], "minus_control_max": 0}}
    found = verdict_of({**LEVELS, **superior}, differences=differences)
    assert found.light == light
    [gate] = [gate for gate in found.gates if gate.gate == "target_failure_rate.minus_control_max"]
    assert gate.passed == (light == "green") and "superior in target failure rate" in found.statement


@pytest.mark.parametrize(
    ("gates", "modes", "light", "named"),
    [
        ({"max_failure_rate": 0.5, "max_mode_rate": 0.9}, 3, "green", []),
        ({"max_failure_rate": 0.5}, 3, "amber", ["3 confirmed failure modes (max_mode_rate)"]),
        ({"max_failure_rate": 0.5}, 0, "green", []),
        ({"max_mode_rate": 0.9}, 1, "amber", ["in use (max_failure_rate)"]),
        (None, 1, "amber", ["in use (max_failure_rate)", "its confirmed failure mode (max_mode_rate)"]),
    ],
)
def test_a_landscape_is_green_only_if_use_and_modes_are_bounded(
    gates: dict[str, Any] | None, modes: int, light: str, named: list[str]
) -> None:
    summary = make_inputs(*FOUR)["summary"]
    summary["modes"], summary["slices"] = summary["modes"][:modes], None
    bounds = None if gates is None else LandscapeGates.model_validate(gates)
    judged = [PASSED] if gates else []
    concerns = landscape_concerns(bounds, judged, Landscape.from_json(summary, "a sample"))
    assert light_of(judged, concerns) == light
    assert all(name in " ".join(concerns) for name in named) and bool(concerns) == bool(named)


@pytest.mark.parametrize(("low", "light"), [(0.49, "green"), (0.524, "amber")])
def test_what_is_suspected_to_fail_above_the_bound_of_modes_is_a_concern(low: float, light: str) -> None:
    summary = make_inputs(*FOUR)["summary"] | {"modes": [], "slices": None}
    summary["suspected"][0] |= {"text": "blur >= 2", "rate": 0.889, "low": low, "high": 0.997}
    bounds = LandscapeGates(max_failure_rate=0.5, max_mode_rate=0.5)
    concerns = landscape_concerns(bounds, [PASSED], Landscape.from_json(summary, "a sample"))
    assert light_of([PASSED], concerns) == light
    assert bool(concerns) == (light == "amber") and all("blur >= 2 88.9% (52.4–99.7%)" in one for one in concerns)


def test_a_gate_that_nothing_could_be_measured_for_is_a_concern() -> None:
    unknown = PASSED.model_copy(update={"passed": None, "value": None, "low": None, "high": None})
    summary = make_inputs(*FOUR)["summary"] | {"modes": [], "slices": None}
    bounds = LandscapeGates(max_failure_rate=0.5)
    (concern,) = landscape_concerns(bounds, [unknown], Landscape.from_json(summary, "a sample"))
    assert "max_failure_rate" in concern and light_of([unknown], [concern]) == "amber"
