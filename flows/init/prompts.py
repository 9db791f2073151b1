"""What only an audit of a text-to-image model needs: templates of prompts, words for their slots, and a judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from flows.init.data import Data, existing
from flows.init.questions import Questions
from stages.errors import UsageError, did_you_mean

_MOST_WORDS = 6  # of a slot, where the table of the pictures names them: grids grow with every one


@dataclass(frozen=True)
class Prompts:
    """What was answered.

    Args:
        templates: a file of prompts, one a line, with a {slot} for every concept.
        words: for each slot what may fill it, "" first.
        judge: a folder; None for a CLIP model of the hub.
        judge_key: of `prepare.judge`: clip or attributes.
        judge_name: of the CLIP model of the hub.
    """

    templates: Path
    words: Mapping[str, Sequence[str]]
    judge: Path | None
    judge_key: str
    judge_name: str = ""


def ask_prompts(questions: Questions, data: Data, given: Sequence[str]) -> Prompts:
    """Ask for templates, words and a judge.

    Args:
        questions: asks.
        data: the captioned pictures, whose table may name words.
        given: SLOT=WORD,WORD of the command line.

    Raises:
        UsageError: when an answer is missing, or will not do.
    """
    templates = Path(
        questions.text(
            "templates",
            "File of prompts, one a line, with a {slot} for every word that is to change",
            check=_check_templates,
        )
    ).expanduser()
    slots = _slots(templates)
    told = _read_words(given, slots)
    words = {slot: told.get(slot) or _ask_words(questions, slot, data) for slot in slots}
    judge = questions.text(
        "judge", "Who looks at the pictures (folder of a judge, or a CLIP model of the hub)", check=_check_judge
    )
    path = existing(judge, "--judge")
    if path is None:
        return Prompts(templates, words, None, "clip", judge)
    return Prompts(templates, words, path, "attributes" if "attributes" in _config(path) else "clip")


def _check_templates(answer: str) -> None:
    _slots(Path(answer).expanduser())


def _slots(path: Path) -> list[str]:
    """Names of the slots of a file of templates.

    Raises:
        UsageError: when there is no such file, no slot in it, or one that is not in every prompt.
    """
    from stages.concepts.prompts import check_slots, check_templates, read_templates

    if not path.is_file():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"--templates {path}: there is no such file{did_you_mean(path.name, there)}")
    templates = read_templates(path.name, path.parent, "--templates")
    try:
        slots = dict.fromkeys(name for line in templates for _, name, _, _ in Formatter().parse(line) if name)
    except ValueError as error:
        raise UsageError(f"--templates {path}: {error}") from None
    if not slots:
        raise UsageError(f"--templates {path}: no prompt has a slot, as in 'a photo of a {{colour}} {{animal}}'")
    if errors := check_slots({slot: ["", "a word"] for slot in slots}):
        raise UsageError(f"--templates {path}: {'; '.join(errors)}")
    if errors := check_templates(templates, list(slots), f"--templates {path}"):
        raise UsageError("\n".join(errors))
    return list(slots)


def _read_words(given: Sequence[str], slots: Sequence[str]) -> dict[str, list[str]]:
    told = {}
    for one in given:
        slot, equals, words = one.partition("=")
        if not equals or slot not in slots:
            raise UsageError(
                f"--words {one}: expected SLOT=WORD,WORD with a slot of the templates, which are"
                f" {', '.join(slots)}{did_you_mean(slot, slots)}"
            )
        told[slot] = _listed(words)
    return told


def _ask_words(questions: Questions, slot: str, data: Data) -> list[str]:
    known = data.columns.get(slot) or data.columns.get(slot.replace("_", " ")) or ()
    guess = ", ".join(known[:_MOST_WORDS]) or None

    def check(answer: str) -> None:
        from stages.concepts.prompts import check_slots

        if errors := check_slots({slot: _listed(answer)}):
            raise UsageError("; ".join(errors))

    asked = questions.text(f"words {slot}=", f"Words for {{{slot}}}, separated by commas", guess, check)
    return _listed(asked)


def _listed(words: str) -> list[str]:
    """Words with "" before them: a prompt that leaves the slot unsaid is the plainest."""
    return ["", *(word.strip() for word in words.split(",") if word.strip())]


def _check_judge(answer: str) -> None:
    path = existing(answer, "--judge")
    if path is not None and not _config(path):
        raise UsageError(
            f"--judge {answer}: expected a folder with config.json, of a CLIP model or of a judge of Faded's"
        )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
