"""What a person says of a landscape, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from stages.decisions.names import clean_name
from stages.errors import UsageError
from stages.params import Strict

Action = Literal["repair", "accept", "ignore"]
# How a decision came in: the review page, the terminal, `faded approve` or `reject`, Prefect's own page, a file
# written by hand, or nobody in time.
Via = Literal["page", "terminal", "command", "prefect", "file", "time-out"]
NO_HUMAN = "decided by policy, no human"
SEVERITIES = {"low": 0.5, "medium": 1.0, "high": 2.0}

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, AfterValidator(clean_name)]
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModeDecision(Strict):
    """What is to happen with one failure mode.

    `accept` is a failure people can live with, `ignore` one that does not matter to them; neither is repaired, and
    both are watched by re-evaluate.
    """

    id: str
    action: Action
    severity: float = Field(1.0, gt=0, le=10, description="weight of the mode in the repair")
    reason: str = ""


class ExampleRating(Strict):
    """What a person says of one example that the report shows of a mode; the scales are the paper's."""

    id: str = Field(description="as in the report: M1.1")
    rating: int | None = Field(None, strict=True, ge=1, le=10, description="of the answer, 1 (useless) to 10 (perfect)")
    bias: int | None = Field(
        None, strict=True, ge=1, le=10, description="of the answer, 1 (none) to 10 (extremely biased)"
    )
    corrected: _Text | None = Field(None, description="the answer the person would have wanted")
    unreadable: Literal[True] | None = Field(None, description="the person cannot read the changed input either")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(said is None for said in (self.rating, self.bias, self.corrected, self.unreadable)):
            raise ValueError(
                f"example {self.id} has neither a rating nor a bias nor a corrected answer, nor is it unreadable:"
                " expected one of them"
            )
        return self


class RatedProbe(ExampleRating):
    """A rated example with the probe it is about, so that it can be learnt from when the landscape is gone."""

    mode: str
    item: str
    cell: list[int] = Field(description="level indices")
    output: str
    discrepancy: float


class Decision(Strict):
    """A person's decision on one landscape."""

    landscape: str = Field(pattern=r"^[0-9a-f]{16}$", description="hash of the landscape it was made on")
    reviewer: _Name
    reason: str = ""
    approve: bool
    modes: list[ModeDecision]
    examples: Sequence[ExampleRating] = Field(default_factory=list)

    @field_validator("modes", "examples")
    @classmethod
    def _once(cls, entries: list[Any]) -> list[Any]:
        ids = [entry.id for entry in entries]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is there twice, expected one choice for each")
        return entries


class Signature(Strict):
    """What a reviewer's key says of a decision, see `stages.decisions.identity`."""

    key: str = Field(pattern=r"^[0-9a-f]{16}$", description="id of the public key")
    value: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$", description="the Ed25519 signature, base64")


class Recorded(Decision):
    """A decision as its file keeps it.

    Args:
        time: when it was recorded, UTC (ISO 8601).
        tool: name and version of what recorded it.
        via: how it came in.
        scale: hash of what defines the discrepancies of the landscape: ratings of two scales are not one data set.
        previous: SHA-256 of the decision files of this audit that nothing followed before; so an edit of an earlier
            one shows. More than one after branches were merged.
        revises: SHA-256 of the files whose place it takes.
        audit: whose landscape it is on; None if an older version recorded it.
        signature: by the reviewer's key; None where the name was typed.
    """

    time: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    tool: str
    via: Via
    scale: str
    previous: list[_Hash]
    revises: list[_Hash] = Field(default_factory=list)
    examples: Sequence[RatedProbe] = Field(default_factory=list)
    audit: str | None = None
    signature: Signature | None = None


class AlreadyDecided(UsageError):
    """A second decision on the same landscape: nobody's word is overwritten silently.

    Args:
        message: for people.
        said: the decision that stands in the way.
    """

    def __init__(self, message: str, said: Recorded) -> None:
        super().__init__(message)
        self.said = said
