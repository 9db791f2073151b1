"""A person's decision before it is recorded: page, terminal, options and Prefect's form fill in the same fields.

They are `action.M1`, `severity.M1`, `reason.M1`, `rating.M1.3`, `bias.M1.3`, `corrected.M1.3`, `unreadable.M1.3`, and
`reviewer`, `reason`, `decision`; the page's form also has `landscape`.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from pydantic import ValidationError

from stages.core.errors import UsageError
from stages.decisions import SEVERITIES, Decision
from stages.decisions.names import clean_name
from stages.params import validation_lines
from stages.records import ModeRecord


class DraftError(UsageError):
    """Fields that are not a decision; `problems` has everything that is missing or wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


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
    """The fields of a posted form. Raises a DraftError if it is not a valid form."""
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


def missing(fields: Mapping[str, str], modes: Sequence[ModeRecord]) -> tuple[list[str], list[str]]:
    """The modes of a landscape without a choice, and those whose choice lacks a reason."""
    chosen = {mode.id: _entries(fields, mode.id, "action", "reason") for mode in modes}
    undecided = [name for name, entries in chosen.items() if "action" not in entries]
    silent = [
        name
        for name, entries in chosen.items()
        if entries.get("action") in ("repair", "accept") and "reason" not in entries
    ]
    return undecided, silent


def decision_of(fields: Mapping[str, str], landscape: str, modes: Sequence[ModeRecord]) -> Decision:
    """The decision on a landscape in the fields of a form; a rejection may leave out modes and reasons.

    Raises a DraftError if anything is missing, or has a value that the page does not offer.
    """
    undecided, silent = missing(fields, modes)
    approve = {"approve": True, "reject": False}.get(fields.get("decision", ""))
    problems = []
    try:
        clean_name(fields.get("reviewer", ""))
    except UsageError as error:
        problems.append(str(error))
    if approve is None:
        problems.append("neither approve nor reject was chosen")
    if approve and undecided:
        problems.append(f"{', '.join(undecided)}: nothing was chosen, expected repair, accept or ignore")
    if approve and silent:
        problems.append(f"{', '.join(silent)}: a reason is required to repair or accept a mode, found none")
    if problems:
        raise DraftError(*problems)
    given = {
        "landscape": landscape,
        "reviewer": fields["reviewer"],
        "reason": fields.get("reason", "").strip(),
        "approve": approve,
        "modes": [_chosen(fields, mode.id) for mode in modes if mode.id not in undecided],
        "examples": [
            rated for mode in modes for example in mode.examples if (rated := _rated(fields, example.id)) is not None
        ],
    }
    try:
        return Decision.model_validate(given)
    except ValidationError as error:
        raise DraftError(*validation_lines(error, Decision)) from None


def _chosen(fields: Mapping[str, str], name: str) -> dict[str, Any]:
    """What was chosen for a failure mode; only repairs have a severity."""
    entries = _entries(fields, name, "action", "severity", "reason")
    severity = entries.pop("severity", "medium")
    if entries["action"] == "repair":
        entries["severity"] = SEVERITIES.get(severity, severity)
    return {"id": name, **entries}


def _rated(fields: Mapping[str, str], name: str) -> dict[str, Any] | None:
    """What was said about an example, None if nothing was."""
    entries = _entries(fields, name, "rating", "bias", "corrected", "unreadable")
    scores = {kind: int(entries[kind]) for kind in ("rating", "bias") if entries.get(kind) in SCORES}
    unreadable = {"unreadable": True} if "unreadable" in entries else {}
    return {"id": name, **entries, **scores, **unreadable} if entries else None


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
