"""Reports on models that draw: bias bars, contact sheets, prompts, pictures of two models, best and worst cells."""

import base64
import json
import re
import sys
from pathlib import Path

import pytest

from stages import compare, conclude, re_evaluate
from stages.core.files import read_json, stage_dir
from stages.records import audit_folder
from stages.records.repair import Training, Trainings
from tests.picture_samples import picture_comparison, picture_landscape
from tests.planted_pictures import png as grey
from tests.report_samples import charts, comparison_html, landscape_html, section
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


def test_before_and_after_stand_side_by_side(comparison: str) -> None:
    part = section(comparison, "bias")
    names = re.findall(r'text-anchor="end">(.*?)</text>', charts(part)[""])
    assert names[:2] == ["digit seven, before ✱", "after"]
    assert "control change" in part and "Newly skewed beyond chance: colour of digit nine" in part
    rows = re.findall(r'<tr><th scope="row">digit \w+.*?</tr>', part, re.S)
    assert ["newly skewed" in row for row in rows[:4]] == [False, True, False, False]


def test_a_prompt_is_shown_with_the_words_of_its_slots(landscape: str) -> None:
    part = section(landscape, "modes")
    assert '<mark class="s0" title="colour">red</mark> <mark class="s1" title="digit">four</mark>' in part
    assert '<mark class="s2" title="background">on a black background</mark>' in part
    assert part.count('class="exhibit failing wide"') == 9


@pytest.fixture(scope="module")
def audit_dir(tmp_path_factory: pytest.TempPathFactory):
    """An audit of a model that draws, up to its plan; in its landscape, cats are red and dogs are not."""
    with pytest.MonkeyPatch.context() as patch:
        place, task = tmp_path_factory.mktemp("audit"), "planted_pictures:PlantedPictures"
        yield audited(place, patch, task, concepts=("tilt", "fog"), budget=150, control="none")
    sys.modules.pop("planted_pictures", None)


@pytest.mark.slow
def test_an_audit_tallies_and_shows_what_it_drew(audit_dir: Path) -> None:
    folder = stage_dir("tiny", "report")
    summary, page = read_json(stage_dir("tiny", "summarize") / "landscape.json"), (folder / "report.html").read_text()
    assert {entry["subject"]: entry["beyond_noise"] for entry in summary["bias"]} == {"cat": True, "dog": False}
    assert json.loads((folder / "metrics.json").read_text())["biased_subjects"] == 1
    assert "things of the split discover" in section(page, "sheets") and "Fails most" in section(page, "extremes")
    assert '<mark class="s0" title="tilt">very tilted</mark>' in section(page, "modes")


@pytest.mark.slow
def test_a_repair_that_skews_another_subject_is_found_out(audit_dir: Path) -> None:
    folder = stage_dir("tiny", "restructure") / "models" / "repaired"
    folder.mkdir(parents=True)
    model = {"regions": [], "noise": 0.03, "shares": {"cat": 0.5, "dog": 0.1}}
    (folder / "config.json").write_text(json.dumps(model))
    trained = Training(folder="repaired", copy_of="repaired", training=0, dose=1.0, steps=1)
    audit_folder("tiny").restructure.trainings = Trainings(models=[trained])
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
