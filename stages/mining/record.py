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
Verdict = Literal["confirmed", "not confirmed", "too few items", "no probes left"]


class Example(BaseModel):
    """A probe that failed.

    Args:
        item: id of its item.
        text: of the item, with the probe's words, before concepts.
        given: what the model was given.
        original: what it is given of the item as it is.
        expected: what is expected of its answer.
        answered: what it answered.
        holds: facts of any candidate that hold of the text.
    """

    item: str
    text: str
    given: str
    original: str
    expected: str
    answered: str
    holds: list[str]


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
        probes: unique probes that it cost; what candidates share counts for the first of them.
        adjusted: the largest p-value of the contrasts, adjusted for the number of candidates (Holm).
        verdict: whether it failed more often with each fact than without, or why that was not tested.
        replaced: words that made room for those of the candidate, as "injured for hurt".
        examples: probes with all facts that failed.
        said_by: ids of the items whose unchanged texts are so.
    """

    kind: Kind
    facts: list[str]
    proposed: tuple[int, int]
    fails: Rate | None
    without: list[Contrast]
    items: int
    probes: int
    adjusted: float
    verdict: Verdict
    replaced: list[str]
    examples: list[Example]
    said_by: list[str]

    @property
    def text_facts(self) -> set[str]:
        """The facts that are about texts, and not about levels."""
        return {fact for fact in self.facts if fact.startswith(("says ", "has "))}

    @property
    def told(self) -> str:
        """The facts as one line."""
        return " and ".join(self.facts)


class Mining(BaseModel):
    """What was mined of an audit.

    Args:
        settings: what it was made with.
        probes: unique probes spent.
        proposing: of these, to propose.
        items: (items that proposed, items that confirmed).
        facts: facts that were looked at, one each.
        slices: sets of facts that were counted.
        cut: whether there were more than might be counted.
        now: failure rate of unchanged items, of those that confirmed.
        findings: candidates, those confirmed first.
    """

    settings: MineSettings
    probes: int
    proposing: int
    items: tuple[int, int]
    facts: int
    slices: int
    cut: bool
    now: Rate
    findings: list[Finding]

    @property
    def unchanged(self) -> int:
        """Probes of items that confirm, as they are: all that neither proposed nor tested a candidate."""
        return self.probes - self.proposing - sum(finding.probes for finding in self.findings)

    @property
    def confirmed(self) -> list[Finding]:
        """What held on items that did not propose it."""
        return [finding for finding in self.findings if finding.verdict == "confirmed"]
