"""Slots, the words that may fill them, and the resulting prompts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.concepts.prompts import (
    check_slots,
    check_templates,
    fill,
    prompt_space,
    read_templates,
)
from stages.params import Params
from stages.tasks.load import task_context

ROOT = Path(__file__).parents[1]
INPUTS = ROOT / "data" / "images" / "inputs"
SLOTS = ["size", "animal", "setting"]


@pytest.fixture(scope="module")
def world():
    """The recipe of the default model, with the captions it was trained on."""
    sys.path.insert(0, str(ROOT / "data" / "images" / "recipe"))
    try:
        import world

        yield world
    finally:
        sys.path.pop(0)


# --- slots and levels


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"Animal": ["a", "b"]}, "concepts.Animal: not a name for a slot, expected lower-case letters"),
        ({"rate": ["a", "b"]}, "concepts.rate: this is the name of a column of the tables, choose another"),
        ({"a": "cat"}, "concepts.a: expected a list of words or phrases, found 'cat'"),
        ({"a": ["cat"]}, "concepts.a: needs at least 2 levels, found ['cat']"),
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
        ("fur_colour", ["fur colour", "red"], "fur colour"),
        ("other_shape", ["ring", "shape"], "shape"),
        ("relation", ["left of", "above"], None),
    ],
)
def test_the_neutral_level_says_least(name: str, levels: list[str], neutral: str | None) -> None:
    (concept,) = prompt_space({name: levels}).concepts
    assert concept.neutral == neutral and not concept.ordered and concept.levels == tuple(levels)


# --- templates


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {size} {animal}", "lacks {setting}; expected each of {size}, {animal}, {setting} once"),
        ("a {size} {animals} {setting}", "has an unknown slot {animals}, did you mean 'animal'?"),
        ("a {0} {animal} {setting}", "has an unknown slot {0}"),
        ("a {size[0]} {animal} {setting}", "has an unknown slot {size[0]}"),
        ("a {size:>10} {animal} {setting}", "has a format or conversion in {size}"),
        ("a {size} {animal} {setting", "has a brace too many or too few"),
        ("", "lacks {size}"),
    ],
)
def test_what_is_wrong_with_a_template_is_told(template: str, message: str) -> None:
    errors = check_templates(["a {size} {animal} {setting}", template], SLOTS, "prepare.templates")
    assert f"prepare.templates: template 2, {template!r}, {message}" in errors[0]


# --- filling


@pytest.mark.parametrize(
    ("template", "words", "prompt"),
    [
        ("a {a} cat {b}", {"a": "", "b": ""}, "a cat"),
        ("{b} a {a} cat", {"a": "", "b": ""}, "a cat"),
        ("a cat, {a}, {b}", {"a": "", "b": ""}, "a cat"),
        ("a cat {a}.", {"a": ""}, "a cat."),
        ("a cat ({a}) sits", {"a": ""}, "a cat sits"),
        ("A Cat\tin {a}", {"a": "ROME"}, "A Cat in ROME"),
        ("what a {a}, really?", {"a": "cat"}, "what a cat, really?"),
    ],
)
def test_prompts_are_tidied_where_a_slot_says_nothing(template: str, words: dict, prompt: str) -> None:
    assert fill(template, words) == prompt


# --- files


# --- the default model's words


def says(words: dict[str, str]) -> dict[str, str]:
    """Words of the slots as a caption's attributes; generic words are left out."""
    attributes = {}
    for slot, phrase in words.items():
        if phrase and phrase not in ("digit", "shape"):
            attributes[slot.replace("_", " ")] = phrase.split()[2] if slot == "background" else phrase
    return attributes


def grids(world) -> dict[str, dict[str, list[str]]]:
    colours = ["", *world.COLOURS]
    ground = ["", *(f"on a {name} background" for name in world.BACKGROUNDS)]
    shapes = ["shape", *world.SHAPES]
    return {
        "templates.txt": {
            "digit": ["digit", *world.DIGITS],
            "colour": colours,
            "size": ["", *world.SIZES],
            "background": ground,
        },
        "templates-scenes.txt": {
            "shape": shapes,
            "colour": colours,
            "relation": list(world.RELATIONS),
            "other_shape": shapes,
            "other_colour": colours,
            "background": ground,
        },
    }


@pytest.mark.parametrize("file", ["templates.txt", "templates-scenes.txt"])
def test_the_prompts_of_the_default_model_are_captions_it_has_learnt(file: str, world) -> None:
    grid = grids(world)[file]
    space, templates = prompt_space(grid), read_templates(file, INPUTS)
    assert check_slots(grid) == check_templates(templates, list(grid), "templates") == []
    assert len(templates) == {"templates.txt": 44, "templates-scenes.txt": 20}[file]
    learnt = templates[: len(world.PHRASES)]
    cells = space.sample(60, np.random.default_rng(0))
    neutral = [c.levels.index(c.neutral) if c.neutral in c.levels else 0 for c in space.concepts]
    if file == "templates.txt":
        assert fill(templates[0], {c.name: str(c.neutral) for c in space.concepts}) == "a digit"
    for cell in [neutral, *cells.tolist()]:
        words = {c.name: str(c.levels[i]) for c, i in zip(space.concepts, cell, strict=True)}
        generic = {"thing": "digit" if file == "templates.txt" else "shape"}
        for template, phrase in zip(learnt, world.PHRASES, strict=True):
            caption = world.phrase(says(words) | generic, phrase)
            assert fill(template, words) == re.sub(r"\ba (?=eight)", "an ", caption)


# --- the paper's experiment


def block() -> Params:
    """The ready-made block in the docs."""
    text = (ROOT / "docs" / "text-to-image.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    return Params.model_validate(yaml.safe_load(found))


def test_the_documented_audit_of_stable_diffusion_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.tasks.text_to_image import TextToImage

    audit = block().audits["portraits"]
    inputs = tmp_path / "data" / "portraits" / "inputs"
    (inputs / "photos").mkdir(parents=True)
    (inputs / "photos" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a scientist"}\n')
    (inputs / "templates.txt").write_text((ROOT / "docs" / "paper-templates.txt").read_text())
    monkeypatch.chdir(tmp_path)
    here = audit.model_copy(update={"compute": audit.compute.model_copy(update={"device": "cpu"})})
    assert TextToImage.check(task_context("portraits", here)) == []
    with (inputs / "templates.txt").open("a") as more:
        more.write("a {person} {setting}\n")
    (error,) = TextToImage.check(task_context("portraits", here))
    assert "prepare.templates: template 21, 'a {person} {setting}', lacks {description}" in error
