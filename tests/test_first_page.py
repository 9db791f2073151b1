"""The first page of a report: the light and its reason, failures and their attributes, frequency, and its PDF."""

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows.views import pdf
from stages.concepts import Concept, ConceptSpace, Region
from stages.core.errors import InfrastructureError, UsageError
from stages.pages.first_page import ABOUT_NOTHING, MODES, About, FirstPage, comparison_page, landscape_page
from stages.pages.gallery import Shrinker
from stages.pages.words import how_common, what_was_tested
from stages.params.usage import UsageConfig, in_use
from stages.records import Landscape, PairedProbe, RateRecord, Verdict
from stages.records.landscape import usage_record
from stages.tasks.contract import Exhibit
from tests.conftest import CHROMIUM
from tests.report_samples import (
    FOUR,
    WEATHER,
    difference,
    landscape_html,
    make_comparison,
    make_inputs,
    picture,
    plan_of,
    records_of,
    write_landscape,
)

FAILED = {"passed": False, "value": 0.6, "low": 0.58, "high": 0.62}
UNKNOWN = {"passed": None, "value": None, "low": None, "high": None}
GATE = {"gate": "max_failure_rate", "bound": 0.5, "value": 0.3, "low": 0.28, "high": 0.32, "passed": True}


def page_of(
    inputs: dict[str, Any], about: About = ABOUT_NOTHING, unchanged: dict[str, Exhibit] | None = None
) -> FirstPage:
    landscape = Landscape.from_json(inputs["summary"], "a sample")
    verdict = Verdict.from_json(inputs["verdict"], "")
    return landscape_page(landscape, verdict, about, inputs["galleries"], unchanged or {}, Shrinker([]))


@pytest.mark.parametrize(
    ("light", "gate", "concerns", "headline", "reason"),
    [
        ("red", GATE | FAILED, [], "Not ready to deploy", "Failure rate: 60.0% (58.0–62.0%); the gate requires ≤ 50"),
        ("amber", GATE, ["A.", "B."], "Decide before deploying", "It meets its gates, but: A. B."),
        ("amber", None, ["A."], "Decide before deploying", "A."),
        ("green", GATE, [], "Passes its gates", "It meets its gates (failure rate ≤ 50.0%), and no region"),
    ],
)  # fmt: skip
def test_the_light_is_shown_with_what_decided_it(
    light: str, gate: dict[str, Any] | None, concerns: list[str], headline: str, reason: str
) -> None:
    inputs = make_inputs(*FOUR)
    passed = gate and gate["passed"]
    gates = [gate] if gate else []
    inputs["verdict"] = {"audit": "mnist", "passed": passed, "gates": gates, "light": light, "concerns": concerns}
    page = page_of(inputs)
    assert (page.light, page.headline) == (light, headline) and page.reason.startswith(reason)


def test_the_next_step_is_the_command_itself() -> None:
    inputs = make_inputs(*FOUR)
    inputs["verdict"] = {"audit": "mnist", "passed": None, "gates": []}
    usage = "faded usage mnist"
    assert [step.command for step in page_of(inputs).steps] == ["faded review mnist", usage]
    inputs["summary"]["usage"]["stated"] = True
    assert [step.command for step in page_of(inputs).steps] == ["faded review mnist"]
    inputs["verdict"] |= {"passed": True, "gates": [GATE]}
    assert [step.command for step in page_of(inputs).steps] == ["faded evidence mnist"]
    inputs["verdict"] |= {"passed": None, "gates": []}
    inputs["summary"]["modes"] = []
    (step,) = page_of(inputs).steps
    assert step.command == "faded audit mnist" and "audits.mnist.gates" in step.text


def repaired(verdict: dict[str, Any], **more: Any) -> FirstPage:
    comparison, judged = records_of(verdict)
    plan = plan_of(comparison, judged)
    given = {"galleries": {}, "attributes": pd.DataFrame(), **more}
    return comparison_page(comparison, judged, plan, About(), given["galleries"], given["attributes"], Shrinker([]))


def passing() -> dict[str, Any]:
    """A repair that passes its gates and makes nothing worse."""
    verdict = make_comparison(*FOUR)["verdict"]
    verdict |= {"passed": True, "gates": [gate | {"passed": True} for gate in verdict["gates"]], "slices": []}
    verdict["failures_moved"] = {"found": False, "regions": []}
    return verdict | {"light": "green"}


def test_a_repair_that_passes_says_what_was_allowed_and_who_chose() -> None:
    page = repaired(passing())
    assert "no rise in failures beyond chance was found" in page.reason
    assert "(newly failing ≤ 2.0%)" in page.reason, "a gate on a change says nothing of the level"
    assert ("Decided by", "a rule, not a person") in page.facts
    assert [step.command for step in page.steps] == ["faded evidence mnist", "faded export mnist deploy/mnist"]
    shorter = repaired(passing() | {"cheapest": {"folder": "trainings/repaired-0.25-0", "steps": 26}})
    assert "26 steps" in shorter.steps[1].text and "steps" not in page.steps[1].text


def test_after_a_failed_gate_people_decide_again_and_rules_are_changed() -> None:
    failed = make_comparison(*FOUR)["verdict"] | {"light": "red"}
    page = repaired(failed)
    assert page.reason.startswith("Newly failing: 2.4% (1.9–3.0%); the gate requires ≤ 2.0%.")
    assert [step.command for step in page.steps] == ["faded audit mnist"], "a rule decided: no review would count"
    by_a_person = repaired(failed | {"decided_by": "human", "reviewer": "Ada"})
    assert [step.command for step in by_a_person.steps] == ["faded review mnist --revise", "faded audit mnist"]


def test_a_rise_that_may_be_chance_is_named_with_its_corrected_p() -> None:
    def kind(value: str, change: float, low: float, p: float, worse: bool) -> dict[str, Any]:
        joint = {"joint_after": {"low": 0.0, "high": 1.0}, "joint_change": {"low": -1.0, "high": 1.0}}
        moved = difference(0.13, change, low, 2 * change - low, before=0.13 - change)
        return {"value": value, "items": 90, **joint, "p": p, "worse": worse, **moved}

    rises = (("4", 0.061, 0.002, 0.41), ("7", 0.02, -0.01, 1.0), ("9", 0.03, 0.001, 0.6))
    kinds = [kind(*rise, worse=False) for rise in rises]
    page = repaired(passing() | {"slices": [{"attribute": "label", "missing": 0, "values": kinds}]})
    said = "The largest rise, label 4 by +6.1 points (+0.2 to +12.0), may be chance: p = 0.410 among 3 kinds of items."
    assert said in page.reason
    kinds[0] |= {"worse": True}
    assert "label 9" in repaired(passing() | {"slices": [{"attribute": "label", "missing": 0, "values": kinds}]}).reason


def test_an_example_of_a_repair_lies_in_its_mode() -> None:
    comparison, judged = records_of(passing())
    plan = plan_of(comparison, judged)
    strong = [len(concept) - 1 for concept in comparison.space.concepts]
    nines = Region({comparison.space.names[0]: (strong[0],)}, {"label": ("9",)})
    plan = plan.model_copy(update={"modes": [plan.modes[0].model_copy(update={"region": nines.to_json()})]})
    rows = [
        PairedProbe(Exhibit(f"{item} at {cell}", image=picture(k)), "7", "9", None, item, tuple(cell))
        for k, (item, cell) in enumerate([("a", strong), ("b", [0] * len(strong)), ("b", strong)])
    ]
    clean = [PairedProbe(Exhibit("b unchanged", image=picture(7)), "9", "9", None, "b", (0,) * len(strong))]
    labels = pd.DataFrame({"label": ["7", "9"]}, index=["a", "b"])
    galleries = {"fixed": rows, "newly_failing": [], "unchanged": clean}
    page, none = (
        comparison_page(comparison, judged, plan, About(), shelves, labels, Shrinker([]))
        for shelves in (galleries, {"newly_failing": rows, "unchanged": clean})
    )
    assert none.modes[0].pair is None, "what fails only since the repair is no example of what it repaired"
    shown = page.modes[0].pair
    assert shown is not None and shown.caption == f"b at {strong}", "of label 9, and in the cells of the mode"
    assert [image.label for image in shown.images] == ["unchanged", "changed"]
    assert [asked for asked, _ in shown.answers] == ["after the repair"]
    assert page.modes[1].pair is None, "the plan names no region for it"


def test_modes_come_by_the_failures_they_hold_each_with_the_item_as_it_was() -> None:
    inputs = make_inputs(*FOUR)
    modes = inputs["summary"]["modes"]
    modes.append({**modes[0], "id": "M4", "rate": 0.99, "low": 0.9, "high": 1.0, "share": 1e-6})
    example = {"item": "item-0", "cell": [0] * 4, "output": "7", "failed": True, "discrepancy": 1.0}
    for mode in modes:
        mode["examples"] = [{"id": f"{mode['id']}.1", **example}]
    page = page_of(inputs, unchanged={"item-0": Exhibit("as it was", image=picture(40))})
    held = {mode["id"]: mode["rate"] * mode["share"] for mode in modes}
    assert [card.id for card in page.modes] == sorted(held, key=held.__getitem__, reverse=True)[:MODES]
    assert page.left == 1
    assert next(tile.text for tile in page.tiles if tile.value == "99.0%").startswith("fail in the worst mode")
    again = {"M1": "each half", "M2": "one half", "M3": "neither half"}
    for card in page.modes:
        said = [text for text in card.sentences if text.startswith("Found again in")]
        assert said == ([f"Found again in {again[card.id]} of the items."] if card.id in again else [])
        assert card.pair is not None and [image.label for image in card.pair.images] == ["unchanged", "changed"]
        assert card.link == f"mode-{int(card.id[1:])}"


def test_long_texts_are_shown_about_their_change() -> None:
    original = "The town slept. " * 40 + "Then the mayor spoke at length about the bridge. " + "All went home. " * 60
    changed = original.replace("mayor", "nayor")
    exhibit = Exhibit("c", text=changed, original=original, answers={"summary": "word " * 300})
    shown = Shrinker([exhibit]).brief(exhibit, None)
    assert shown.text is not None
    assert {p.text: p.kind for p in shown.text.head if p.kind != "same"} == {"mayor": "cut", "nayor": "new"}
    assert sum(len(piece.text) for piece in shown.text.head) < 400 and shown.text.head[0].text.startswith("… ")
    assert sum(len(piece.text) for piece in shown.answers[0][1].head) < 320


def test_who_and_how_many_are_answered_wrongly_unchanged(tmp_path: Path) -> None:
    about = About("small_cnn", "mnist.parquet", RateRecord(value=0.97, low=0.95, high=0.98, n=500))
    inputs = make_inputs(*FOUR)
    page = page_of(inputs, about)
    known = [("Model", "small_cnn"), ("Data", "mnist.parquet")]
    assert page.facts == [*known, ("Searched on", "50 items")]
    assert page.tiles[0] == ("3.0%", "of 500 unchanged inputs are answered wrongly (2.0–5.0%)")
    text = landscape_html(tmp_path, **inputs, about=about)
    assert text.index("small_cnn") < text.index("Decide before deploying") < text.index("<nav")


def test_the_rate_is_that_in_use_and_says_by_which_usage() -> None:
    inputs, verdict = make_inputs(*FOUR), passing()
    overall = inputs["summary"]["overall"]
    spread = f"{100 * overall['low']:.1f}–{100 * overall['high']:.1f}%"
    measured = {"stated": True, "inputs": 1200, "source": "the camera at gate 4"}
    for more, whence, said in (
        ({}, "assumed", "by the usage that was assumed"),
        ({"stated": True}, "stated", "by the usage that was stated"),
        (measured, "measured", "by the usage measured on 1,200 inputs of the camera at gate 4"),
    ):
        inputs["summary"]["usage"] |= more
        page = page_of(inputs)
        assert (f"{overall['value']:.1%}", f"of what this model will meet fails, {said} ({spread})") in page.tiles
        assert page.usage.startswith(
            f"Usage {whence}: nothing changes in 30% of inputs, one thing in 40%, two in 20%, three in 10%. The rate"
            f" would be {overall['value'] / 2:.1%} if half as much changes, and {overall['value'] * 1.5:.1%} if"
        )
        assert "uniform" not in str(page) and "the grid" not in str(page) and not page.over_grid
        verdict["usage"] |= more
        page = repaired(verdict)
        assert page.tiles[0].text.startswith(f"of what the model will meet fails, {said} (")
        assert page.usage.startswith(f"Usage {whence}: nothing changes in 30% of inputs")


CASE = Concept("case", ("as_is", "upper"), ordered=False, neutral="as_is")
TURNED = Concept("turn", (-30, 0, 30), "°", neutral=0)
LIGHT = Concept("light", (1, 0.8, 0.6), neutral=1)


def test_what_was_tested_is_said_for_every_kind_of_concept() -> None:
    for concepts, usage, said in (
        ((LIGHT,), {}, "light down to 0.6"),
        ((TURNED, CASE), {}, "turn -30° to 30°, case (upper), alone and together"),
        ((WEATHER,), {}, "weather (4 kinds)"),
        ((TURNED, LIGHT), {"changes": [1, 1]}, "turn -30° to 30°, light down to 0.6, one at a time"),
        ((LIGHT,), {"changes": [1]}, "unchanged inputs"),
        ((LIGHT, CASE), {"levels": {"light": {1: 3, 0.8: 1}}}, "light down to 0.8, case (upper), alone and together"),
    ):
        tested = what_was_tested(in_use(ConceptSpace(concepts), UsageConfig(**usage)))
        assert tested == f"Tested: {said}; nothing is known beyond."
    space = in_use(ConceptSpace((WEATHER, LIGHT)), UsageConfig())
    common = how_common(space, usage_record(space, UsageConfig()))
    assert common == "Usage assumed: beside weather, nothing changes in 30% of inputs, one thing in 70%."


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_it_prints_as_two_pages(tmp_path: Path) -> None:
    write_landscape(tmp_path / "page.html", **make_inputs(*FOUR), about=About("small_cnn", "mnist.parquet"))
    pdf.print_summary(tmp_path / "page.html", tmp_path / "page.pdf")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 2


def test_without_a_browser_it_says_how_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("x")
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UsageError, match=r"--pdf needs Chromium or Chrome.*page\.html#summary"):
        pdf.print_summary(tmp_path / "page.html", tmp_path / "page.pdf")
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/false")
    with pytest.raises(InfrastructureError, match="did not print"):
        pdf.print_summary(tmp_path / "page.html", tmp_path / "page.pdf")
    assert not (tmp_path / "page.pdf").exists()
