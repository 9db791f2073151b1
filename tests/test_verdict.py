"""The verdict's words follow the numbers: no praise for what may be chance, and no harm left out."""

from types import SimpleNamespace

import pytest

from stages.core.intervals import NO_RATE, Rate
from stages.landscape.compare import against_noise, targeting
from stages.landscape.verdict import statement, within_margins
from stages.records import Difference, Gate, RateRecord
from stages.records.repair import Against

FELL, SAME, ROSE = ((-0.10, -0.14, -0.06), (-0.01, -0.04, 0.02), (0.08, 0.04, 0.12))
PASSED = Gate(gate="g", bound=0.0, value=-0.1, low=-0.2, high=-0.05, passed=True)
FAILED = PASSED.model_copy(update={"passed": False})


def difference(change, before=0.3, **others) -> Difference:
    value = before + change[0]
    after = Rate(value, value - 0.01, value + 0.01, 400)
    return Difference.measured(after, Rate(before, 0.2, 0.4, 400), Rate(*change, 400)).having(**others)


def against(change, minus, name="repair_minus_control") -> Against:
    measured = Against.measured(Rate(0.2, 0.1, 0.3, 400), change=Rate(*change, 400))
    return measured.having(**{name: RateRecord.from_rate(Rate(*minus, 400))})


def said(targets, others=SAME, clean=SAME, gates=(PASSED,), repaired=True, counted=None, share=None) -> str:
    differences = {"target_failure_rate": targets, "target_not_passing": counted, "other_not_passing": counted}
    differences["other_failure_rate"] = difference(others, 0.1)
    differences["clean_quality"] = difference(clean, 0.98, name="clean accuracy")
    comparison = SimpleNamespace(
        **dict.fromkeys(("slices", "bias", "doses")),
        differences=differences,
        some_invalid=counted is not None,
        control="as_used",
        targeting=targeting(targets),
        noise=against_noise(targets),
        failures_moved=SimpleNamespace(regions=[]),
        frontier=None if share is None else SimpleNamespace(published=SimpleNamespace(share=share), equal_harm=None),
    )
    return statement(comparison, SimpleNamespace(decided_by="human", targets=["M1"] if repaired else []), gates)


def test_a_repair_that_its_budget_of_harm_withheld_is_said_to_have_changed_nothing():
    assert "Nothing was changed, as the repair would break too much." in said(difference(SAME), share=0.0)
    assert not any("Nothing was changed" in said(difference(SAME), share=share) for share in (None, 0.05, 1.0))
    assert "Nothing was changed" not in said(difference(SAME), share=0.0, repaired=False), "no repair was wanted"


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        (said(difference(FELL)), "All gates passed. In the target modes, failures fell from 30.0% to 20.0%."),
        (
            said(difference(SAME)),
            "All gates passed. In the target modes, failures went from 30.0% to 29.0%, which may be chance:"
            " −1.0 points (−4.0 to +2.0).",
        ),
        (
            said(difference(FELL), counted=difference(ROSE)),
            "No gate failed, but: In the target modes, failing and invalid probes together rose from 30.0% to 38.0%."
            " Outside the target modes, failing and invalid probes together rose from 30.0% to 38.0%."
            " In the target modes, failures fell from 30.0% to 20.0%."
            " Counting invalid probes as failures: +8.0 points (+4.0 to +12.0).",
        ),
        (
            said(difference(FELL), clean=FELL),
            "No gate failed, but: On clean inputs, clean accuracy fell from 0.980 to 0.880."
            " In the target modes, failures fell from 30.0% to 20.0%.",
        ),
        (
            said(difference(FELL), others=ROSE, gates=(FAILED,)),
            "Failed: g. Outside the target modes, failures rose from 10.0% to 18.0%."
            " In the target modes, failures fell from 30.0% to 20.0%.",
        ),
        (
            said(difference(SAME), repaired=False),
            "All gates passed. The plan repairs no mode, so no improvement was expected; the model is judged as it is.",
        ),
        (said(Difference.measured(*[NO_RATE] * 3)), "All gates passed. Nothing was measured in the target modes."),
    ],
)
def test_words_of_the_verdict(told, wanted):
    assert told == wanted


@pytest.mark.parametrize(
    ("change", "control", "minus", "helped", "wanted"),
    [
        (FELL, FELL, SAME, False, "gained nothing measurable. The control improved these modes too."),
        (FELL, SAME, SAME, False, "gained nothing measurable."),
        (SAME, FELL, ROSE, False, "did worse than the control in the target modes: +8.0 points (+4.0 to +12.0)."),
        (FELL, SAME, FELL, True, "helped: −10.0 points (−14.0 to −6.0) against the control in the target modes."),
    ],
)
def test_the_verdict_says_what_aiming_did(change, control, minus, helped, wanted):
    found = difference(change, control=against(control, minus))
    assert targeting(found).helped is helped
    assert f"iming the repair {wanted} In the target modes, failures" in said(found), "the comparison leads"


@pytest.mark.parametrize(("minus", "wanted"), [(FELL, "exceeds"), (SAME, "is within")])
def test_the_verdict_says_what_is_noise(minus, wanted):
    noise = against(SAME, minus, "repair_minus_noise")
    found = said(difference(FELL, noise=noise))
    assert f"The improvement in the target modes {wanted} the noise floor: the unchanged model, queried again" in found
    assert "queried again, differs by −1.0 points" in found
    assert "noise" not in said(difference(ROSE, noise=noise)), "where nothing improved, nothing is claimed"


def test_superiority_and_non_inferiority_are_told_by_what_the_bound_asks_for():
    def gate(name, bound, passed):
        return Gate(gate=name, bound=bound, value=0.0, low=-0.1, high=0.1, passed=passed)

    of_control = (
        ("target_failure_rate", 0, True),
        ("other_failure_rate", 0.01, True),
        ("newly_failing", 0.005, False),
        ("failure_rate", -0.01, False),
        ("other_not_passing", 0.01, None),
    )
    gates = [gate(f"{name}.minus_control_max", bound, passed) for name, bound, passed in of_control]
    gates.append(gate("clean_quality.minus_control_min", -0.005, True))
    [told] = within_margins([*gates, gate("other_failure_rate.change_max", 0.01, True)])
    assert told.removesuffix(".").partition("the repair is ")[2].split("; ") == [
        "superior in target failure rate",
        "not inferior in other failure rate, clean quality",
        "perhaps inferior in newly failing",
        "not shown to be superior in failure rate",
    ]
    assert within_margins([PASSED, gate("target_failure_rate.max", 0.3, False)]) == []
