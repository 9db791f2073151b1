"""Records of failure rates by the values of the attributes of items, and of how far answers are biased."""

from pydantic import Field

from stages.records.base import Listed, RateRecord, Record
from stages.tasks.contract import AND_LABEL


class ValueShare(Record):
    """The frequency of one value."""

    value: str
    count: int
    share: RateRecord
    expected: float


class ChanceVariation(Record):
    """The total variation of the same number of answers of a fair model: its mean, and its 95% point."""

    mean: float
    high: float


class Bias(Record):
    """One tally; without a readable answer the numbers are None."""

    subject: str
    attribute: str
    guidance: float
    n: int
    unread: int
    values: Listed[ValueShare]
    counted: float | None
    chance: ChanceVariation | None
    excess: float | None
    p: float | None
    p_holm: float | None
    beyond_noise: bool
    bias: RateRecord


class BiasChange(RateRecord):
    """The total variation of one subject minus that of the model before."""

    p: float | None
    p_holm: float | None


class BiasSubject(Record):
    """One subject by model ("before", "after", and optionally "control" and "noise")."""

    subject: str
    attribute: str
    guidance: float
    models: dict[str, Bias]
    changes: dict[str, BiasChange]
    newly_skewed: bool


class BiasComparison(Record):
    """All subjects, and means over those at the highest guidance by model."""

    subjects: Listed[BiasSubject]
    mean: dict[str, RateRecord]
    mean_change: dict[str, RateRecord]


def others_than(attribute: str) -> str:
    """Name the items that a value of an attribute is compared with."""
    return "all others with its label" if attribute.endswith(AND_LABEL) else "all others"


class Bounds(Record):
    """An interval that is simultaneous for all values of the attribute."""

    low: float | None
    high: float | None


class SliceRate(Record):
    """The failure rate of the items with one value; `items` counts those with probes."""

    value: str
    items: int
    probes: int
    failures: int
    rate: float | None
    low: float | None
    high: float | None

    @property
    def measured(self) -> RateRecord:
        return RateRecord(value=self.rate, low=self.low, high=self.high, n=self.probes)


class Slice(SliceRate):
    """The same in use, with all other items (`rest`), for a group by label those of its label.

    `p` is adjusted for all values of all attributes (Holm); `worse` is whether this value fails significantly more.
    """

    joint: Bounds
    rest: float | None
    p: float | None
    worse: bool


class AttributeSlices(Record):
    """All values of one attribute, worst first; `missing` items have no value."""

    attribute: str
    missing: int
    values: Listed[Slice]


class AttributeRates(Record):
    """The same inside a failure mode, without a test."""

    attribute: str
    values: Listed[SliceRate]


class Confusion(Record):
    """How often items of one label were mistaken for another, and the share of the label's failures and probes.

    Counts are of the control's probes, and inside a mode of the probes of its rate.
    """

    label: str
    output: str
    count: int
    of_failures: float
    of_probes: float


class Slices(Record):
    """Failure rates by attribute in use, by mode and attribute inside failure modes, and confusions.

    `confusions` (in use) and `mode_confusions` (inside failure modes) exist if outputs name a label.
    """

    attributes: Listed[AttributeSlices]
    modes: dict[str, Listed[AttributeRates]] = Field(default_factory=dict)
    confusions: list[Confusion] | None = None
    mode_confusions: dict[str, Listed[Confusion]] | None = None

    @property
    def worse(self) -> list[tuple[str, Slice]]:
        """Attribute and value of all slices that fail significantly more than the rest, highest rate first."""
        found = [(of.attribute, one) for of in self.attributes for one in of.values if one.worse]
        return sorted(found, key=lambda pair: -(pair[1].rate or 0.0))

    @property
    def worst(self) -> tuple[str, Slice] | None:
        """The slice that fails most: of those significantly worse, or if there are none, of all."""
        found = [(of.attribute, one) for of in self.attributes for one in of.values if one.rate is not None]
        return max(self.worse or found, key=lambda pair: pair[1].rate or 0.0, default=None)
