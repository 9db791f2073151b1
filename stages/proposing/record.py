"""What a model may propose, and what became of it: plain data, for people and for the record."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from stages.concepts import Level

LONGEST = 300  # characters of a reason that are kept
MOST_LEVELS = 8


def _printable(text: str) -> str:
    if not text.strip() or not text.replace("\n", "").isprintable():
        raise ValueError("expected printable text")
    return text


_Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
_Phrase = Annotated[str, Field(max_length=100)]
_Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
_Reason = Annotated[str, BeforeValidator(lambda text: text[:LONGEST] if isinstance(text, str) else text)]


class Proposal(BaseModel):
    """A concept as a model proposes it.

    Args:
        concept: its name.
        levels: numbers or names; texts by their names, where levels are free texts.
        reason: why the model under test may fail there.
    """

    model_config = ConfigDict(strict=True)

    concept: _Name
    levels: (
        Annotated[list[FiniteFloat | _Phrase], Field(min_length=1, max_length=MOST_LEVELS)]
        | Annotated[dict[_Name, _Text], Field(min_length=1, max_length=MOST_LEVELS)]
    )
    reason: _Reason = ""


class Outcome(BaseModel):
    """What became of a proposal.

    Args:
        concept: as it was proposed.
        levels: likewise; texts are told by their names.
        reason: likewise.
        verdict: of the screening, or why there was none.
        enters: levels that the audit gets; none if it gets none.
    """

    concept: str
    levels: list[Level]
    reason: str = ""
    verdict: str
    enters: list[Level] = []
