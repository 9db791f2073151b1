"""Settings and results of screening, as plain data for display and storage."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field

from stages.concepts import Level
from stages.params import Strict
from stages.records import Rate

_BROKEN = 0.5


class ScreenSettings(Strict):
    """Budget and thresholds of a screening."""

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
        """Return the settings with the range of failure rates applied to the items that pass unchanged.

        If the model fails on most unchanged items, levels are not the problem, and the range is kept.

        Args:
            clean: failure rate of unchanged items.
        """
        if clean > _BROKEN:
            return self
        rates = {name: clean + (1 - clean) * getattr(self, name) for name in ("lowest_rate", "highest_rate")}
        return self.model_copy(update=rates)

    def holds(self, rate: float) -> bool:
        """Return whether a failure rate is in the range."""
        return self.lowest_rate <= rate <= self.highest_rate

    def is_near(self, rate: float) -> bool:
        """Return whether a failure rate is in the middle half of the range, where it is hardly due to chance."""
        return abs(rate - self.aim) <= (self.highest_rate - self.lowest_rate) / 4

    @property
    def aim(self) -> float:
        """The target failure rate of proposals: the middle of the range."""
        return (self.lowest_rate + self.highest_rate) / 2


Verdict = Literal["effect", "no larger effect", "not known"]


def off_zero(change: Rate) -> bool:
    """Return whether the whole interval of a change is on one side of zero."""
    return change.low > 0 or change.high < 0


def within(change: Rate, bound: float) -> bool:
    """Return whether the whole interval of a change is smaller than a bound in magnitude."""
    return -bound < change.low <= change.high < bound


def points(change: Rate, bound: float) -> str:
    """Format a change of a share in percentage points with its interval; "not known" if that is inconclusive.

    Args:
        change: the change with its interval.
        bound: smaller changes do not matter.
    """
    value, low, high = (f"{100 * x:+z.0f}" for x in change[:3])
    told = f"{value} points" if off_zero(change) or within(change, bound) else "not known"
    return f"{told} ({low} to {high})"


Change = Literal["kept", "narrowed", "widened", "dropped"]


class ConceptScreening(BaseModel):
    """The results for one concept.

    Args:
        name: its name.
        unit: unit, printed after its levels.
        alone_at: the level with the largest effect alone.
        alone: mean change of the discrepancy from the base to that level, same items; interval over items.
        each: the same at each level that was probed alone, by label.
        alone_fails: change of the failure rate from the base to that level; `n` counts pairs.
        share: share of the variance of the discrepancy over the grid within an item, alone and with others (total
            Sobol index).
        without: change of the failure rate of combined probes if the concept is removed from them; None if this was
            not measured.
        verdict: conclusion from these intervals; "no larger effect" does not mean "none".
        why: reason for the verdict, in plain words.
        levels: levels in params.yaml.
        proposed: proposed levels; empty if the concept is dropped.
        change: how these differ from `levels`.
        at_bound: whether reaching the range would take weaker or stronger levels than may be proposed.
        note: why no such levels can be proposed, if so.
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
        """The verdict with its reason."""
        return f"{self.verdict}: {self.why}" if self.why else self.verdict


class Screening(BaseModel):
    """The result of a screening.

    Args:
        settings: the settings used.
        probes: unique probes spent.
        items: number of items probed.
        clean: failure rate with all concepts at their base.
        now: failure rate over the grid of params.yaml.
        proposed: failure rate over the proposed grid, from pairs of item and cell not probed before; None if the grid
            is the same.
        together: change of the failure rate of combined probes if all concepts without apparent effect are removed at
            once; None if there are fewer than two.
        concepts: one entry for each concept.
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
        """The failure rate over the proposed grid, or over that of params.yaml if nothing is proposed."""
        return self.proposed or self.now

    @property
    def reached(self) -> bool:
        """Whether the interval of the proposed grid's failure rate overlaps the range."""
        return self.rate.low <= self.settings.highest_rate and self.rate.high >= self.settings.lowest_rate

    @property
    def within(self) -> bool:
        """Whether that failure rate itself is in the range."""
        return self.settings.holds(self.rate.value)

    @property
    def at_bounds(self) -> bool:
        """Whether no remaining concept can be narrowed or widened further, so that the range is out of reach."""
        return all(concept.at_bound for concept in self.concepts if concept.change != "dropped")

    @property
    def grid(self) -> dict[str, list[Level]]:
        """The proposed levels of the remaining concepts."""
        return {concept.name: concept.proposed for concept in self.concepts if concept.proposed}
