"""What mining may spend, and what it found: plain data, for people and for the record."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from stages.params import Strict
from stages.records import Rate


class MineSettings(Strict):
    """What mining may spend, and how deep it looks."""

    probes: int = Field(1000, ge=200, description="unique probes at most")
    slices: int = Field(100_000, ge=1, description="sets of facts that are counted at most")
    largest: int = Field(3, ge=1, description="facts of a set at most")
    support: int = Field(3, ge=2, description="failing probes that a candidate needs")
    level: float = Field(0.05, gt=0, lt=1, description="chance of one false finding or more, among all candidates")


Kind = Literal["word", "attribute", "level", "set"]
Verdict = Literal["confirmed", "not confirmed", "too few items"]


class Contrast(BaseModel):
    """How often the model fails where one fact of a candidate does not hold, and all its others do.

    Args:
        fact: the fact that does not hold.
        fails: rate of the probes without it; interval over groups of items.
        paired: whether these are the same items as those with it; else they are other items.
        p: one-sided p-value of failing more often with the fact than without.
    """

    fact: str
    fails: Rate
    paired: bool
    p: float


class Finding(BaseModel):
    """A candidate, on the items that did not propose it.

    Args:
        kind: what it is about; a set has several facts.
        facts: in words.
        proposed: (failing probes, probes) on the items that proposed it.
        fails: rate of the probes where all facts hold; interval over groups of items; None with too few items.
        without: one contrast for each fact.
        items: items these are about.
        adjusted: the largest p-value of the contrasts, adjusted for the number of candidates (Holm).
        verdict: whether it failed more often with each fact than without.
        replaced: words that made room for those of the candidate, as "injured for hurt".
        examples: texts that failed, with the ids of their items.
        said_by: ids of the items whose unchanged texts are so.
    """

    kind: Kind
    facts: list[str]
    proposed: tuple[int, int]
    fails: Rate | None
    without: list[Contrast]
    items: int
    adjusted: float
    verdict: Verdict
    replaced: list[str] = []
    examples: list[tuple[str, str]] = []
    said_by: list[str] = []

    @property
    def about_text(self) -> bool:
        """Whether it says something of texts, and not of levels alone."""
        return any(fact.startswith(("says ", "has ")) for fact in self.facts)

    @property
    def told(self) -> str:
        """The facts as one line."""
        return " and ".join(self.facts)


class Mining(BaseModel):
    """What was mined of an audit.

    Args:
        settings: what it was made with.
        probes: unique probes spent.
        items: (items that proposed, items that confirmed).
        facts: facts that were looked at, one each.
        slices: sets of facts that were counted.
        cut: whether there were more than might be counted.
        now: failure rate of unchanged items, of those that confirmed.
        findings: candidates, those confirmed first.
    """

    settings: MineSettings
    probes: int
    items: tuple[int, int]
    facts: int
    slices: int
    cut: bool
    now: Rate
    findings: list[Finding]

    @property
    def confirmed(self) -> list[Finding]:
        """What held on items that did not propose it."""
        return [finding for finding in self.findings if finding.verdict == "confirmed"]
