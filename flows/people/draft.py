"""A person's decision before it is recorded: page, terminal, options and Prefect's form fill in one `DecisionDraft`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from stages.core.errors import UsageError
from stages.decisions import SEVERITIES, Action, Decision, ExampleRating, ModeDecision
from stages.decisions.names import clean_name
from stages.params import Strict
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

        Raises:
            DraftError: if it chooses for a mode that the landscape does not have.
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

        Raises:
            DraftError: if anything is missing or wrong.
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
