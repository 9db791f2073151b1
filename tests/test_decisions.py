"""Decisions: bound to one landscape, whole or not at all, and refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from stages import collect_feedback as feedback
from stages.errors import DecisionNeeded, RejectedError, UsageError
from stages.files import read_json, write_json
from stages.params import FeedbackConfig


def example(name: str, failed: bool = True) -> dict:
    return {
        "id": name,
        "item": f"item of {name}",
        "cell": [1, 0],
        "output": "No.",
        "failed": failed,
        "discrepancy": 0.5,
    }


MODES = [
    {"id": "M1", "text": "a >= 1", "region": {"a": [1, 2]}, "confirmed": True}
    | {"examples": [example("M1.1"), example("M1.2"), example("M1.3", failed=False)]},
    {"id": "M2", "text": "b >= 1", "region": {"b": [1, 2]}, "confirmed": False, "examples": [example("M2.1")]},
    {"id": "M3", "text": "c >= 1", "region": {"c": [1, 2]}, "confirmed": True},  # as of an older version
]


@pytest.fixture
def landscape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("data/x/summarize")
    folder.mkdir(parents=True)
    pd.DataFrame({"a": [0, 1]}).to_parquet(folder / "landscape.parquet")
    write_json(folder / "landscape.json", {"modes": MODES})
    return folder


def decision(**changes: object) -> feedback.Decision:
    modes = [{"id": m["id"], "action": "repair", "severity": 2.0, "reason": "unsafe"} for m in MODES]
    given = {"landscape": feedback.landscape_hash("x"), "reviewer": "Ada", "approve": True, "modes": modes, **changes}
    return feedback.Decision.model_validate(given)


def summary() -> dict:
    return read_json(Path("data/x/summarize/landscape.json"))


def test_a_decision_comes_back_as_it_was_made(landscape: Path) -> None:
    corrected = "It is: a 'long'  answer,\nof two lines # and more. " * 5
    examples = [{"id": "M2.1", "corrected": corrected}, {"id": "M1.3", "rating": 10}]
    made = decision(reason='Ümlaut: and "quotes"\n# no comment', examples=examples)
    path = feedback.write_decision("x", made)
    assert path == Path("data/x/decisions") / f"{made.landscape}.yaml"
    assert feedback.read_decision("x") == made
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_the_plan_holds_what_was_decided(landscape: Path) -> None:
    modes = [
        {"id": "M1", "action": "accept", "reason": "known"},
        {"id": "M2", "action": "repair", "severity": 2.0},
        {"id": "M3", "action": "ignore"},
    ]
    feedback.write_decision("x", decision(modes=modes))
    plan = feedback._by_person("x", summary())
    assert plan["decided_by"] == "human" and plan["reviewer"] == "Ada"
    assert [(m["id"], m["action"], m["severity"]) for m in plan["modes"]] == [
        ("M1", "accept", 1.0),
        ("M2", "repair", 2.0),
        ("M3", "ignore", 1.0),
    ]
    assert plan["modes"][1]["region"] == {"b": [1, 2]}


def test_the_plan_says_what_was_rated_and_keeps_what_is_not_repaired(landscape: Path) -> None:
    modes = [{"id": m["id"], "action": "accept"} for m in MODES]
    examples = [{"id": "M2.1", "rating": 3, "corrected": " Yes. "}, {"id": "M1.3", "rating": 10}]
    feedback.write_decision("x", decision(modes=modes, examples=examples))
    answer = {"cell": [1, 0], "output": "No."}
    assert feedback._by_person("x", summary())["examples"] == [
        {"id": "M2.1", "mode": "M2", "item": "item of M2.1", **answer, "rating": 3, "corrected": "Yes."},
        {"id": "M1.3", "mode": "M1", "item": "item of M1.3", **answer, "rating": 10, "corrected": None},
    ]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"id": "M1.9", "rating": 3}], r"unknown example\(s\) M1.9; the landscape has M1.1 to M1.3, M2.1 to M2.1"),
        ([{"id": "M1.1", "rating": 3}, {"id": "M1.1", "rating": 4}], "examples: M1.1 is there twice"),
        ([{"id": "M1.1"}], "examples.0: example M1.1 has neither a rating nor a corrected answer"),
        ([{"id": "M1.1", "rating": 0}], r"examples.0.rating: .*greater than or equal to 1, found 0"),
        ([{"id": "M1.1", "rating": 11}], r"examples.0.rating: .*less than or equal to 10, found 11"),
        ([{"id": "M1.1", "rating": True}], r"examples.0.rating: .*valid integer, found True"),
        ([{"id": "M1.1", "corrected": "  "}], r"examples.0.corrected: .*at least 1 character"),
        ([{"id": "M1.1", "ratng": 3}], "examples.0.ratng: unknown key, did you mean 'rating'"),
    ],
)
def test_what_is_said_of_examples_must_fit(landscape: Path, examples: list, message: str) -> None:
    path = feedback.write_decision("x", decision())
    path.write_text(path.read_text().replace("examples: []", f"examples: {json.dumps(examples)}"))
    with pytest.raises(UsageError, match=message):
        feedback.read_decision("x")


def test_a_mode_is_decided_once(landscape: Path) -> None:
    with pytest.raises(ValueError, match="M1 is there twice"):
        decision(modes=[{"id": "M1", "action": "repair"}, {"id": "M1", "action": "accept"}])


def test_the_rule_takes_confirmed_modes_only_and_says_that_no_human_decided(landscape: Path) -> None:
    plan = feedback._by_rule(FeedbackConfig(policy="top-k", modes=2), summary())
    assert plan["statement"] == "decided by policy, no human" and plan["reviewer"] is None
    assert plan["examples"] == []
    assert [m["action"] for m in plan["modes"]] == ["repair", "ignore", "repair"]


def test_another_landscape_is_refused(landscape: Path) -> None:
    made = decision()
    path = feedback.write_decision("x", made)
    write_json(landscape / "landscape.json", {"modes": MODES, "more": 1})
    assert feedback.read_decision("x") is None  # the old file is about another landscape
    with pytest.raises(DecisionNeeded, match=r"nobody has decided on landscape .* decisions on 1 other landscape"):
        feedback._by_person("x", summary())
    with pytest.raises(UsageError, match=rf"decides on landscape {made.landscape} \(by Ada\), but the present"):
        feedback.write_decision("x", made)
    # and a file put under the new name still says what it is about
    path.rename(feedback.decision_path("x", feedback.landscape_hash("x")))
    with pytest.raises(UsageError, match="but the present landscape"):
        feedback.read_decision("x")


def test_a_rejection_ends_the_audit(landscape: Path) -> None:
    feedback.write_decision("x", decision(approve=False, reason="not for children"))
    with pytest.raises(RejectedError, match=r"Ada rejected landscape .* not for children") as error:
        feedback._by_person("x", summary())
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable|is no decision"),
        ("[1, 2", "not readable as YAML"),
        ("schema: 1\nreviewer: Ada\n", "landscape: missing"),
        ("schema: 7\n{good}", "schema 7, this version reads 1"),
        ("schema: 1\n{good}\nseverety: 3", "severety: unknown key"),
    ],
)
def test_a_bad_file_is_told(landscape: Path, text: str, message: str) -> None:
    path = feedback.decision_path("x", feedback.landscape_hash("x"))
    path.parent.mkdir()
    good = "\n".join(f"{k}: {json.dumps(v)}" for k, v in decision().model_dump().items())
    path.write_text(text.replace("{good}", good))
    with pytest.raises(UsageError, match=message):
        feedback.read_decision("x")


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["M1", "M2"], r"no word on mode\(s\) M3"),
        (["M1", "M2", "M3", "M9"], r"unknown mode\(s\) M9; the landscape has M1, M2, M3"),
    ],
)
def test_every_mode_needs_a_word(landscape: Path, ids: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        feedback.write_decision("x", decision(modes=[{"id": i, "action": "repair"} for i in ids]))


def test_no_landscape_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no landscape to decide on yet, run `faded audit x`"):
        feedback.landscape_hash("x")
