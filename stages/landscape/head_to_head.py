"""Several models on the same uniform probes: which fails least, where all fail, whose failure modes are whose.

All intervals resample items, the same ones for every quantity (`stages.intervals.Resampler`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.intervals import LEVEL, RESAMPLES, SHARE, Rate, Resampler
from stages.records import ModeRecord


class ModeOf(NamedTuple):
    """A failure mode, which models have it, and how often each of all models fails in it."""

    models: list[str]
    text: str
    rates: list[Rate]


@dataclass(frozen=True)
class HeadToHead:
    """Models on their common probes; lists have an entry for each model, in their order.

    Args:
        probes: how many there are.
        items: of how many items.
        rates: how often each model fails.
        behind: by how much it fails more often than the one that fails least, which has None. The intervals hold for
            all pairs of models at once (Bonferroni), so also for those with the one that happened to come out first.
        wins: of the probes on which it and another model differ, the share on which it is the one that passes.
        alone: how often it fails and no other does.
        all_fail: how often all fail.
        independent: how often all would, if their failures had nothing to do with one another.
        modes: the failure modes of all of them.
    """

    probes: int
    items: int
    rates: list[Rate]
    behind: list[Rate | None]
    wins: list[Rate]
    alone: list[Rate]
    all_fail: Rate
    independent: Rate
    modes: list[ModeOf]


def head_to_head(
    probes: Mapping[str, pd.DataFrame],
    space: ConceptSpace,
    modes: Mapping[str, Sequence[ModeRecord]],
    attributes: Mapping[str, pd.DataFrame],
) -> HeadToHead | None:
    """Compare models that were asked the same; None where they have no probe in common.

    Args:
        probes: by model, its uniform probes: columns item, repeat, failed, one per concept, and group where items have
            one.
        space: the concepts, the same for all.
        modes: the failure modes of each.
        attributes: by model, what its items are told apart by, a row an item.
    """
    common = _common(probes, space.names)
    if common.empty:
        return None
    failed = common[[_failed(k) for k in range(len(probes))]].to_numpy(dtype=float)  # (n, models)
    pairs = len(list(combinations(probes, 2)))
    # A level for so many pairs needs draws in its tails.
    resampler = Resampler(common["item"], max(RESAMPLES, 400 * pairs), 0, common.get("group"))
    ones = np.ones(len(failed))
    rates = [resampler.mean(column, ones, SHARE) for column in failed.T]
    first = int(np.argmin([rate.value for rate in rates]))
    more = (column - failed[:, first] for column in failed.T)
    behind = [
        None if k == first else resampler.mean(change, ones, level=1 - (1 - LEVEL) / pairs)
        for k, change in enumerate(more)
    ]
    count = failed.sum(axis=1)
    return HeadToHead(
        probes=len(common),
        items=common["item"].nunique(),
        rates=rates,
        behind=behind,
        wins=[_wins(common, failed, model) for model in range(failed.shape[1])],
        alone=[resampler.mean(column * (count == 1), ones, SHARE) for column in failed.T],
        all_fail=resampler.mean((count == failed.shape[1]).astype(float), ones, SHARE),
        independent=_independent(rates),
        modes=[
            ModeOf(whose, mode.text, [resampler.mean(column, inside, SHARE) for column in failed.T])
            for mode, whose in _named(modes)
            for inside in [_inside(mode, common, space, attributes[whose[0]])]
        ],
    )


def _named(modes: Mapping[str, Sequence[ModeRecord]]) -> list[tuple[ModeRecord, list[str]]]:
    """Each mode once, with the models that have it."""
    found: dict[str, tuple[ModeRecord, list[str]]] = {}
    for model, named in modes.items():
        for mode in named:
            found.setdefault(mode.text, (mode, []))[1].append(model)
    return list(found.values())


def _common(probes: Mapping[str, pd.DataFrame], concepts: Sequence[str]) -> pd.DataFrame:
    """The probes that all models were asked, with a column for each that says whether it failed."""
    keys = ["item", *concepts, "repeat"]
    tables = [
        table[[*keys, "failed"]].drop_duplicates(keys).rename(columns={"failed": _failed(k)})
        for k, table in enumerate(probes.values())
    ]
    common = reduce(lambda one, other: one.merge(other, on=keys), tables)
    any_of = next(iter(probes.values()))
    if "group" not in any_of:
        return common
    return common.assign(group=common["item"].map(any_of.drop_duplicates("item").set_index("item")["group"]))


def _failed(model: int) -> str:
    """The column of a model; its name might be that of a concept."""
    return f"failed {model}"


def _wins(common: pd.DataFrame, failed: np.ndarray, model: int) -> Rate:
    others = np.delete(failed, model, axis=1)
    own = failed[:, [model]]
    repeated = [pd.concat([common[name]] * others.shape[1]) for name in ("item", "group") if name in common]
    passes, differ = (1 - own) * others, (own != others).astype(float)
    return Resampler(repeated[0], RESAMPLES, 0, *repeated[1:]).mean(passes.T.ravel(), differ.T.ravel(), SHARE)


def _independent(rates: Sequence[Rate]) -> Rate:
    """The product of failure rates, with that of their bounds, which is wider than it need be."""
    value, low, high = (prod(bounds) for bounds in zip(*(rate[:3] for rate in rates), strict=True))
    return Rate(value, low, high, rates[0].n)


def _inside(mode: ModeRecord, common: pd.DataFrame, space: ConceptSpace, attributes: pd.DataFrame) -> np.ndarray:
    """Which common probes lie in a failure mode: (n,) float, 1 or 0."""
    region, cells = Region.from_json(mode.region), common[space.names].to_numpy()
    about = attributes.reindex(common["item"]) if region.items else None
    return region.contains(space, cells, about).astype(float)
