"""Decisions: bound to one landscape, chained, atomic, and refused if they do not fit."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.workspace.edit_params import dumped
from stages import collect_feedback as feedback
from stages import decisions
from stages.concepts import Concept, ConceptSpace
from stages.core.errors import DecisionNeeded, RejectedError, UsageError
from stages.core.files import read_json, write_json
from stages.decisions import AlreadyDecided, Decision, Standing, Via
from stages.decisions.files import DecisionFile
from stages.decisions.rule import by_rule, ruled_on
from stages.params import FeedbackConfig, Params
from stages.records import Landscape, Plan, audit_folder
from tests.landscapes import SUSPECTED, landscape_file
from tests.workspace import audit_params, repair_params


def example(name: str, failed: bool = True) -> dict:
    answer = {"cell": [1, 0], "output": "No.", "failed": failed, "discrepancy": 0.5}
    return {"id": name, "item": f"item of {name}", **answer}


MODES = [{"id": f"M{i}", "text": f"{name} >= 1", "region": {name: [1, 2]}} for i, name in enumerate("abc", 1)]
MODES[0]["examples"] = [example("M1.1"), example("M1.2"), example("M1.3", failed=False)]
MODES[1]["examples"] = [example("M2.1")]  # the third is as of an older version
CONCEPTS = ConceptSpace(tuple(Concept(name, (0, 1, 2)) for name in "abc")).to_json()


@pytest.fixture
def landscape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("data/x/summarize")
    folder.mkdir(parents=True)
    pd.DataFrame({"a": [0, 1]}).to_parquet(folder / "landscape.parquet")
    write_json(folder / "landscape.json", landscape_file(MODES, suspected=[SUSPECTED], concepts=CONCEPTS))
    return folder


def params(reviewers: int = 1) -> Params:
    repair = repair_params(feedback={"policy": "wait", "reviewers": reviewers})
    return Params.model_validate({"audits": {"x": audit_params()}, "repairs": {"x": repair}})


def decision(**changes: object) -> Decision:
    modes = [{"id": m["id"], "action": "repair", "severity": 2.0, "reason": "unsafe"} for m in MODES]
    given = {"landscape": decisions.landscape_hash("x"), "reviewer": "Ada", "approve": True, "modes": modes, **changes}
    return Decision.model_validate(given)


def record(reviewers: int = 1, revise: bool = False, **changes: object) -> DecisionFile:
    return record_via("terminal", reviewers, revise=revise, **changes)


def record_via(
    via: Via, reviewers: int = 1, *, revise: bool = False, seen: Sequence[str] | None = None, **changes: object
) -> DecisionFile:
    return decisions.record_decision(params(reviewers), "x", decision(**changes), via, revise=revise, seen=seen)


def now(reviewers: int = 1) -> Standing:
    return decisions.standing(params(reviewers), "x")


def plan(reviewers: int = 1) -> dict:
    return feedback.by_person("x", now(reviewers), summary().modes).to_json()


def summary() -> Landscape:
    return audit_folder("x").summarize.landscape


def words(**actions: str) -> list[dict]:
    """A person's choices on the modes, with a reason for each that is not ignored."""
    said = {m["id"]: actions.get(m["id"], "ignore") for m in MODES}
    return [{"id": m, "action": a, "reason": "" if a == "ignore" else "known"} for m, a in said.items()]


def test_a_decision_comes_back_as_it_was_made(landscape: Path) -> None:
    corrected = "It is: a 'long'  answer,\nof two lines # and more. " * 5
    examples = [{"id": "M2.1", "corrected": corrected}, {"id": "M1.3", "rating": 10, "bias": 1}]
    made = decision(reason='Ümlaut: and "quotes"\n# no comment', examples=examples)
    kept = decisions.record_decision(params(), "x", made, "page")
    assert kept.path == Path("data/x/decisions") / f"{made.landscape}.yaml"
    [found] = now().kept
    assert found == kept and now().complete
    said = found.decision.model_dump(include=set(Decision.model_fields), exclude={"examples"})
    assert said == made.model_dump(exclude={"examples"})
    about = {"cell": [1, 0], "output": "No.", "discrepancy": 0.5}
    assert [e.model_dump(exclude_none=True) for e in found.decision.examples] == [
        {"id": "M2.1", "corrected": corrected.strip(), "mode": "M2", "item": "item of M2.1", **about},
        {"id": "M1.3", "rating": 10, "bias": 1, "mode": "M1", "item": "item of M1.3", **about},
    ]
    assert found.decision.via == "page" and found.decision.tool.startswith("faded ")
    assert [p.name for p in kept.path.parent.iterdir()] == [kept.path.name]


def test_the_plan_says_what_was_rated_and_keeps_what_is_not_repaired(landscape: Path) -> None:
    examples = [{"id": "M2.1", "rating": 3, "corrected": " Yes. "}, {"id": "M1.3", "rating": 10}]
    record(modes=words(M1="accept", M2="repair"), examples=examples, reason="for the release")
    answer, made = {"cell": [1, 0], "output": "No.", "bias": None}, plan()
    assert made["decided_by"] == "human" and made["reviewer"] == "Ada" and made["reason"] == "for the release"
    assert "rule" not in made and [(m["action"], m["severity"], m["reason"], m["region"]) for m in made["modes"]] == [
        ("accept", 1.0, "known", {"a": [1, 2]}),
        ("repair", 1.0, "known", {"b": [1, 2]}),
        ("ignore", 1.0, "", {"c": [1, 2]}),
    ]
    assert made["examples"] == [
        {"id": "M2.1", "mode": "M2", "item": "item of M2.1", **answer, "rating": 3, "corrected": "Yes."},
        {"id": "M1.3", "mode": "M1", "item": "item of M1.3", **answer, "rating": 10, "corrected": None},
    ]


def test_a_revision_takes_the_place_of_what_was_said_before(landscape: Path) -> None:
    first = record(approve=False, reason="no")
    second = record(revise=True, reviewer="Grace", modes=words(M2="repair"))
    assert second.path.name == f"{first.decision.landscape}.2.yaml"
    assert second.decision.revises == second.decision.previous == [first.sha256]
    assert now().kept == (second,) and first.path.exists() and plan()["reviewer"] == "Grace"


def test_a_time_out_is_lifted_by_whoever_decides_after_all(landscape: Path) -> None:
    for reviewer, stand, missing in (("bob", ["bob"], 1), ("Ada", ["Bob", "Ada"], 0)):
        shutil.rmtree("data/x/decisions", ignore_errors=True)
        record(2, reviewer="Bob")
        record_via("time-out", 2, reviewer="nobody", approve=False)
        assert now(2).rejection is not None
        record(2, revise=True, reviewer=reviewer)
        assert ([d.reviewer for d in now(2).decisions], now(2).missing) == (stand, missing)


def test_nobody_counts_twice(landscape: Path, tmp_path: Path) -> None:
    first = record(2)
    copied = first.path.with_suffix(".2.yaml")
    shutil.copy(first.path, copied)
    assert (now(2).missing, [d.reviewer for d in now(2).decisions]) == (1, ["Ada"])
    copied.unlink()

    first.path.rename(tmp_path / "kept")  # as on another branch of git
    record(2, reviewer=" ADA", modes=words(M1="accept")).path.rename(copied)
    (tmp_path / "kept").rename(first.path)
    assert now(2).missing == 1 and len(now(2).kept) == 1
    # A decision that replaces the valid one does not make the other one valid again.
    record(2, revise=True, reviewer="Bob")
    assert [d.reviewer for d in now(2).decisions] == ["Bob"]


def test_the_plan_names_the_decisions_it_was_made_from(landscape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = record()
    merge = feedback.merge_decisions

    def meanwhile(*given: Any) -> Plan:
        record(revise=True, reviewer="Grace")
        return merge(*given)

    monkeypatch.setattr(feedback, "load_params", params)
    monkeypatch.setattr(feedback, "provenance", lambda *_, **__: {"versions": {}})
    monkeypatch.setattr(feedback, "merge_decisions", meanwhile)
    feedback.main("x")
    assert read_json(Path("data/x/collect_feedback/plan.json"))["reviewer"] == "Ada"
    used = read_json(Path("data/x/collect_feedback/provenance.json"))["decisions"]
    assert used == {first.path.name: first.sha256} and now().decisions[0].reviewer == "Grace"


def test_two_reviewers_are_both_asked_and_merged_by_the_rule(landscape: Path) -> None:
    rated = [{"id": "M1.1", "rating": 2}, {"id": "M2.1", "corrected": "Yes."}]
    record(2, modes=[{"id": "M1", "action": "repair", "severity": 2.0, "reason": "seen"}, *words(M2="accept")[1:]],
           examples=rated, reason="mine")  # fmt: skip
    assert (now(2).missing, now(2).complete) == (1, False)
    with pytest.raises(DecisionNeeded, match=r"Ada decided on landscape .* 2 reviewers are needed"):
        plan(2)
    with pytest.raises(AlreadyDecided):
        record(2, reviewer="ADA")
    record(2, reviewer="Grace", modes=words(M1="ignore", M2="accept", M3="accept"),
           examples=[{"id": "M1.1", "rating": 5, "corrected": "No!"}, {"id": "M2.1", "corrected": "Ja."}])  # fmt: skip
    assert now(2).complete
    made = plan(2)
    assert made["reviewer"] == "Ada, Grace" and made["rule"] == decisions.RULE and made["reason"] == "Ada: mine"
    assert [(m["action"], m["severity"], m["reason"]) for m in made["modes"]] == [
        ("repair", 2.0, "Ada: seen"),  # they disagree: the careful action, with the severity of its proponent
        ("accept", 1.0, "Ada: known; Grace: known"),
        ("accept", 1.0, "Grace: known"),
    ]
    assert [(e["id"], e["rating"], e["corrected"]) for e in made["examples"]] == [
        ("M1.1", 3, "No!"), ("M2.1", None, "Yes."), ("M2.1", None, "Ja."),
    ]  # fmt: skip
    with pytest.raises(AlreadyDecided):
        record(2, reviewer="Linus")


def test_of_three_most_win(landscape: Path) -> None:
    for name, action in (("Ada", "ignore"), ("Grace", "repair"), ("Linus", "ignore")):
        record(3, reviewer=name, modes=words(M1=action))
    assert plan(3)["modes"][0]["action"] == "ignore"


def test_one_rejection_ends_the_audit(landscape: Path) -> None:
    record(2, approve=False, reason="not for children")
    assert now(2).complete
    with pytest.raises(RejectedError, match=r"Ada rejected landscape .* not for children.*--revise") as error:
        plan(2)
    assert error.value.exit_code == 1


def test_decisions_are_chained_so_that_an_edit_shows(landscape: Path) -> None:
    first = record()
    write_json(landscape / "landscape.json", landscape_file(MODES, items=1))
    second = record(reviewer="Grace")
    assert second.decision.previous == [first.sha256]
    assert [kept.sha256 for kept in decisions.read_chain("x")] == [first.sha256, second.sha256]
    text = first.path.read_text()
    for change in (lambda: first.path.write_text(text.replace("unsafe", "unsave")), first.path.unlink):
        change()
        with pytest.raises(UsageError, match=rf"{second.path.name} \(by Grace, .*\) follows one that is missing or no"):
            decisions.read_chain("x")
        first.path.write_text(text)
    assert len(decisions.read_chain("x")) == 2


def test_two_branches_of_decisions_are_joined_by_the_next(landscape: Path, tmp_path: Path) -> None:
    kept = []
    for more in (1, 2):  # each made without the other, as on two branches of git
        write_json(landscape / "landscape.json", landscape_file(MODES, items=more))
        for other in kept:
            other.path.rename(tmp_path / other.path.name)
        kept.append(record(reviewer=f"R{more}"))
    (tmp_path / kept[0].path.name).rename(kept[0].path)
    write_json(landscape / "landscape.json", landscape_file(MODES, items=3))
    third = record()
    assert third.decision.previous == sorted(k.sha256 for k in kept) and decisions.read_chain("x")[-1] == third


def test_recording_at_once_loses_nothing(landscape: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def attempt(n: int) -> str:
        try:
            return record(2, reviewer=f"R{n}").path.name
        except AlreadyDecided:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(attempt, range(4)))
    assert outcomes.count("refused") == 2 and len(set(outcomes)) == 3 and len(decisions.read_chain("x")) == 2


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"id": "M1.9", "rating": 3}], r"unknown example\(s\) M1.9; the landscape has M1.1 to M1.3, M2.1 to M2.1"),
        ([{"id": "M1.1", "rating": 3}, {"id": "M1.1", "rating": 4}], "examples: M1.1 is there twice"),
        ([{"id": "M1.1"}], "examples.0: example M1.1 has neither a rating nor a bias nor a corrected answer"),
        ([{"id": "M1.1", "rating": 11}], r"examples.0.rating: .*less than or equal to 10, found 11"),
    ],
)
def test_what_is_said_of_examples_must_fit(landscape: Path, tmp_path: Path, examples: list, message: str) -> None:
    by_hand = tmp_path / "mine.yaml"
    said = {"schema": 2, **decision().model_dump(), "examples": examples}
    by_hand.write_text("\n".join(f"{k}: {json.dumps(v)}" for k, v in said.items()))
    with pytest.raises(UsageError, match=message):
        decisions.record_decision(params(), "x", decisions.read_draft(by_hand), "file")
    assert not decisions.decisions_dir("x").exists()


def test_the_rule_takes_the_worst_modes_and_says_that_no_human_decided(landscape: Path) -> None:
    plan = by_rule(FeedbackConfig(policy="top-k", modes=2), summary(), "0" * 16).to_json()
    assert plan["statement"] == "decided by policy, no human" and plan["reviewer"] is None and plan["examples"] == []
    assert [m["action"] for m in plan["modes"]] == ["repair", "repair", "ignore"]
    rule = "top-2: the worst modes are repaired"
    assert [m["reason"] for m in plan["modes"]] == [rule, rule, "beyond the rule's number"]


def test_a_rule_may_take_the_groups_that_fail_more_than_others_of_their_label(landscape: Path) -> None:
    def group(value: str, items: int, rate: float, *, worse: bool = True) -> dict[str, Any]:
        counts = {"items": items, "probes": items, "failures": round(rate * items)}
        spread = {"rate": rate, "low": 0.0, "high": 1.0, "joint": {"low": 0.0, "high": 1.0}, "rest": 0.1, "p": 0.0}
        return {"value": value, **counts, **spread, "worse": worse}

    sexes = [group("Female, yes", 30, 0.4), group("Male, yes", 70, 0.2, worse=False), group("Male, no", 100, 0.1)]
    ages = [group("old, yes", 50, 0.5), group("young, yes", 150, 0.1, worse=False)]
    slices = [
        {"attribute": name, "missing": 0, "values": values}
        for name, values in (("sex and label", sexes), ("age and label", ages), ("label", [group("yes", 9, 0.9)]))
    ]
    write_json(landscape / "landscape.json", landscape_file(MODES, concepts=CONCEPTS, slices={"attributes": slices}))
    by = FeedbackConfig(policy="worst-groups", modes=2)
    plan = by_rule(by, summary(), "0" * 16)
    told = [(mode.id, mode.text, mode.action) for mode in plan.modes]
    assert told == [
        ("G1", "age and label is old, yes", "repair"),
        ("G2", "sex and label is Female, yes", "repair"),
        ("G3", "sex and label is Male, no", "ignore"),
    ]
    assert plan.targets[1].cells.items == {"sex and label": ("Female, yes",)}
    assert [group.share for group in ruled_on(by, summary())] == [0.25, 0.15, 0.5]
    favoured = FeedbackConfig(policy="worst-groups", label="no")
    assert [mode.text for mode in by_rule(favoured, summary(), "0" * 16).targets] == [told[2][1]]
    with pytest.raises(UsageError, match="'maybe', expected one of 'no', 'yes'"):
        ruled_on(FeedbackConfig(policy="worst-groups", label="maybe"), summary())
    write_json(landscape / "landscape.json", landscape_file(MODES, concepts=CONCEPTS))
    with pytest.raises(UsageError, match=r"prepare\.data\.protected"):
        ruled_on(by, summary())


def test_another_landscape_is_refused(landscape: Path) -> None:
    made = decision()
    kept = record()
    write_json(landscape / "landscape.json", landscape_file(MODES, items=1))
    assert now().kept == ()  # the old file is about another landscape
    with pytest.raises(DecisionNeeded, match=r"nobody has decided on landscape .* decisions on 1 other landscape"):
        plan()
    with pytest.raises(UsageError, match=rf"decides on landscape {made.landscape} \(by Ada\), but the current"):
        decisions.record_decision(params(), "x", made, "page")
    # A file under the new name still names its own landscape.
    kept.path.rename(kept.path.with_name(f"{decisions.landscape_hash('x')}.yaml"))
    with pytest.raises(UsageError, match="not on the one in its name"):
        now()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "not readable as YAML"),
        ("schema: 2\nreviewer: Ada\n", "landscape: missing"),
        ("schema: 1\n{good}", "schema 1, this version reads 2 .*--from FILE"),
        ("schema: 2\n{good}\nseverety: 3", "severety: unknown key"),
    ],
)
def test_a_bad_file_is_told(landscape: Path, text: str, message: str) -> None:
    kept = record()
    kept.path.write_text(text.replace("{good}", kept.path.read_text().split("\n", 1)[1]))
    with pytest.raises(UsageError, match=message):
        now()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["M1", "M2"], r"no choice for mode\(s\) M3"),
        (["M1", "M2", "M3", "S1"], r"unknown mode\(s\) S1; the landscape has M1, M2, M3"),  # only suspected
    ],
)
def test_every_mode_needs_a_word(landscape: Path, ids: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        record(modes=[{"id": i, "action": "repair"} for i in ids])


def test_numbers_are_written_as_people_do_though_the_process_edited_params_before(landscape: Path) -> None:
    dumped({"threshold": 1e-7})
    assert "  severity: 2.0\n" in record().path.read_text(encoding="utf-8")


def test_no_landscape_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="there is no landscape to decide on yet, run `faded audit x`"):
        decisions.landscape_hash("x")
