"""The content of a person's decision on a landscape, and the record of it."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, field_validator, model_validator

from stages.core.errors import UsageError
from stages.decisions.names import clean_name
from stages.params import Strict

Action = Literal["repair", "accept", "ignore"]
# How a decision was made: on the review page, in the terminal, with `faded approve` or `reject`, on Prefect's own page,
# in a file written by hand, or by nobody in time.
Via = Literal["page", "terminal", "command", "prefect", "file", "time-out"]
NO_HUMAN = "decided by policy, no human"
SEVERITIES = {"low": 0.5, "medium": 1.0, "high": 2.0}

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, AfterValidator(clean_name)]
_Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModeDecision(Strict):
    """The action for one failure mode.

    `accept` is for a failure people can live with, `ignore` for one that does not matter to them; neither is repaired,
    and re-evaluate watches both.
    """

    id: str
    action: Action
    severity: float = Field(1.0, gt=0, le=10, description="weight of the mode in the repair")
    reason: str = ""


class ExampleRating(Strict):
    """A person's rating of one example that the report shows for a mode; the scales are the paper's."""

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
    """A rated example with the probe it is about, so that it can still be learnt from without the landscape."""

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
    """A reviewer's signature of a decision, see `stages.decisions.identity`."""

    key: str = Field(pattern=r"^[0-9a-f]{16}$", description="id of the public key")
    value: str = Field(pattern=r"^[A-Za-z0-9+/]{86}==$", description="the Ed25519 signature, base64")


class RecordedDecision(Decision):
    """A decision as stored in its file.

    Args:
        time: when it was recorded, UTC (ISO 8601).
        tool: name and version of the program that recorded it.
        scale: hash of the definition of the landscape's discrepancies: ratings on two scales cannot be combined.
        previous: SHA-256 of this audit's decision files that no other followed before, which reveals changes to earlier
            ones. More than one after branches were merged.
        revises: SHA-256 of the files it replaces.
        audit: the audit whose landscape it is on; None if an older version recorded it.
        signature: by the reviewer's key; None if the name was not verified.
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
    """A second decision on the same landscape, refused so that nobody's decision is silently overwritten.

    Args:
        said: the earlier decision.
    """

    def __init__(self, message: str, said: RecordedDecision) -> None:
        super().__init__(message)
        self.said = said
