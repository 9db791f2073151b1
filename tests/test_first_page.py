"""The first page of a report: the light and its reason, failures and their attributes, frequency, and its PDF."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from flows import pdf
from stages.concepts import Region
from stages.errors import InfrastructureError, UsageError
from stages.pages.first_page import ABOUT_NOTHING, MODES, About, FirstPage, comparison_page, landscape_page
from stages.pages.gallery import Shrinker
from stages.pages.verdicts import verdict_view
from stages.params.usage import UsageConfig, in_use
from stages.records import Compared, Landscape, RateRecord, Verdict
from stages.records.landscape import usage_record
from stages.tasks.contract import Exhibit
from tests.conftest import CHROMIUM
from tests.report_samples import FOUR, make_comparison, make_inputs, picture, plan_of, records_of, write_landscape

FAILED = {"passed": False, "value": 0.6, "low": 0.58, "high": 0.62}
UNKNOWN = {"passed": None, "value": None, "low": None, "high": None}
GATE = {"gate": "max_failure_rate", "bound": 0.5, "value": 0.3, "low": 0.28, "high": 0.32, "passed": True}


def page_of(
    inputs: dict[str, Any], about: About = ABOUT_NOTHING, unchanged: dict[str, Exhibit] | None = None
) -> FirstPage:
    """The first page for arguments of `write_landscape`."""
    landscape = Landscape.from_json(inputs["summary"], "a sample")
    verdict = verdict_view(Verdict.from_json(inputs["verdict"], ""))
    return landscape_page(landscape, verdict, about, inputs["galleries"], unchanged or {}, Shrinker([]))


@pytest.mark.parametrize(
    ("gates", "modes", "light", "reason"),
    [
        ([GATE | FAILED], 3, "red", r"^Failure rate: 60\.0% .*≤ 50\.0%\.$"),
        ([GATE], 3, "amber", r"^It meets its gates, but has 3 confirmed failure modes"),
        ([GATE], 1, "amber", r"one confirmed failure mode "),
        ([GATE], 0, "green", r"^It meets its gates, and no region"),
        ([], 3, "amber", r"^[\d.]+% of uniformly drawn probes fail, most often in 3 confirmed .* No gate says"),
        ([GATE | UNKNOWN], 0, "amber", r"drawn probes fail\. Some gates could not be judged\.$"),
    ],
)  # fmt: skip
def test_the_light_follows_gates_and_modes(gates: list[Any], modes: int, light: str, reason: str) -> None:
    inputs = make_inputs(*FOUR)
    results = [gate["passed"] for gate in gates]
    passed = False if False in results else None if None in results or not results else True
    inputs["verdict"] = {"audit": "mnist", "passed": passed, "gates": gates}
    inputs["summary"]["modes"] = inputs["summary"]["modes"][:modes]
    page = page_of(inputs)
    assert page.light == light
    next_command = "faded evidence mnist" if gates else "faded status mnist"
    assert [step.command for step in page.steps] == [next_command]
    assert re.search(reason, page.reason), page.reason


def repaired(verdict: dict[str, Any], **more: Any) -> FirstPage:
    comparison, judged = records_of(verdict)
    plan = plan_of(comparison, judged)
    given = {"galleries": {}, "attributes": pd.DataFrame(), **more}
    return comparison_page(
        comparison, verdict_view(judged), plan, About(), given["galleries"], given["attributes"], Shrinker([])
    )


def passing() -> dict[str, Any]:
    """A repair that passes its gates and makes nothing worse."""
    verdict = make_comparison(*FOUR)["verdict"]
    verdict |= {"passed": True, "gates": [gate | {"passed": True} for gate in verdict["gates"]], "slices": []}
    verdict["failures_moved"] = {"found": False, "regions": []}
    return verdict


def test_a_repair_is_ready_only_if_nothing_else_got_worse() -> None:
    verdict = passing()
    page = repaired(verdict)
    assert (page.light, page.headline) == ("green", "Ready to deploy, by its gates")
    assert "no rise in failures beyond chance was found" in page.reason and "A rule, not a person" in page.reason
    assert ("Decided by", "a rule, not a person") in page.facts
    assert [step.command for step in page.steps] == ["faded evidence mnist", "faded export mnist deploy/mnist"]

    harmed = passing()
    harmed["differences"]["clean_quality"] |= {"change": -0.05, "low": -0.08, "high": -0.02}
    assert repaired(harmed).light == "amber"
    assert "clean accuracy fell" in repaired(harmed).reason

    moved = make_comparison(*FOUR)["verdict"]["failures_moved"]
    assert repaired(passing() | {"failures_moved": moved}).reason.endswith("Failures rose in darkening >= 0.9.")

    failed = make_comparison(*FOUR)["verdict"]
    page = repaired(failed)
    assert page.light == "red"
    assert page.reason == "After the repair, newly failing: 2.4% (1.9% to 3.0%); the gate requires ≤ 2.0%."
    assert [step.command for step in page.steps] == ["faded audit mnist"], "a rule decided: no review would count"
    by_a_person = failed | {"decided_by": "human", "reviewer": "Ada"}
    assert [step.command for step in repaired(by_a_person).steps] == [
        "faded review mnist --revise",
        "faded audit mnist",
    ]


def test_a_repair_that_made_its_targets_worse_is_not_ready() -> None:
    verdict = passing()
    worse = {"before": 0.2, "after": 0.3, "change": 0.1, "low": 0.05, "high": 0.15}
    verdict["differences"]["target_failure_rate"] |= worse
    page = repaired(verdict)
    assert page.light == "amber" and "Failures in the target modes rose from 20.0% to 30.0%." in page.reason


def test_a_plan_that_repairs_nothing_claims_no_repair() -> None:
    verdict = passing()
    verdict["modes"] = [mode | {"action": "accept"} for mode in verdict["modes"]]
    assert repaired(verdict).reason == "No mode was chosen for repair, and the unchanged model meets its gates."


def test_an_example_of_a_repair_lies_in_its_mode() -> None:
    comparison, judged = records_of(passing())
    plan = plan_of(comparison, judged)
    strong = [len(concept) - 1 for concept in comparison.space.concepts]
    nines = Region({comparison.space.names[0]: (strong[0],)}, {"label": ("9",)})
    plan = plan.model_copy(update={"modes": [plan.modes[0].model_copy(update={"region": nines.to_json()})]})
    rows = [
        Compared(Exhibit(f"{item} at {cell}", image=picture(k)), "7", "9", None, item, tuple(cell))
        for k, (item, cell) in enumerate([("a", strong), ("b", [0] * len(strong)), ("b", strong)])
    ]
    clean = [Compared(Exhibit("b unchanged", image=picture(7)), "9", "9", None, "b", (0,) * len(strong))]
    labels = pd.DataFrame({"label": ["7", "9"]}, index=["a", "b"])
    galleries = {"fixed": rows, "newly_failing": [], "unchanged": clean}
    page, worse = (
        comparison_page(comparison, verdict_view(judged), plan, About(), shelves, labels, Shrinker([]))
        for shelves in (galleries, {"newly_failing": rows, "unchanged": clean})
    )
    said = "This example fails only since the repair; no fixed one was recorded."
    assert said in worse.modes[0].said and said not in page.modes[0].said
    shown = page.modes[0].pair
    assert shown is not None and shown.caption == f"b at {strong}", "of label 9, and in the cells of the mode"
    assert [image.label for image in shown.images] == ["unchanged", "changed"]
    assert [asked for asked, _ in shown.answers] == ["after the repair"]
    assert page.modes[1].pair is None, "the plan names no region for it"


def test_modes_come_by_the_failures_they_hold_each_with_the_item_as_it_was() -> None:
    inputs = make_inputs(*FOUR)
    modes = inputs["summary"]["modes"]
    modes.append({**modes[0], "id": "M4", "rate": 0.99, "low": 0.9, "high": 1.0, "share": 1e-6})
    for mode in modes:
        mode["examples"] = [
            {
                "id": f"{mode['id']}.1",
                "item": "item-0",
                "cell": [0] * 4,
                "output": "7",
                "failed": True,
                "discrepancy": 1.0,
            }
        ]
        gallery = inputs["galleries"].get(mode["id"])
        if gallery is not None:
            inputs["galleries"][mode["id"]] = gallery._replace(ids=[f"{mode['id']}.1"])
    page = page_of(inputs, unchanged={"item-0": Exhibit("as it was", image=picture(40))})
    held = {mode["id"]: mode["rate"] * mode["share"] for mode in modes}
    assert [card.id for card in page.modes] == sorted(held, key=held.__getitem__, reverse=True)[:MODES]
    assert page.more == "1 more below."
    assert next(tile.said for tile in page.tiles if tile.value == "99.0%").startswith("fail in the worst mode")
    for card in page.modes:
        assert card.pair is not None
        assert [image.label for image in card.pair.images] == ["unchanged", "changed"]
        assert card.link == f"mode-{int(card.id[1:])}"


def test_long_texts_are_shown_about_their_change() -> None:
    original = "The town slept. " * 40 + "Then the mayor spoke at length about the bridge. " + "All went home. " * 60
    exhibit = Exhibit(
        "c", text=original.replace("mayor", "nayor"), original=original, answers={"summary": "word " * 300}
    )
    shown = Shrinker([exhibit]).brief(exhibit, None)
    assert shown.text is not None
    assert {p.text: p.kind for p in shown.text.head if p.kind != "same"} == {"mayor": "cut", "nayor": "new"}
    assert sum(len(piece.text) for piece in shown.text.head) < 400
    assert shown.text.head[0].text.startswith("… ")
    assert sum(len(piece.text) for piece in shown.answers[0][1].head) < 320


def test_who_and_how_many_are_answered_wrongly_unchanged(tmp_path: Path) -> None:
    about = About("small_cnn", "mnist.parquet", "2026-11-28", RateRecord(value=0.97, low=0.95, high=0.98, n=500))
    inputs = make_inputs(*FOUR)
    page = page_of(inputs, about)
    known = [("Model", "small_cnn"), ("Data", "mnist.parquet"), ("Date", "2026-11-28")]
    assert page.facts == [*known, ("Searched on", "50 items")]
    assert page.tiles[0] == ("3.0%", "of 500 unchanged inputs are answered wrongly (2.0–5.0%)")
    write_landscape(tmp_path / "page.html", **inputs, about=about)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.index("small_cnn") < text.index("Not ready to deploy") < text.index("<nav")


def test_a_mode_says_how_much_of_use_and_of_all_failures_it_is() -> None:
    inputs = make_inputs(*FOUR)
    assert "of the grid and" in " ".join(page_of(inputs).modes[0].said)
    space = in_use(Landscape.from_json(inputs["summary"], "").space, UsageConfig())
    usage = usage_record(space, UsageConfig())
    assert usage is not None
    inputs["summary"]["usage"] = usage.to_json()
    for mode, share in zip(inputs["summary"]["modes"], (0.42, 0.2, None), strict=True):
        mode["of_failures"] = share
    first, second, third = (" ".join(card.said) for card in page_of(inputs).modes)
    assert "of use and" in first
    assert "About 42% of all failures lie here." in first
    assert "About 20% of all failures lie here beyond those of the modes before it." in second
    assert "of all failures" not in third


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")
def test_it_prints_as_two_pages(tmp_path: Path) -> None:
    inputs = make_inputs(*FOUR)
    write_landscape(tmp_path / "page.html", **inputs, about=About("small_cnn", "mnist.parquet", "2026-11-28"))
    pdf.print_summary(tmp_path / "page.html", tmp_path / "page.pdf")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 2


def test_without_a_browser_it_says_how_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("x")
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(UsageError, match=r"--pdf needs Chromium or Chrome.*page\.html#summary"):
        pdf.print_summary(tmp_path / "page.html", tmp_path / "page.pdf")
    monkeypatch.setattr(shutil, "which", lambda _name: "/bin/false")
    with pytest.raises(InfrastructureError, match="did not print"):
        pdf.print_summary(tmp_path / "page.html", tmp_path / "page.pdf")
    assert not (tmp_path / "page.pdf").exists()
