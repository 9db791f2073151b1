"""Records of a landscape: summarize's landscape.json, and the verdict on it."""

from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from stages.concepts import ConceptSpace, Region, RegionJson
from stages.concepts.usage import Usage
from stages.params.usage import AnyUsage
from stages.records.base import JsonRecord, Listed, OpenRecord, RateRecord, Record
from stages.records.search import Searches
from stages.records.slices import Bias, Slices
from stages.tasks.contract import NOT_VALID


class Effect(Record):
    """The failure rate at one level of one concept, averaged over all others."""

    concept: str
    level: int
    label: str
    rate: float | None
    low: float | None
    high: float | None
    probes: int
    failures: int


class Minimal(Record):
    """The number of smallest failing changes that end in a region."""

    reached: int
    of: int
    median_radius: float | None


class Example(Record):
    """A probe that may be shown for a mode; decisions refer to it by its `id` ("M1.1")."""

    id: str
    item: str
    cell: list[int]
    output: str
    failed: bool
    discrepancy: float


class RegionRecord(Record):
    """A region and its measurements, see docs/files.md."""

    id: str
    region: RegionJson
    text: str
    probes: int
    failures: int
    estimate: float
    share: float

    @property
    def cells(self) -> Region:
        return Region.from_json(self.region)


class ModeRecord(RegionRecord):
    """A failure mode: a region that fails more often than all of use, by fresh probes inside it.

    `of_failures` is the share of all failures in use that lie in it but in no mode before it.
    """

    rate: float
    low: float
    high: float
    lift: float
    of_failures: float | None = None
    minimal: Minimal
    invalid: float | None
    examples: Listed[Example] = Field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.id}: {self.text}, {self.rate:.1%} fail ({self.low:.1%} to {self.high:.1%})>"

    __str__ = __repr__

    @property
    def measured(self) -> RateRecord:
        return RateRecord(value=self.rate, low=self.low, high=self.high, n=self.probes)


class GroupRecord(RegionRecord):
    """A group of people that fails more than others of its label, which a repair may target."""

    rate: float


class Suspected(RegionRecord):
    """A region that its fresh probes did not confirm; `rate` is None if it had none."""

    rate: float | None
    low: float | None
    high: float | None


class InvalidLevel(Record):
    """Invalid probes at one level of a concept, with their share."""

    concept: str
    level: int
    label: str
    invalid: int
    value: float | None
    low: float | None
    high: float | None
    n: int


class Invalid(Record):
    """Probes that cannot be held against the model, with their share of the control's; `what` describes them.

    They count as passed in all rates. `left_out` and `as_failures` are the control's failure rate without them, and
    with each of them counted as a failure; None if the file is of an earlier version.
    """

    count: int
    probes: int
    value: float | None
    low: float | None
    high: float | None
    n: int
    levels: Listed[InvalidLevel]
    left_out: RateRecord | None = None
    as_failures: RateRecord | None = None
    what: str = NOT_VALID

    @property
    def not_passing(self) -> RateRecord | None:
        """The failure rate with these counted as failures; None if there are none, or it is unknown."""
        return self.as_failures if self.value else None


class Unshown(Record):
    """The share of use that fails outside of the failure modes: with 95% confidence at most this much.

    Without modes it is a bound on all failures. `probes` are those that it was computed from.
    """

    at_most: float
    probes: int


class NamedAgain(Record):
    """How many modes independent halves of the evidence both name."""

    named: int
    again: int
    in_halves: dict[str, int]


class FalseAlarm(Record):
    """How often a passing answer is called a failure."""

    rate: float
    low: float
    high: float
    articles: int
    unit: str = "inputs"
    held_out: bool


class EstimatorRecord(OpenRecord):
    """The estimator of the landscape, the number of probes of each role it saw, and its diagnostics."""

    name: str

    @property
    def log_loss(self) -> float | None:
        """Log loss on held-out probes."""
        return self.number("log_loss")

    @property
    def log_loss_constant(self) -> float | None:
        """Log loss of always predicting the overall rate, on the same probes."""
        return self.number("log_loss_constant")

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error on held-out probes."""
        return self.number("calibration_error")


class Within(Record):
    """The share of items that fail within a number of steps."""

    steps: int
    value: float | None
    low: float | None
    high: float | None
    n: int


class Direction(Record):
    """The role of one concept in the smallest failing changes."""

    concept: str
    used: int
    share: float | None
    mean_steps: float | None
    alone: RateRecord
    alone_median_steps: float | None


class Together(Record):
    """A set of concepts, and the number of items whose smallest failing change changes exactly these."""

    concepts: list[str]
    items: int


class AtEpsilon(Record):
    """The share of items that fail at an amount of noise."""

    epsilon: float
    value: float | None
    low: float | None
    high: float | None
    n: int


class Attack(Record):
    """The smallest noise along the gradient that makes items fail; None if a median or bound is beyond all epsilons."""

    attack: str
    not_found: int
    median: float | None
    low: float | None
    high: float | None
    within: Listed[AtEpsilon]


class Robustness(Record):
    """A summary of the smallest failing changes."""

    method: str | None
    probes: int | None
    items: int
    fail_unchanged: int
    found: int
    not_found: int
    searched: int | None
    proven: int
    median_radius: int | None
    start: str
    not_neutral: list[str]
    within: Listed[Within]
    directions: Listed[Direction]
    together: Listed[Together]
    gradient: Listed[Attack] = Field(default_factory=list)


class Mean(Record):
    """A mean in rating points with its 95% interval over items."""

    value: float
    low: float
    high: float


class ActionAgreement(Record):
    """How far reviewers agree on the actions for modes."""

    alpha: float | None
    share: float
    modes: int


class ScoreAgreement(Record):
    """How far their scores of examples agree; `difference` is in rating points."""

    alpha: float | None
    difference: float
    examples: int


class Agreement(Record):
    """How far reviewers agree; a part is None if no two of them judged the same thing."""

    reviewers: list[str]
    actions: ActionAgreement | None
    rating: ScoreAgreement | None
    bias: ScoreAgreement | None
    statement: str


class Automatic(Record):
    """The results of the automatic measure on the same probes, see `stages.landscape.describe`."""

    threshold: float
    overall: RateRecord
    effects: Listed[Effect]
    agree: RateRecord
    only_people: RateRecord
    only_automatic: RateRecord
    rank_correlation: RateRecord | None
    outside: RateRecord | None = None
    unfounded: RateRecord | None = None


class RatingsBound(Record):
    """The ratings in force, by the hash of their file, and the bound beyond which they call an answer a failure."""

    sha256: str
    fails_below: float | None = None
    fails_above: float | None = None


class RatingsInForce(RatingsBound):
    """The definition of a failure by people's ratings, and the automatic measure's results for comparison."""

    target: str
    model: str
    x: list[float]
    y: list[float]
    ratings: int
    items: int
    reviewers: dict[str, int]
    error: Mean
    constant: Mean
    gain: Mean
    agreement: Agreement | None = None
    points: list[tuple[float, int]]
    automatic: Automatic

    @property
    def bound(self) -> RatingsBound:
        """The ratings' hash, and the bound beyond which they call an answer a failure."""
        return RatingsBound.from_json({k: v for k, v in self.to_json().items() if k in RatingsBound.model_fields}, "")


class Corrected(Record):
    """The failure rate in use corrected by people's verdicts on random probes, see `stages.landscape.rates`.

    `overall.n` is the number of draws, of `probes` different probes; in `only_people` of them only people, and in
    `only_automatic` only the measure in force found a failure.
    """

    overall: RateRecord
    probes: int
    only_people: int
    only_automatic: int


class ConceptRecord(Record):
    """One concept of the grid."""

    name: str
    levels: list[int | float | str]
    unit: str
    ordered: bool
    neutral: int | float | str | None


class UsageRecord(Record):
    """How often each cell occurs in use, see `stages.concepts.usage`.

    Args:
        weights: per concept, the weight of each level.
        changes: share of inputs with 0, 1, 2, ... concepts changed; None if concepts change independently.
        combined: combinations with shares of their own, by level; -1 where any level may occur.
        shares: share of inputs with each combination.
        stated: whether any of this was stated or measured rather than assumed.
        inputs: number of production inputs that it was measured on; None if it was not measured.
        source: where they are from.
        worth: per concept, the number of inputs that its measured weights are worth; None where it was not measured.
    """

    weights: list[list[float]]
    changes: list[float] | None
    combined: list[list[int]]
    shares: list[float]
    stated: bool
    inputs: int | None = None
    source: str | None = None
    worth: list[float | None] | None = None

    def on(self, space: ConceptSpace) -> ConceptSpace:
        usage = Usage(
            tuple(np.array(own) for own in self.weights),
            space.neutral_levels,
            None if self.changes is None else np.array(self.changes),
            np.array(self.combined, dtype=np.int64).reshape(-1, len(space)),
            np.array(self.shares),
            {j: n for j, n in enumerate(self.worth or ()) if n is not None},
        )
        return replace(space, usage=usage)


def usage_record(space: ConceptSpace, config: AnyUsage) -> UsageRecord | None:
    """Return the record of a grid's usage and of what was stated about it; None if all cells are equally common."""
    usage = space.usage
    if usage is None or isinstance(config, str):
        return None
    return UsageRecord(
        weights=[own.tolist() for own in usage.weights],
        changes=None if usage.changes is None else usage.changes.tolist(),
        combined=usage.combined.tolist(),
        shares=usage.shares.tolist(),
        stated=config.stated,
        inputs=config.measured.inputs if config.measured else None,
        source=config.measured.source if config.measured else None,
    ).having(worth=[usage.measured_on.get(j) for j in range(len(space))] if usage.measured_on else None)


class LevelAlone(Record):
    """The failure rate with one level of one concept and everything else unchanged, for some or all items.

    `attribute` and `value` name the items; both are empty for all of them.
    """

    concept: str
    level: int
    attribute: str = ""
    value: str = ""
    rate: float | None
    low: float | None
    high: float | None
    probes: int


class Landscape(JsonRecord):
    """landscape.json."""

    audit: str
    concepts: Listed[ConceptRecord]
    usage: UsageRecord | None = None
    threshold: float
    false_alarms: dict[str, FalseAlarm] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)
    unchanged: RateRecord | None = None
    overall: RateRecord
    overall_estimated: RateRecord
    effects: Listed[Effect]
    alone: Listed[LevelAlone] = Field(default_factory=list)
    half_as_much: RateRecord | None = None
    twice_as_much: RateRecord | None = None
    modes: Listed[ModeRecord]
    suspected: Listed[Suspected]
    invalid: Invalid
    modes_found_again: NamedAgain
    modes_skipped: list[list[str]]
    bias: list[Bias] | None = None
    ratings: RatingsInForce | None = None
    estimator: EstimatorRecord
    robustness: Robustness | None
    search: Searches
    exact: bool
    sampled: bool
    items: int
    items_averaged: int | None = None
    slices: Slices | None = None

    def __repr__(self) -> str:
        return (
            f"<Landscape of {self.audit}: {self.overall.rate.value:.1%} fail"
            f" {'in use' if self.usage else 'of the grid'}, {self.items:,} items, {len(self.modes)} mode(s)>"
        )

    __str__ = __repr__

    @property
    def space(self) -> ConceptSpace:
        space = ConceptSpace.from_json([concept.to_json() for concept in self.concepts])
        return space if self.usage is None else self.usage.on(space)

    @property
    def unchanged_said(self) -> str:
        """Describes how many items fail unchanged; empty if that is unknown."""
        if self.unchanged is None:
            return ""
        rate = self.unchanged.rate
        return (
            f"{round(rate.value * rate.n):,} of {rate.n:,} unchanged items fail already, {rate.value:.1%}, 95% interval"
            f" {rate.low:.1%} to {rate.high:.1%}"
        )

    def confused(self, mode: ModeRecord, most: int) -> str:
        """Describe the most common confusions in a mode; empty if outputs do not name labels.

        "label 2 answered as 7: 18 of 44 failures (41%)", with further ones separated by semicolons.
        """
        found = ((self.slices and self.slices.mode_confusions) or {}).get(mode.id, [])[:most]
        return "; ".join(
            f"label {one.label} answered as {one.output}: {one.count:,} of {mode.failures:,} failures"
            f" ({one.count / mode.failures:.0%})"
            for one in found
        )


class Gate(Record):
    """One bound and the measurement checked against it; `passed` and the numbers are None if nothing was measured.

    `slice` is the value of the attribute that decided a gate by slice.
    """

    gate: str
    bound: float
    value: float | None
    low: float | None
    high: float | None
    passed: bool | None
    slice: str | None = None

    @property
    def named(self) -> str:
        """The gate's name, with the value that decided it: "slices.label.max (9)"."""
        return self.gate if self.slice is None else f"{self.gate} ({self.slice})"


Light = Literal["red", "amber", "green"]


class Verdict(JsonRecord):
    """verdict.json: `passed` is None without gates, or if one could not be judged and none failed.

    `light` is whether a careful person would deploy, and `concerns` what speaks against it although no gate failed;
    None and empty in files of earlier versions. `unshown` and `corrected` are on a landscape alone.
    """

    audit: str
    passed: bool | None
    gates: Listed[Gate]
    light: Light | None = None
    concerns: Listed[str] = Field(default_factory=list)
    unshown: Unshown | None = None
    corrected: Corrected | None = None
