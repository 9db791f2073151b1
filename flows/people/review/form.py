"""Converts a reviewer's form to a decision, and a decision back to a form.

Fields are named `action.M1`, `severity.M1`, `reason.M1`, `rating.M1.3`, `bias.M1.3`, `corrected.M1.3`,
`unreadable.M1.3`, and `reviewer`, `reason`, `decision`, `landscape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from pydantic import ValidationError

from flows.people.draft import DecisionDraft, DraftError
from stages.decisions import SEVERITIES, Decision
from stages.params import validation_lines
from stages.records import ModeRecord

SCORES = tuple(str(score) for score in range(1, 11))
MAX_FIELDS = 20_000
# Kinds of fields that a reviewer fills in, with their names on pages that cannot show the form again.
_FILLED = {
    "action": "decision",
    "severity": "severity",
    "reason": "reason",
    "rating": "quality",
    "bias": "bias",
    "corrected": "corrected answer",
    "unreadable": "I cannot read this myself",
    "reviewer": "reviewer",
}

Fields = dict[str, str]


def read_fields(body: bytes) -> Fields:
    """The fields of a posted form.

    Raises:
        DraftError: if it is not a valid form.
    """
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise DraftError("The data sent is not this page's form.") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise DraftError("The data sent has a field twice, so it is not this page's form.")
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def draft_of(fields: Mapping[str, str], modes: Sequence[ModeRecord]) -> DecisionDraft:
    """What was filled in.

    Raises:
        DraftError: if a field has a value that the page does not offer.
    """
    examples = []
    for name in (shown.id for mode in modes for shown in mode.examples):
        if entries := _entries(fields, name, "rating", "bias", "corrected", "unreadable"):
            scores = {
                kind: int(text) for kind, text in entries.items() if text in SCORES and kind in ("rating", "bias")
            }
            unreadable = {"unreadable": True} if "unreadable" in entries else {}
            examples.append({"id": name, **entries, **scores, **unreadable})
    given = {
        "reviewer": fields.get("reviewer", ""),
        "approve": {"approve": True, "reject": False}.get(fields.get("decision", "")),
        "reason": fields.get("reason", ""),
        "modes": {mode.id: _entries(fields, mode.id, "action", "severity", "reason") for mode in modes},
        "examples": examples,
    }
    try:
        return DecisionDraft.model_validate(given)
    except ValidationError as error:
        raise DraftError(*validation_lines(error, DecisionDraft)) from None


def _entries(fields: Mapping[str, str], name: str, *kinds: str) -> dict[str, Any]:
    return {kind: text for kind in kinds if (text := fields.get(f"{kind}.{name}", "").strip())}


def fields_of(decision: Decision) -> Fields:
    """The form's fields for a decision; a severity between those offered becomes the nearest one."""
    fields = {"reviewer": decision.reviewer, "reason": decision.reason}
    for mode in decision.modes:
        severity = min(SEVERITIES, key=lambda name: abs(SEVERITIES[name] - mode.severity))
        fields |= {f"action.{mode.id}": mode.action, f"severity.{mode.id}": severity, f"reason.{mode.id}": mode.reason}
    for example in decision.examples:
        for kind in ("rating", "bias", "corrected"):
            if (value := getattr(example, kind)) is not None:
                fields[f"{kind}.{example.id}"] = str(value)
        if example.unreadable:
            fields[f"unreadable.{example.id}"] = "yes"
    return fields


def typed(fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """A reviewer's entries as names and values to read, for pages that cannot show the form again."""
    entries = [(*name.partition(".")[::2], value) for name, value in fields.items() if value.strip()]
    return [(f"{about} {_FILLED[kind]}".strip(), value) for kind, about, value in entries if kind in _FILLED]
