"""Slots, the words that may fill them, and the resulting prompts."""

import re

import pytest
import yaml

from stages.concepts.prompts import check_slots, check_templates, fill, prompt_space, read_templates
from tests.workspace import ROOT

SLOTS = ["size", "animal", "setting"]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"rate": ["a", "b"]}, "concepts.rate: this is the name of a column of the tables, choose another"),
        ({"a": "cat"}, "concepts.a: expected a list of words or phrases, found 'cat'"),
        ({"a": ["cat", 3]}, 'concepts.a: level 3 is a number: put it in quotes ("3"), or write it as a word'),
        (yaml.safe_load("a: [cat, ]\nb: [dog, ~]"), "concepts.b: level None is not a word or phrase; to leave"),
        ({"a": ["cat", "big  dog"]}, "concepts.a: level 'big  dog' has stray spaces, expected 'big dog'"),
        ({"a": ["cat", ","]}, "concepts.a: level ',' says nothing; to leave the slot unsaid write \"\""),
    ],
)
def test_what_is_wrong_with_slots_is_told(levels: dict, message: str) -> None:
    assert any(error.startswith(message) for error in check_slots(levels)), check_slots(levels)


@pytest.mark.parametrize(
    ("name", "levels", "neutral"),
    [
        ("digit", ["one", "", "digit"], ""),
        ("digit", ["one", "digit"], "digit"),
        ("other_shape", ["ring", "shape"], "shape"),
        ("relation", ["left of", "above"], None),
    ],
)
def test_the_neutral_level_says_least(name: str, levels: list[str], neutral: str | None) -> None:
    (concept,) = prompt_space({name: levels}).concepts
    assert concept.neutral == neutral and not concept.ordered and concept.levels == tuple(levels)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {size} {animal}", "lacks {setting}; expected each of {size}, {animal}, {setting} once"),
        ("a {size} {animals} {setting}", "has an unknown slot {animals}, did you mean 'animal'?"),
        ("a {size:>10} {animal} {setting}", "has a format or conversion in {size}"),
        ("a {size} {animal} {setting", "has a brace too many or too few"),
    ],
)
def test_what_is_wrong_with_a_template_is_told(template: str, message: str) -> None:
    errors = check_templates(["a {size} {animal} {setting}", template], SLOTS, "prepare.templates")
    assert f"prepare.templates: template 2, {template!r}, {message}" in errors[0]


@pytest.mark.parametrize(
    ("template", "words", "prompt"),
    [
        ("a {a} cat {b}", {"a": "", "b": ""}, "a cat"),
        ("a cat, {a}, {b}", {"a": "", "b": ""}, "a cat"),
        ("a cat ({a}) sits", {"a": ""}, "a cat sits"),
        ("A Cat\tin {a}", {"a": "ROME"}, "A Cat in ROME"),
    ],
)
def test_prompts_are_tidied_where_a_slot_says_nothing(template: str, words: dict, prompt: str) -> None:
    assert fill(template, words) == prompt


def test_the_templates_of_the_paper_have_the_slots_of_the_documented_audit() -> None:
    page = (ROOT / "docs" / "text-to-image.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    concepts = yaml.safe_load(found)["audits"]["portraits"]["concepts"]
    assert check_templates(read_templates("paper-templates.txt", ROOT / "docs"), list(concepts), "templates") == []
