"""Compare several models on the same probes: failure rates in use, shared failures, and failure modes.

Probes are those of their controls, weighted by use. All intervals resample items, with the same resamples for every
quantity (`stages.core.intervals.Resampler`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from math import prod
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.core.intervals import LEVEL, RESAMPLES, SHARE, Rate, Resampler
from stages.records import ModeRecord


class ModeOf(NamedTuple):
    """A failure mode, the models that have it, and the failure rate of every model in it."""

    models: list[str]
    text: str
    rates: list[Rate]


@dataclass(frozen=True)
class HeadToHead:
    """Models on their common probes; lists have one entry per model, in their order.

    Args:
        items: number of items among them.
        rates: failure rate of each model.
        behind: excess of each failure rate over the lowest; None for the model with the lowest. The intervals are
            simultaneous for all pairs of models (Bonferroni), so also valid for a best model chosen on these data.
        wins: among the probes on which the model and another differ, the share on which it passes.
        alone: rate at which it fails and no other model does.
        independent: rate at which all would fail if their failures were independent.
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
    """Compare models on their common probes; None if they have none.

    Args:
        probes: by model, its control's probes: columns item, repeat, failed, one per concept, and group if items have
            one.
        attributes: by model, the attributes of its items, one row per item.
    """
    common = _common(probes, space.names)
    if common.empty:
        return None
    failed = common[[_failed(k) for k in range(len(probes))]].to_numpy(dtype=float)  # (n, models)
    pairs = len(list(combinations(probes, 2)))
    # An interval at this level needs enough resamples in its tails.
    resampler = Resampler(common["item"], max(RESAMPLES, 400 * pairs), 0, common.get("group"))
    cells = common[space.names].to_numpy(dtype=np.int64)
    use = space.weights(cells, common["item"].nunique()) * len(failed)
    rates = [resampler.mean(column, use, SHARE) for column in failed.T]
    first = int(np.argmin([rate.value for rate in rates]))
    more = (column - failed[:, first] for column in failed.T)
    behind = [
        None if k == first else resampler.mean(change, use, level=1 - (1 - LEVEL) / pairs)
        for k, change in enumerate(more)
    ]
    count = failed.sum(axis=1)
    return HeadToHead(
        probes=len(common),
        items=common["item"].nunique(),
        rates=rates,
        behind=behind,
        wins=[_wins(common, failed, use, model) for model in range(failed.shape[1])],
        alone=[resampler.mean(column * (count == 1), use, SHARE) for column in failed.T],
        all_fail=resampler.mean((count == failed.shape[1]).astype(float), use, SHARE),
        independent=_independent(rates),
        modes=[
            ModeOf(whose, mode.text, [resampler.mean(column, use * inside, SHARE) for column in failed.T])
            for mode, whose in _named(modes)
            for inside in [_inside(mode, common, space, attributes[whose[0]])]
        ],
    )


def _named(modes: Mapping[str, Sequence[ModeRecord]]) -> list[tuple[ModeRecord, list[str]]]:
    """Return each mode once, with the models that have it."""
    found: dict[str, tuple[ModeRecord, list[str]]] = {}
    for model, named in modes.items():
        for mode in named:
            found.setdefault(mode.text, (mode, []))[1].append(model)
    return list(found.values())


def _common(probes: Mapping[str, pd.DataFrame], concepts: Sequence[str]) -> pd.DataFrame:
    """Return the probes that all models answered, with one column per model for whether it failed."""
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
    """Return a model's column name; the model's own name might be that of a concept."""
    return f"failed {model}"


def _wins(common: pd.DataFrame, failed: np.ndarray, use: np.ndarray, model: int) -> Rate:
    others = np.delete(failed, model, axis=1)
    own = failed[:, [model]]
    repeated = [pd.concat([common[name]] * others.shape[1]) for name in ("item", "group") if name in common]
    passes, differ = (1 - own) * others, (own != others) * use[:, None]
    return Resampler(repeated[0], RESAMPLES, 0, *repeated[1:]).mean(passes.T.ravel(), differ.T.ravel(), SHARE)


def _independent(rates: Sequence[Rate]) -> Rate:
    """Multiply failure rates, and their bounds, which gives an interval wider than necessary."""
    value, low, high = (prod(bounds) for bounds in zip(*(rate[:3] for rate in rates), strict=True))
    return Rate(value, low, high, rates[0].n)


def _inside(mode: ModeRecord, common: pd.DataFrame, space: ConceptSpace, attributes: pd.DataFrame) -> np.ndarray:
    """Return which common probes are in a failure mode: (n,) float, 1 or 0."""
    region, cells = Region.from_json(mode.region), common[space.names].to_numpy()
    about = attributes.reindex(common["item"]) if region.items else None
    return region.contains(space, cells, about).astype(float)
