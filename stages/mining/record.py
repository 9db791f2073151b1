"""Settings and results of mining, as plain data for display and storage."""

from typing import Literal

from pydantic import BaseModel, Field

from stages.params import Strict
from stages.records import Rate


class MineSettings(Strict):
    """Budget and depth of mining."""

    probes: int = Field(1000, ge=200, description="unique probes at most")
    slices: int = Field(100_000, ge=1, description="sets of facts that are counted at most")
    largest: int = Field(3, ge=1, description="facts of a set at most")
    support: int = Field(3, ge=2, description="failing probes that a candidate needs")
    level: float = Field(0.05, gt=0, lt=1, description="chance of one false finding or more, among all candidates")


Kind = Literal["word", "attribute", "level", "set"]
Verdict = Literal["confirmed", "not confirmed", "too few items", "no probes left"]


class MinedExample(BaseModel):
    """A probe that failed.

    Args:
        text: text of the item with the probe's words, before concepts are applied.
        given: input of the model.
        original: input of the model for the unchanged item.
        expected: description of the expected answer.
        holds: facts of all candidates that hold for the text.
    """

    item: str
    text: str
    given: str
    original: str
    expected: str
    answered: str
    holds: list[str]


class Contrast(BaseModel):
    """How often the model fails if one fact of a candidate does not hold, but all others do.

    Args:
        fails: failure rate of the probes without it; interval over groups of items.
        paired: whether these are the same items as those with the fact.
        p: one-sided p-value of failing more often with the fact than without.
    """

    fact: str
    fails: Rate
    paired: bool
    p: float


class Finding(BaseModel):
    """A candidate, tested on items that did not propose it.

    Args:
        kind: kind of its fact; "set" if it has several.
        proposed: (failing probes, probes) on the items that proposed it.
        fails: failure rate if all facts hold; interval over groups of items; None if it was not tested.
        without: one contrast for each fact.
        items: number of items with all facts.
        probes: unique probes spent on it; shared ones count for the first candidate that uses them.
        adjusted: the largest p-value of the contrasts, adjusted for the number of candidates (Holm).
        verdict: whether it failed more often with each fact than without, or why that was not tested.
        replaced: words that were replaced by those of the candidate, such as "injured for hurt".
        examples: failed probes with all facts.
        said_by: ids of the items whose unchanged texts have all of its facts about texts.
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
    examples: list[MinedExample]
    said_by: list[str]

    @property
    def text_facts(self) -> set[str]:
        """The facts about texts, without those about levels."""
        return {fact for fact in self.facts if fact.startswith(("says ", "has "))}

    @property
    def told(self) -> str:
        return " and ".join(self.facts)


class Mining(BaseModel):
    """The result of mining an audit.

    Args:
        probes: unique probes spent.
        proposing: how many of these were spent on proposing.
        items: (items that proposed, items that confirmed).
        facts: number of facts that were searched.
        slices: number of sets of facts that were counted.
        cut: whether there were more sets than the limit.
        now: failure rate of unchanged confirming items.
        findings: the candidates, confirmed ones first.
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
        """Number of probes of unchanged confirming items: those that neither proposed nor tested a candidate."""
        return self.probes - self.proposing - sum(finding.probes for finding in self.findings)

    @property
    def confirmed(self) -> list[Finding]:
        """The candidates that were confirmed on other items than those that proposed them."""
        return [finding for finding in self.findings if finding.verdict == "confirmed"]
