"""Converts a reviewer's form to a decision, and a decision back to a form.

Fields are named `action.M1`, `severity.M1`, `reason.M1`, `rating.M1.3`, `bias.M1.3`, `corrected.M1.3`,
`unreadable.M1.3`, and `reviewer`, `reason`, `decision`, `landscape`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast, get_args
from urllib.parse import parse_qsl

from pydantic import ValidationError

from stages.core.errors import UsageError
from stages.decisions import SEVERITIES, Action, Decision, ExampleRating, ModeDecision
from stages.decisions.names import clean_name
from stages.params import validation_lines
from stages.records import ModeRecord

ACTIONS: tuple[str, ...] = get_args(Action)
SCORES = tuple(str(score) for score in range(1, 11))
MAX_FIELDS = 20_000

Fields = dict[str, str]


class FormError(ValueError):
    """A form that is not a decision; `problems` are sentences for the reviewer."""

    def __init__(self, *problems: str) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


def read_fields(body: bytes) -> Fields:
    """The fields of a posted form.

    Raises:
        FormError: if it is not a valid form.
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
        raise FormError("The data sent is not this page's form.") from None
    if len({name for name, _ in pairs}) < len(pairs):
        raise FormError("The data sent has a field twice, so it is not this page's form.")
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def read_decision(fields: Mapping[str, str], modes: Sequence[ModeRecord]) -> Decision:
    """The decision in a form.

    Args:
        fields: the form's fields.
        modes: the landscape's modes.

    Raises:
        FormError: with everything that is missing or wrong.
    """
    problems, reviewer = [], ""
    if not fields.get("reviewer", "").strip():
        problems.append("Your name is missing: a decision needs a reviewer.")
    else:
        try:
            reviewer = clean_name(fields["reviewer"])
        except UsageError as error:
            problems.append(f"{str(error)[:1].upper()}{str(error)[1:]}.")
    verdict = fields.get("decision")
    if verdict not in ("approve", "reject"):
        problems.append("Neither Approve nor Reject was chosen.")
    decided = []
    for mode in modes:
        word = _mode(mode, fields, approve=verdict == "approve")
        problems += [word] if isinstance(word, str) else []
        decided += [word] if isinstance(word, ModeDecision) else []
    rated = []
    for name in (shown.id for mode in modes for shown in mode.examples):
        example = _example(name, fields)
        problems += [example] if isinstance(example, str) else []
        rated += [example] if isinstance(example, ExampleRating) else []
    if problems:
        raise FormError(*problems)
    try:
        return Decision(
            landscape=fields.get("landscape", ""),
            reviewer=reviewer,
            reason=fields.get("reason", "").strip(),
            approve=verdict == "approve",
            modes=decided,
            examples=rated,
        )
    except ValidationError as error:
        raise FormError(*validation_lines(error, Decision)) from None


def _mode(mode: ModeRecord, fields: Mapping[str, str], *, approve: bool) -> ModeDecision | str | None:
    """The decision on a mode, or what is wrong with it; None if a rejection leaves it out."""
    name = mode.id
    action, reason = fields.get(f"action.{name}", ""), fields.get(f"reason.{name}", "").strip()
    if not action and not approve:
        return None
    if action not in ACTIONS:
        found = f"{_short(action)} was sent" if action else "nothing was chosen"
        return f"{name}: {found}, expected {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}."
    if approve and action != "ignore" and not reason:
        return f"{name}: a reason is required to {action} it."
    severity = fields.get(f"severity.{name}", "medium")
    if severity not in SEVERITIES:
        return f"{name}: severity {_short(severity)} was sent, expected {', '.join(SEVERITIES)}."
    weight = SEVERITIES[severity] if action == "repair" else SEVERITIES["medium"]  # only repairs have a severity
    return ModeDecision(id=name, action=cast(Action, action), severity=weight, reason=reason)


def _example(name: str, fields: Mapping[str, str]) -> ExampleRating | str | None:
    scores: dict[str, int | None] = {}
    for kind in ("rating", "bias"):
        given = fields.get(f"{kind}.{name}", "").strip()
        if given and given not in SCORES:
            return f"{name}: {'quality' if kind == 'rating' else kind} {_short(given)} was sent, expected 1 to 10."
        scores[kind] = int(given) if given else None
    corrected = fields.get(f"corrected.{name}", "").strip() or None
    unreadable: Literal[True] | None = True if fields.get(f"unreadable.{name}") else None
    if all(said is None for said in (*scores.values(), corrected, unreadable)):
        return None
    return ExampleRating(id=name, **scores, corrected=corrected, unreadable=unreadable)


def _short(text: str | None) -> str:
    return repr(text if text is None or len(text) < 40 else f"{text[:40]} ...")


def filled(decision: Decision) -> Fields:
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
    words = {"rating": "quality", "corrected": "corrected answer", "decision": "whole", "action": "decision"}
    words |= {"unreadable": "I cannot read this myself"}
    said = []
    for name, value in fields.items():
        kind, _, about = name.partition(".")
        if value.strip() and kind in (
            "action",
            "severity",
            "reason",
            "rating",
            "bias",
            "corrected",
            "unreadable",
            "reviewer",
        ):
            said.append((f"{about} {words.get(kind, kind)}".strip(), value))
    return said
