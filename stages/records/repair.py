"""Records of a repair: the plan, the comparison of before and after, and the verdict."""

from typing import Literal, Self

from pydantic import Field

from stages.concepts import ConceptSpace, Region, RegionJson
from stages.core.intervals import Rate
from stages.records.base import JsonRecord, Listed, RateRecord, Record
from stages.records.landscape import Agreement, ConceptRecord, EstimatorRecord, RatingsBound, UsageRecord, Verdict
from stages.records.search import ModelSearches
from stages.records.slices import BiasComparison, Bounds

Action = Literal["repair", "accept", "ignore"]


class PlannedMode(Record):
    """A failure mode and the action decided for it."""

    id: str
    text: str
    region: RegionJson
    action: Action
    severity: float
    reason: str

    @property
    def cells(self) -> Region:
        return Region.from_json(self.region)


class PlannedExample(Record):
    """The ratings and correction of an example; None if not given."""

    id: str
    mode: str
    item: str
    cell: list[int]
    output: str
    rating: int | None = None
    bias: int | None = None
    corrected: str | None = None


class PlannedPair(Record):
    """A test item and a cell, as level indices, that must pass after the repair."""

    item: str
    cell: list[int]


class Reviewer(Record):
    """A name, and the id of the key that signed, if any."""

    name: str
    key: str | None


class Ceiling(Record):
    """How often reviewers could not read an example themselves, among those they judged."""

    unreadable: RateRecord
    statement: str


class Plan(JsonRecord):
    """plan.json: the modes to repair on a landscape, who decided, and the ratings of examples."""

    landscape: str
    decided_by: Literal["policy", "human"]
    statement: str
    rule: str | None = None
    agreement: Agreement | None = None
    ceiling: Ceiling | None = None
    reviewer: str | None
    reviewers: Listed[Reviewer] = Field(default_factory=list)
    by: str | None = None
    reason: str | None
    modes: Listed[PlannedMode]
    examples: Listed[PlannedExample] = Field(default_factory=list)
    must_pass: Listed[PlannedPair] = Field(default_factory=list)

    @property
    def learnt(self) -> list[str]:
        """The test items that the repair may learn from, so that they cannot judge it."""
        return sorted({pair.item for pair in self.must_pass})

    @property
    def targets(self) -> list[PlannedMode]:
        return [mode for mode in self.modes if mode.action == "repair"]


class Training(Record):
    """One training of the repair or of its control.

    Args:
        folder: the model's folder under restructure/models.
        copy_of: the model that was trained; `before` is the model under test, which was not.
        training: 0 with the seed of the audit, 1 with the next one, and so on.
        dose: share of the steps of the settings.
        share: of the way from the model under test to what was learnt.
    """

    folder: str
    copy_of: Literal["before", "repaired", "control"]
    training: int
    dose: float
    steps: int
    share: float = 1.0

    @staticmethod
    def folder_of(copy_of: str, dose: float, training: int) -> str:
        """Return the folder of a further training, beside the repair and its control."""
        return f"trainings/{copy_of}-{dose:g}-{training}"


class MustPass(Record):
    """How many of the pairs that must pass, `pairs` that the model under test passes, a model fails.

    `left_out` is the number of further ones that the model under test fails itself.
    """

    pairs: int
    failing: int
    left_out: int

    def __str__(self) -> str:
        said = f"{self.failing} of {self.pairs} pairs that must pass fail"
        if not self.failing:
            said = f"all {self.pairs} pairs that must pass do" if self.pairs > 1 else "the pair that must pass does"
        more = f" (left out: {self.left_out} that the model under test fails itself)" if self.left_out else ""
        return f"{said}{more}"


class HarmAtShare(Record):
    """What a model breaks at a share of the way, by held-out items: newly failing in use, and clean quality lost.

    `pieces` is how many of `Harm.pieces` it has at this share; None if it is not made of pieces.
    """

    share: float
    newly_failing: float
    clean: float
    allowed: bool
    must_pass: MustPass | None = None
    pieces: int | None = None


class Harm(Record):
    """How far a model went to what was learnt, where 0 is the model under test itself, and the shares tried.

    `items` is the number of repair items that were held out of its training to find this; `noise` the newly failing
    share of the model under test, queried again, if that was needed; `pieces` is what was added to a prompt, if
    anything was learnt that way.
    """

    share: float
    items: int
    tried: Listed[HarmAtShare]
    noise: float | None = None
    pieces: list[str] | None = None

    def goes(self, at: HarmAtShare) -> str:
        """Say how far a share goes: "goes 75% of the way to what it learnt"."""
        if self.pieces is None or at.pieces is None:
            return f"goes {'all' if at.share == 1 else f'{at.share:.0%} of'} the way to what it learnt"
        if not self.pieces:
            return "stays the model under test, as nothing helps"
        kept, back = self.pieces[: at.pieces], self.pieces[at.pieces :]
        count = f"all {len(kept)} pieces" if len(kept) > 1 else "its only piece"
        if back:
            count = f"the first {len(kept)} of {len(self.pieces)} pieces"
        return f"keeps {count} ({'; '.join(kept)})" + (
            f" and takes back the others ({'; '.join(back)})" if back else ""
        )

    def at(self, share: HarmAtShare) -> str:
        """Name a share: "75%", or "2 of 3 pieces"."""
        if self.pieces is None or share.pieces is None:
            return f"{share.share:.0%}"
        return f"{share.pieces} of {len(self.pieces)} piece{'s' * (len(self.pieces) > 1)}"


class Trainings(JsonRecord):
    """trainings.json: all trainings, the repair first.

    Args:
        movable: whether models can go part of the way, see `Task.move`.
        harm: of the repair and its control; empty without a budget.
        must_pass: of the repair and its control; empty if no pair must pass.
    """

    models: Listed[Training]
    movable: bool = False
    harm: dict[str, Harm] = Field(default_factory=dict)
    must_pass: dict[str, MustPass] = Field(default_factory=dict)


class QuantityChange(Record):
    """One quantity of one model; `low` and `high` belong to the change, or to `after` if there is none."""

    before: float | None = None
    after: float | None
    after_low: float | None
    after_high: float | None
    change: float | None = None
    low: float | None
    high: float | None
    pairs: int

    @classmethod
    def measured(cls, after: Rate, before: Rate | None = None, change: Rate | None = None) -> Self:
        """Create it from measurements; without the value before and the change if they have no meaning."""
        value, judged = RateRecord.from_rate(after), RateRecord.from_rate(after if change is None else change)
        told = {"before": before, "change": change}
        return cls.model_validate(
            {
                **{name: RateRecord.from_rate(rate).value for name, rate in told.items() if rate is not None},
                **{"after": value.value, "after_low": value.low, "after_high": value.high},
                **{"low": judged.low, "high": judged.high, "pairs": after.n},
            }
        )

    @property
    def changed(self) -> bool:
        """Whether it has a change, unlike a share that starts at 0 (newly failing)."""
        return "change" in self.model_fields_set

    @property
    def moved(self) -> Rate:
        """The change, or the value if there is none."""
        value = self.change if self.changed else self.after
        return RateRecord(value=value, low=self.low, high=self.high, n=self.pairs).rate


class Against(QuantityChange):
    """One model beside the repair: the control, or the model before queried again (noise)."""

    repair_minus_control: RateRecord | None = None
    repair_minus_noise: RateRecord | None = None


class Difference(QuantityChange):
    """One quantity before and after the repair."""

    control: Against | None = None
    noise: Against | None = None
    name: str | None = None

    @property
    def others(self) -> dict[str, Against]:
        return {name: found for name, found in (("control", self.control), ("noise", self.noise)) if found is not None}


class ModeDifference(Difference):
    """The difference in one mode of the plan."""

    id: str
    text: str
    action: Action


class RegionDifference(Difference):
    """The difference in a region to which failures moved."""

    region: RegionJson
    text: str


class SliceDifference(Difference):
    """The difference in the failure rate of the items with one value of an attribute.

    `joint_after` and `joint_change` are simultaneous for all values. `p` is that of a rise, adjusted for all values of
    all attributes (Holm); None if there are too few pairs for a test. `worse`: it has risen significantly.
    """

    value: str
    items: int
    joint_after: Bounds
    joint_change: Bounds
    p: float | None
    worse: bool


class AttributeDifferences(Record):
    """All values of one attribute, highest rate after the repair first; `missing` items have no value."""

    attribute: str
    missing: int
    values: Listed[SliceDifference]


class MeasureDifference(Difference):
    """The difference of one of a task's own measures; `baselines` are means of answers made without a model."""

    baselines: dict[str, float | None]


class Measures(Record):
    """A task's own measures on some of the pairs."""

    pairs: int
    items: int
    invalid: int
    measures: dict[str, MeasureDifference]


class Targeting(RateRecord):
    """Whether the target modes improved more than under the control: the repair's failure rate minus the control's."""

    helped: bool
    statement: str


class Noise(RateRecord):
    """Whether the drop in failures exceeds the model's own noise; `statement` is None if there is no drop."""

    beyond: bool
    statement: str | None


class Moved(Record):
    """Regions in which failures rose."""

    found: bool
    regions: Listed[RegionDifference]


class Reduced(Record):
    """The paper's inequality on some of the cells."""

    holds: bool | None
    beyond_chance: bool | None
    before: float | None
    after: float | None
    change: RateRecord


class ReducedFailures(Record):
    """Reduced failures in the sense of the paper's Def. 4.1, on the chosen modes and overall."""

    holds: bool
    inequality: str
    targets: Reduced
    total: Reduced


class Spread(Record):
    """Smallest, mean and largest distance between halves; None if none is known."""

    min: float | None
    mean: float | None
    max: float | None


class NoiseFloor(Record):
    """The distance of a model to itself on two halves of the items."""

    splits: int
    normalised: Spread
    null_cell: Spread


class Shift(Record):
    """How far the landscape moved, see `stages.landscape.shift`."""

    normalised: float | None
    null_cell: float
    noise_floor: NoiseFloor
    beyond_noise: bool
    mean_rate_before: float
    mean_rate_after: float
    entropy_before: float | None
    entropy_after: float | None
    entropy_uniform: float
    null_cost: float
    blocks: int
    levels_merged: int


class PolicyShift(Record):
    """The levels of a concept at which the policies learnt before and after the repair look.

    Shares of their draws by level, means of levels that are numbers, and the distance in units of the concept's range,
    see `stages.landscape.shift`, with its noise floor. `beyond_noise` is None if there is only one item.
    """

    concept: str
    before: list[float]
    after: list[float]
    mean_before: float | None
    mean_after: float | None
    distance: float
    noise_floor: Spread
    beyond_noise: bool | None


class InvalidPairs(Record):
    """Shares of the common pairs that are not valid for the model before."""

    targets: RateRecord
    others: RateRecord


class FrontierPoint(Record):
    """A model on the frontier: what it breaks and what it repairs, as means over trainings.

    Args:
        dose: share of the repair's steps.
        share: of the way from the model under test to what was learnt.
        steps: number of steps, a mean.
        newly_failing: share of what passed before that fails, in use.
        targets: failure rate in the target modes.
        others: failure rate elsewhere.
        clean: quality on unchanged items.
    """

    copy_of: Literal["repaired", "control"]
    dose: float
    share: float
    steps: int
    newly_failing: RateRecord
    targets: RateRecord
    others: RateRecord
    clean: RateRecord


class Times(Record):
    """How many times the repair's steps the control needs to fail as rarely in the targets, at the same harm.

    None if the longest training, of `most` times the steps, did not. `least` if the shortest training, of that many
    times the steps, already did.
    """

    value: float | None
    low: float | None
    high: float | None
    least: float
    most: float


class AtEqualHarm(Record):
    """Failures in the target modes of the repair minus those of its control, after as many steps at the same harm.

    Args:
        harm: newly failing share of the published repair, or the largest of the control if that is smaller.
        difference: mean over harms up to this, with an interval over items and trainings.
        times: at this harm; None if trainings have one length.
    """

    harm: float
    difference: RateRecord
    times: Times | None = None


class Frontier(Record):
    """How much a repair and its control mend against how much they break, on separate pairs of unseen items.

    `before` is the failure rate in the target modes of the model under test, which breaks nothing; `published` is the
    repair that is handed on, of a single training; `trainings` is the number of seeds that each point is a mean of.
    """

    before: RateRecord
    published: FrontierPoint
    points: Listed[FrontierPoint]
    trainings: int
    equal_harm: AtEqualHarm | None


class Checkpoint(Record):
    """The repair after fewer steps: the measures that gates judge, on the pairs that all trainings answered.

    Args:
        folder: the model's folder under restructure/models.
        steps: number of steps of its training.
        differences: by measure, against the model before.
    """

    folder: str
    steps: int
    differences: dict[str, Difference]


class Cheapest(Record):
    """The checkpoint with the fewest steps that passes all gates, under restructure/models."""

    folder: str
    steps: int


class BothEstimators(Record):
    """The estimators of both landscapes."""

    before: EstimatorRecord
    after: EstimatorRecord


class Comparison(JsonRecord):
    """comparison.json: before and after, on items the repair never saw. Gates judge it, see `RepairVerdict`."""

    audit: str
    concepts: Listed[ConceptRecord]
    usage: UsageRecord | None = None
    control: Literal["as_used", "clean"] | None
    differences: dict[str, Difference]
    modes: Listed[ModeDifference]
    targeting: Targeting | None
    invalid: InvalidPairs
    failures_moved: Moved
    reduced_failures: ReducedFailures
    search: dict[str, ModelSearches]
    shift: Shift
    estimator: BothEstimators
    items: int
    bias: BiasComparison | None = None
    frontier: Frontier | None = None
    checkpoints: list[Checkpoint] | None = None
    automatic: dict[str, Difference] | None = None
    noise: Noise | None = None
    measures: dict[str, Measures] | None = None
    policy: list[PolicyShift] | None = None
    ratings: RatingsBound | None = None
    slices: list[AttributeDifferences] | None = None

    @property
    def space(self) -> ConceptSpace:
        space = ConceptSpace.from_json([concept.to_json() for concept in self.concepts])
        return space if self.usage is None else self.usage.on(space)

    @property
    def some_invalid(self) -> bool:
        """Whether a model gave answers that cannot be held against it; False for files of earlier versions."""
        return any(
            (self.differences[f"{part}_not_passing"].before, self.differences[f"{part}_not_passing"].after)
            != (self.differences[f"{part}_failure_rate"].before, self.differences[f"{part}_failure_rate"].after)
            for part in ("target", "other")
            if f"{part}_not_passing" in self.differences
        )

    @property
    def shown_differences(self) -> dict[str, Difference]:
        """The differences without redundant ones: if nothing is invalid, what does not pass is what fails."""
        shown = self.differences.items()
        return {key: entry for key, entry in shown if self.some_invalid or not key.endswith("not_passing")}


class RepairVerdict(Verdict):
    """verdict.json of a repair: the gates, who decided what to repair, and the effects in sentences."""

    decided_by: Literal["policy", "human"]
    reviewer: str | None
    by: str | None = None
    reason: str | None
    agreement: Agreement | None = None
    ceiling: Ceiling | None = None
    cheapest: Cheapest | None = None
    statement: str
