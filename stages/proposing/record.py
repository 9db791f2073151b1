"""Proposals of a model and their outcomes, as plain data for display and storage."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from stages.concepts import Level

LONGEST = 300  # characters; longer reasons and verdicts are cut
MOST_LEVELS = 8


def _printable(text: str) -> str:
    if not text.strip() or not text.replace("\n", "").isprintable():
        raise ValueError("expected printable text")
    return text


_Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_printable)]
_Phrase = Annotated[str, Field(max_length=100)]
_Text = Annotated[str, Field(max_length=1000), AfterValidator(_printable)]
_Reason = Annotated[str, BeforeValidator(lambda text: text[:LONGEST] if isinstance(text, str) else text)]


class ProposedConcept(BaseModel):
    """A concept as proposed by a model.

    Args:
        concept: its name.
        levels: numbers or names, or texts by name if the levels are free texts.
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
    """The outcome of a proposal.

    Args:
        concept: its proposed name.
        levels: its proposed levels; free texts by their names.
        reason: its proposed reason.
        verdict: verdict of the screening, or why there was none.
        enters: levels that are added to the audit; may be empty.
    """

    concept: str
    levels: list[Level]
    reason: str = ""
    verdict: str
    enters: list[Level] = []
