"""Texts in both reports: changes are marked, long texts are folded, and a model's words are never executed."""

from pathlib import Path

import pytest

from stages.pages.gallery import MarkedText, Shrinker, mark_changes
from stages.tasks.contract import Exhibit
from tests.report_samples import comparison_html, landscape_html, shelf
from tests.text_samples import ARTICLES, make_text_comparison, make_text_inputs


def drawn(marked: MarkedText) -> str:
    """Marks as plain text: [-out-], [+in+], _case_."""
    shapes = {"same": "{}", "case": "_{}_", "cut": "[-{}-]", "new": "[+{}+]"}
    return "".join(shapes[kind].format(text) for kind, text in marked.pieces)


@pytest.mark.parametrize(
    ("original", "changed", "said"),
    [
        ("The river rose two metres.", "The rivre rose two.", "The [-river-] [+rivre+] rose two [-metres-]."),
        ("So he said yes to it all.", "So he never said yes to it all.", "So he [+never+] said yes to it all."),
        ("It rained on the town today.", "It rained onthe town today.", "It rained [-on the-] [+onthe+] town today."),
        ("One line.\n\nAnother line of it.", "One line.\n\nAnother of it.", "One line.\n\nAnother [-line-] of it."),
    ],
)  # fmt: skip
def test_changes_are_marked_word_by_word(original: str, changed: str, said: str) -> None:
    marked = mark_changes(original, changed)
    assert drawn(marked) == said and (marked.note, marked.beside) == ("", False)


@pytest.mark.slow
def test_a_report_of_many_long_texts_stays_small(tmp_path: Path) -> None:
    inputs = make_text_inputs()
    article = " ".join(ARTICLES * 20)
    shown = [Exhibit("long", text=article.replace("e ", "x "), original=article, answers={"summary": article})] * 10
    inputs["galleries"] = {m: shelf(m, shown, shown) for m in ("M1", "M2", "M3")}
    assert len(landscape_html(tmp_path, **inputs).encode()) < 5_000_000


def test_the_answer_to_the_changed_text_is_shown_before_and_after() -> None:
    exhibit = Exhibit("", text="a", original="b", answers={"of the original": "one", "of the changed text": "two"})
    shown = Shrinker([]).show(exhibit, "two", "")
    assert [asked for asked, _ in shown.answers] == ["of the original", "before the repair", "after the repair"]
    assert shown.answers[2][1].blank
    assert [asked for asked, _ in Shrinker([]).show(exhibit).answers] == ["of the original", "of the changed text"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("reports")
    return {
        "landscape": landscape_html(folder, **make_text_inputs()),
        "comparison": comparison_html(folder, **make_text_comparison()),
    }


def test_examples_of_a_mode_show_texts_and_answers(pages: dict[str, str]) -> None:
    mode = pages["landscape"].split('id="mode-1"')[1].split('id="mode-2"')[0]
    asked = [
        mode.count(f'<p class="asked">{of}</p>') for of in ("summary of the original", "summary of the changed text")
    ]
    assert asked == [12, 12] and mode.count('<p class="asked">the original</p>') == 2
    assert mode.count("<details><summary>the original</summary>") == 8, "not where nothing changed, nor beside"
    assert mode.count("given to the model <span") == 6, "upper case, too much changed, unchanged: twice each"
    assert "<del>" in mode and "<ins>" in mode and '<span class="case">' in mode
    assert "faithfulness to the original falls by 0.11" in mode
