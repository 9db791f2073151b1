"""Reports on models that draw: bias bars, contact sheets, prompts, pictures of two models, best and worst cells."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import compare, conclude, re_evaluate
from stages.concepts import ConceptSpace
from stages.core.files import read_json, stage_dir
from stages.landscape.bias import measure_bias
from stages.landscape.robustness import describe_steps
from stages.landscape.show import extreme_examples
from stages.pages.figures import value_colours
from stages.pages.gallery import IMAGE_BYTES, Shrinker
from stages.records import audit_folder
from stages.records.repair import Trainings
from stages.report import pictured
from stages.tasks.contract import Exhibit, Sheet
from tests.landscapes import planted, uniform
from tests.picture_samples import SLOTS, picture_comparison, picture_landscape, png, tally
from tests.planted_pictures import png as grey
from tests.report_samples import FOUR, charts, comparison_html, landscape_html, picture, section
from tests.test_re_evaluate import audited
from tests.workspace import repair_verdict


@pytest.fixture(scope="module")
def landscape(tmp_path_factory: pytest.TempPathFactory) -> str:
    return landscape_html(tmp_path_factory.mktemp("pictures"), **picture_landscape())


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> str:
    return comparison_html(tmp_path_factory.mktemp("pictures"), **picture_comparison())


def test_who_is_skewed_is_said_in_a_sentence(landscape: str) -> None:
    part = section(landscape, "bias")
    assert "1 of 4 subjects is further from the reference than chance explains at guidance 7.5" in part
    assert "The furthest is digit seven: red in 82.6%" in part
    assert "8 of 198 answers the value could not be read" in part


def test_bars_are_painted_in_their_colour_and_ordered_by_bias(landscape: str) -> None:
    drawn = charts(landscape, "bias-1")[0]
    bars = {trace["name"]: trace for trace in drawn["data"] if trace["type"] == "bar" and "name" in trace}
    assert {name: bar["marker"]["color"] for name, bar in bars.items()} == {c: c for c in ("red", "green", "blue")}
    names = drawn["layout"]["yaxis"]["ticktext"]
    assert names[0] == "digit seven, guidance 7.5 ✱"
    assert names[1] == "guidance 1"
    assert sum("✱" in name for name in names) == 1
    assert bars["red"]["x"][:2] == [pytest.approx(38 / 46, abs=1e-4), pytest.approx(17 / 48, abs=1e-4)]


def test_values_that_are_not_colours_have_the_palettes() -> None:
    assert value_colours(["red", "woman"]) != {"red": "red", "woman": "woman"}
    assert len(set(value_colours(["woman", "man", "other"]).values())) == 3


def test_a_table_holds_every_number_of_a_tally(landscape: str) -> None:
    entry = picture_landscape()["summary"]["bias"][4]
    row = next(r for r in re.findall(r"<tr>.*?</tr>", section(landscape, "bias"), re.S) if "digit seven" in r)
    assert entry["subject"] == "digit seven"
    for shown in (entry["counted"], entry["chance"]["mean"], entry["chance"]["high"], entry["bias"]["value"]):
        assert f"{shown:.1%}" in row
    assert "red 82.6% [" in row
    assert "beyond chance" in row
    assert "2 unread" in row


def test_one_subject_whose_answers_nobody_could_read(tmp_path: Path) -> None:
    inputs = picture_landscape()
    unread = measure_bias([tally("digit one", (0, 0, 0), unread=48)], seed=0)
    inputs["summary"]["bias"] = [entry.to_json() for entry in unread]
    part = section(landscape_html(tmp_path, **inputs), "bias")
    assert "0 of 0 subjects" in part
    assert "48 of 48 answers the value could not be read" in part
    assert 'id="bias-1"' not in part


def test_before_after_and_control_stand_side_by_side(comparison: str) -> None:
    part = section(comparison, "bias")
    names = charts(part, "bias-1")[0]["layout"]["yaxis"]["ticktext"]
    assert names[:3] == ["digit seven, before ✱", "after", "control ✱"]
    assert "Newly skewed beyond chance: colour of digit nine" in part
    rows = re.findall(r'<tr><th scope="row">digit \w+.*?</tr>', part, re.S)
    assert ["newly skewed" in row for row in rows[:4]] == [False, True, False, False]


def test_a_sheet_is_a_table_of_strips(landscape: str, comparison: str) -> None:
    part = section(landscape, "sheets")
    assert re.findall(r'<th scope="col"><div[^>]*>(\w+)', part) == ["three", "four", "seven", "nine"]
    assert re.findall(r'<th scope="row">(\w+)', part) == ["red", "green", "blue"]
    assert part.count('<td colspan="4"><img') == 3
    assert part.count('class="pixelated"') == 3
    both = section(comparison, "sheets")
    assert both.count('<td colspan="4"><img') == 6
    assert re.findall(r'class="soft">(\w+)', both) == ["before", "after"] * 3


def test_a_prompt_is_shown_with_the_words_of_its_slots(landscape: str) -> None:
    part = section(landscape, "modes")
    assert '<mark class="s0" title="colour">red</mark> <mark class="s1" title="digit">four</mark>' in part
    assert '<mark class="s2" title="background">on a black background</mark>' in part
    assert part.count('class="exhibit failing wide"') == 9


def test_what_both_models_drew_is_side_by_side(comparison: str) -> None:
    shown = section(comparison, "examples").split("<figure")[1]
    drawn = [base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]*)", shown)]
    assert drawn == [png("red", "green", "blue"), png("red", "red", "red")]
    assert shown.index("before the repair</span>") < shown.index("after the repair</span>")


def test_cells_that_were_not_probed_are_named_without_a_picture(landscape: str) -> None:
    part = section(landscape, "extremes")
    assert part.count("<img") == 3
    assert "2.0% fail [0.0–10.0%]: digit nine, colour unsaid (not probed)" in part


def test_small_steps_of_a_prompt_are_things_said(landscape: str) -> None:
    assert "A step adds one phrase" in section(landscape, "robustness")
    space = ConceptSpace(SLOTS)
    assert describe_steps(space, [2, 0, 1, 0], 2) == "2 things said: digit four, background on a black background"
    assert describe_steps(space, [0, 1, 0, 0], 1) == "1 thing said: colour red"
    assert describe_steps(ConceptSpace(FOUR), [1, 0, 0, 0], 1) == "1 step: rotation 10°"


def test_each_view_names_what_it_averages_over(landscape: str) -> None:
    maps, views = (charts(landscape, f"{name}-plot") for name in ("landscape", "space"))
    assert maps[0]["layout"]["meta"]["said"].startswith("Averaged over colour, background, as they occur in use.")
    assert [view["layout"]["annotations"][0]["text"] for view in views] == [
        f"averaged over {name} as in use" for name in ("size", "background", "colour", "digit")
    ]
    assert views[0]["layout"]["scene"]["yaxis"]["ticktext"] == ["unsaid", "red", "green", "blue"]


def test_images_share_the_budget_by_the_pictures_they_hold() -> None:
    noisy, small = picture(1, side=700), png("red")
    strip = Sheet("", ("a", "b"), [("r", png("red", "green"))])
    assert Shrinker([Exhibit("", drawn=small)] * 3, [strip.rows[0][1]]).image(small).pixelated
    shrinker = Shrinker([Exhibit("", drawn=noisy)] * 30 + [Exhibit("", drawn=small)] * 30)
    shown = [len(shrinker.image(image).src) * 3 / 4 for image in (noisy, small)]
    assert 30 * sum(shown) < IMAGE_BYTES * 1.01
    assert shown[1] == pytest.approx(len(small), abs=40), "what is small is left as it is"


def test_the_best_and_the_worst_cells_are_no_two_alike() -> None:
    task = planted(items=20)
    probes = uniform(task, 300)
    table = probes.groupby(task.concepts.names).agg(rate=("failed", "mean"), probes=("failed", "size")).reset_index()
    table = table.assign(rate=table["rate"].round(), low=0.0, high=1.0)
    shown = pictured(task.concepts, table, probes, extreme_examples(task, table, probes))
    assert [len(cells) for cells in shown.values()] == [4, 4]
    assert len({cell.text for cells in shown.values() for cell in cells}) == 8
    assert min(cell.rate for cell in shown["worst"]) == 1
    assert max(cell.rate for cell in shown["best"]) == 0
    assert all(cell.exhibit and cell.exhibit.text == cell.text for cells in shown.values() for cell in cells)
    unseen, none = table.assign(probes=0), probes.iloc[:0]
    shown = pictured(task.concepts, unseen, none, extreme_examples(task, unseen, none))
    assert [cell.exhibit for cells in shown.values() for cell in cells] == [None] * 8, "nobody probed them"


@pytest.fixture(scope="module")
def audit_dir(tmp_path_factory: pytest.TempPathFactory):
    """An audit of a model that draws, up to its plan; in its landscape, cats are red and dogs are not."""
    with pytest.MonkeyPatch.context() as patch:
        task = "planted_pictures:PlantedPictures"
        yield audited(
            tmp_path_factory.mktemp("audit"), patch, task, concepts=("tilt", "fog"), budget=150, control="none"
        )
    sys.modules.pop("planted_pictures", None)


def test_an_audit_tallies_and_shows_what_it_drew(audit_dir: Path) -> None:
    folder = stage_dir("tiny", "report")
    summary, page = read_json(stage_dir("tiny", "summarize") / "landscape.json"), (folder / "report.html").read_text()
    assert {entry["subject"]: entry["beyond_noise"] for entry in summary["bias"]} == {"cat": True, "dog": False}
    assert json.loads((folder / "metrics.json").read_text())["biased_subjects"] == 1
    assert "things of the split discover" in section(page, "sheets")
    assert "Fails most" in section(page, "extremes")
    assert '<mark class="s0" title="tilt">very tilted</mark>' in section(page, "modes")


def test_a_repair_that_skews_another_subject_is_found_out(audit_dir: Path) -> None:
    folder = stage_dir("tiny", "restructure") / "models" / "repaired"
    folder.mkdir(parents=True)
    model = {"regions": [], "noise": 0.03, "shares": {"cat": 0.5, "dog": 0.1}}
    (folder / "config.json").write_text(json.dumps(model))
    audit_folder("tiny").restructure.trainings = Trainings(models=[])
    for stage in (re_evaluate, compare, conclude):
        stage.main("tiny")
    out = stage_dir("tiny", "conclude")
    verdict, page = repair_verdict("tiny"), (out / "report.html").read_text()
    assert "Newly skewed beyond chance: colour of dog." in verdict["statement"]
    assert set(verdict["bias"]["subjects"][0]["models"]) == {"before", "after"}
    assert json.loads((out / "metrics.json").read_text())["newly_skewed"] == 1
    drawn = re.findall(r"data:image/png;base64,([^\"]*)", section(page, "examples").split("<figure")[1])
    assert [base64.b64decode(data) for data in drawn] == [grey(11), grey(10)], "one region before, none after"
    assert section(page, "sheets").count("<img") == 2


def test_bars_are_drawn_and_a_phone_need_not_scroll(browser: Any, tmp_path: Path) -> None:
    comparison_html(tmp_path, **picture_comparison())
    page = browser.new_page(viewport={"width": 380, "height": 800})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "comparison.html").as_uri())
    page.locator("#bias").scroll_into_view_if_needed()
    page.wait_for_selector("#bias-1[data-drawn]", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") == 380
    assert page.locator("#bias-1 .barlayer .point").count() == 12 * 4
    assert errors == []
    page.close()
