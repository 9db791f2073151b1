"""The rule by which claims about a model are judged, against the truth of all of its pairs of item and cell."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.planted.models import Model

FIRST = 5  # claims that people are assumed to read
OVERLAP = 0.5
TWICE = 2.0


@dataclass(frozen=True)
class Claim:
    """What a scanner says: that a set of pairs fails more than others.

    Args:
        text: for people.
        inside: (pairs,) bool, in the order of `Model.pairs`.
        rate: the failure rate it states, if any, with its 95% interval.
    """

    text: str
    inside: np.ndarray
    rate: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Judged:
    """What a scanner's claims about one model are worth.

    Args:
        share: share of use in the plant; 0 without one.
        named: the first claim that names the plant, from 1: of the use that the claim is about, at least half is in the
            plant, and of the plant's at least half in the claim. None if none of the first five does.
        overlap: the largest intersection over union of one of the first five and the plant, by use.
        covered: share of the failures in use that are in one of the first five claims.
        claims: how many claims there are.
        real: how many are about pairs that fail at least twice as often as all others.
        rates: how many state a rate with an interval, and `held` how many of these hold the true rate.
        queries: different changed items that the model was asked about.
        seconds: of CPU time.
    """

    share: float
    named: int | None
    overlap: float
    covered: float
    claims: int
    real: int
    rates: int
    held: int
    queries: int
    seconds: float


def judge(model: Model, claims: Sequence[Claim], seconds: float) -> Judged:
    """Judge the claims about a model, in their order."""
    plant, share = model.planted, model.share
    named, overlap = None, 0.0
    for number, claim in enumerate(claims[:FIRST], 1):
        both = float(share[claim.inside & plant].sum())
        if both and named is None and min(both / share[claim.inside].sum(), both / share[plant].sum()) >= OVERLAP:
            named = number
        overlap = max(overlap, both / max(float(share[claim.inside | plant].sum()), 1e-12))
    first = np.any([np.zeros(len(share), dtype=bool), *(claim.inside for claim in claims[:FIRST])], axis=0)
    stated = [(model.rate(claim.inside), claim.rate) for claim in claims if claim.rate is not None]
    return Judged(
        share=float(share[plant].sum()),
        named=named,
        overlap=overlap,
        covered=float(share[model.failed & first].sum() / share[model.failed].sum()),
        claims=len(claims),
        real=sum(bool(model.rate(claim.inside) >= TWICE * model.rate(~claim.inside)) for claim in claims),
        rates=len(stated),
        held=sum(bool(low <= true <= high) for true, (_, low, high) in stated),
        queries=len(model.asked),
        seconds=seconds,
    )
