"""Records of how far answers deviate from their expected frequencies, see `stages.landscape.bias`."""

from __future__ import annotations

from stages.records.base import Listed, RateRecord, Record


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
