"""A person's decision before it is recorded: page, terminal, options and Prefect's form fill in one `DecisionDraft`.

A form of the page has the fields `action.M1`, `severity.M1`, `reason.M1`, `rating.M1.3`, `bias.M1.3`, `corrected.M1.3`,
`unreadable.M1.3`, and `reviewer`, `reason`, `decision`, `landscape`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import parse_qsl

from pydantic import Field, ValidationError

from stages.core.errors import UsageError
from stages.decisions import SEVERITIES, Action, Decision, ExampleRating, ModeDecision
from stages.decisions.names import clean_name
from stages.params import Strict, validation_lines
from stages.records import ModeRecord


class DraftError(UsageError):
    """A draft that is not a decision; `problems` has everything that is missing or wrong."""

    def __init__(self, *problems: str) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class ModeDraft(Strict):
    """What a person chose for a failure mode so far."""

    action: Action | None = None
    severity: Literal["low", "medium", "high"] = "medium"
    reason: str = ""


class DecisionDraft(Strict):
    """What a person has entered so far.

    Args:
        approve: whether the repair is approved; None before that is chosen.
    """

    reviewer: str = ""
    approve: bool | None = None
    reason: str = ""
    modes: dict[str, ModeDraft] = Field(default_factory=dict)
    examples: list[ExampleRating] = Field(default_factory=list)

    def missing(self, modes: Sequence[ModeRecord]) -> tuple[list[str], list[str]]:
        """The modes of a landscape without a choice, and those whose choice lacks a reason.

        Raises a DraftError if it chooses for a mode that the landscape does not have.
        """
        known = [mode.id for mode in modes]
        if unknown := [name for name in self.modes if name not in known]:
            raise DraftError(f"unknown mode(s) {', '.join(unknown)}; the landscape has {', '.join(known) or 'none'}")
        chosen = {name: self.modes.get(name, ModeDraft()) for name in known}
        undecided = [name for name, choice in chosen.items() if choice.action is None]
        needing = [name for name, choice in chosen.items() if choice.action in ("repair", "accept")]
        return undecided, [name for name in needing if not chosen[name].reason.strip()]

    def decision(self, landscape: str, modes: Sequence[ModeRecord]) -> Decision:
        """The decision on a landscape; a rejection may leave out modes and reasons.

        Raises a DraftError if anything is missing or wrong.
        """
        undecided, silent = self.missing(modes)
        problems, reviewer = [], ""
        try:
            reviewer = clean_name(self.reviewer)
        except UsageError as error:
            problems.append(str(error))
        if self.approve is None:
            problems.append("neither approve nor reject was chosen")
        if self.approve and undecided:
            problems.append(f"{', '.join(undecided)}: nothing was chosen, expected repair, accept or ignore")
        if self.approve and silent:
            problems.append(f"{', '.join(silent)}: a reason is required to repair or accept a mode, found none")
        if problems:
            raise DraftError(*problems)
        return Decision(
            landscape=landscape,
            reviewer=reviewer,
            reason=self.reason.strip(),
            approve=bool(self.approve),
            modes=[_decided(mode.id, self.modes[mode.id]) for mode in modes if mode.id not in undecided],
            examples=self.examples,
        )


def _decided(name: str, choice: ModeDraft) -> ModeDecision:
    assert choice.action is not None
    severity = choice.severity if choice.action == "repair" else "medium"  # only repairs have a severity
    return ModeDecision(id=name, action=choice.action, severity=SEVERITIES[severity], reason=choice.reason.strip())


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


def draft_of(fields: Mapping[str, str], modes: Sequence[ModeRecord]) -> DecisionDraft:
    """What was filled in. Raises a DraftError if a field has a value that the page does not offer."""
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
