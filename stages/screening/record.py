"""What a screening may spend, and what it found: plain data, for people and for the record."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from stages.concepts import Level
from stages.params import Strict
from stages.records import Rate

_BROKEN = 0.5


class ScreenSettings(Strict):
    """What a screening may spend, and what it calls too much or too little."""

    probes: int = Field(600, ge=100, description="unique probes at most")
    lowest_rate: float = Field(0.03, gt=0, lt=1, description="failure rate below which a grid is too mild to audit")
    highest_rate: float = Field(0.15, gt=0, lt=1, description="failure rate above which a grid is too harsh")
    share: float = Field(
        0.05, gt=0, lt=1, description="no larger effect: less of the variance within items than this, combined"
    )
    effect: float = Field(
        0.2, gt=0, description="and alone a mean change of less, in standard deviations (Cohen 1988: small)"
    )
    without: float = Field(
        0.1, gt=0, lt=1, description="and removing it from combined probes changes their failure rate by less"
    )
    widest: float = Field(4.0, ge=1, description="how many times stronger than the user's strongest a level may get")

    def beyond(self, clean: float) -> Self:
        """The same for a model that fails on this share of unchanged items: the range is one of the others.

        Where it fails on most of them, levels are not what is wrong, and the range stays as it is.
        """
        if clean > _BROKEN:
            return self
        rates = {name: clean + (1 - clean) * getattr(self, name) for name in ("lowest_rate", "highest_rate")}
        return self.model_copy(update=rates)

    def holds(self, rate: float) -> bool:
        """Whether a failure rate is in the range."""
        return self.lowest_rate <= rate <= self.highest_rate

    def is_near(self, rate: float) -> bool:
        """Whether a failure rate is in the middle half of the range, so that chance hardly put it there."""
        return abs(rate - self.aim) <= (self.highest_rate - self.lowest_rate) / 4

    @property
    def aim(self) -> float:
        """The failure rate proposals are made for."""
        return (self.lowest_rate + self.highest_rate) / 2


Verdict = Literal["effect", "no larger effect", "not known"]


def off_zero(change: Rate) -> bool:
    """Whether a change is certain: its whole interval is on one side of zero."""
    return change.low > 0 or change.high < 0


def within(change: Rate, bound: float) -> bool:
    """Whether a change is smaller than a bound by its whole interval."""
    return -bound < change.low <= change.high < bound


def points(change: Rate, bound: float) -> str:
    """A change of a share in points with its interval; "not known" where that says neither yes nor no.

    Args:
        change: with its interval.
        bound: below which a change does not matter.
    """
    value, low, high = (f"{100 * x:+z.0f}" for x in change[:3])
    told = f"{value} points" if off_zero(change) or within(change, bound) else "not known"
    return f"{told} ({low} to {high})"


Change = Literal["kept", "narrowed", "widened", "dropped"]


class ConceptScreening(BaseModel):
    """What was seen of one concept.

    Args:
        name: its name.
        unit: printed behind its levels.
        alone_at: the level at which it does most alone.
        alone: mean change of the discrepancy from the base to that level, same items; interval over items.
        each: the same at each level that was asked alone, by its label.
        alone_fails: the same of the share that fails; `n` counts pairs.
        share: of the variance of the discrepancy over the grid within an item, alone and with others (total Sobol
            index).
        without: how the failure rate of probes in company changes when it is taken out of them; None: not asked,
            because it has an effect anyway.
        verdict: what their intervals amount to; "no larger effect" is never "none".
        why: what the verdict rests on, in plain words.
        levels: as in params.yaml.
        proposed: levels proposed; none if it is dropped.
        change: how these differ.
        at_bound: whether the failure rate asks for levels further in or out than any that may be proposed.
        note: why there are none, if so.
    """

    name: str
    unit: str
    alone_at: str
    alone: Rate
    each: dict[str, Rate] = {}
    alone_fails: Rate
    share: Rate
    without: Rate | None = None
    verdict: Verdict
    why: str = ""
    levels: list[Level]
    proposed: list[Level]
    change: Change
    at_bound: bool = False
    note: str = ""

    @property
    def told(self) -> str:
        """The verdict with what it rests on."""
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


class Screening(BaseModel):
    """A screening.

    Args:
        settings: what it was made with.
        probes: unique probes spent.
        items: items they were put to.
        clean: failure rate with all concepts at their base.
        now: failure rate over the grid of params.yaml.
        proposed: failure rate over the proposed grid, by pairs of item and cell not asked of it before; None: same
            grid.
        together: how the failure rate of probes in company changes when all concepts that seem to do nothing are taken
            out of them at once; None: at most one does.
        concepts: one entry each.
    """

    settings: ScreenSettings
    probes: int
    items: int
    clean: Rate
    now: Rate
    proposed: Rate | None
    together: Rate | None = None
    concepts: list[ConceptScreening]

    @property
    def changes(self) -> bool:
        """Whether anything is proposed."""
        return any(concept.change != "kept" for concept in self.concepts)

    @property
    def rate(self) -> Rate:
        """The failure rate over the proposed grid, which may be that of params.yaml."""
        return self.proposed or self.now

    @property
    def reached(self) -> bool:
        """Whether the failure rate of the proposed grid may lie in the range, by its interval."""
        return self.rate.low <= self.settings.highest_rate and self.rate.high >= self.settings.lowest_rate

    @property
    def within(self) -> bool:
        """Whether that failure rate itself lies in the range."""
        return self.settings.holds(self.rate.value)

    @property
    def at_bounds(self) -> bool:
        """Whether no concept that stays can be drawn further, so that the range is out of reach and not only missed."""
        return all(concept.at_bound for concept in self.concepts if concept.change != "dropped")

    @property
    def grid(self) -> dict[str, list[Level]]:
        """The proposed levels of the concepts that stay."""
        return {concept.name: concept.proposed for concept in self.concepts if concept.proposed}
