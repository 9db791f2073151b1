"""Failure rates by the values of item attributes, and confusions between classes.

A landscape shows at which changes a model fails; this module shows on which items. A *slice* is all items with one
value of an attribute ("label 9"). What fails in a group of people with one label ("race and label Black, high") are
false positives or false negatives, so such a group is compared with the others of its label.
"""

import re
from collections.abc import Mapping, Sequence
from math import erfc, sqrt
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.concepts.usage import Usage
from stages.core.intervals import LEVEL, Rate, holm, resamples_for, share
from stages.landscape.compare import MIN_PAIRS, PairedAnswers
from stages.landscape.rates import rate_in_use
from stages.records import RateRecord
from stages.records.repair import AttributeDifferences, SliceDifference
from stages.records.slices import (
    AttributeRates,
    AttributeSlices,
    Bounds,
    Confusion,
    Slice,
    SliceRate,
    Slices,
    others_than,
)
from stages.tasks.attributes import LABEL
from stages.tasks.contract import AND_LABEL

SIGNIFICANT = 0.05
DRAWS = 19_999  # permutations of items: enough for a p-value below 0.05 after adjustment for 600 tests
MOST_DEALT = 5_000  # items that are permuted, in some seconds
FEW = 200  # with more items than that, up to this many are drawn for a value; sums of more are normal
NAMES_LABEL = 0.95  # minimum share of passing probes whose output is the label, for outputs to name classes
FEWEST_NAMED = 20
MOST_CONFUSIONS = 100
_PROBABILITY = re.compile(r" \(\d{1,3}%\)$")  # "7 (83%)", as classifiers output


class _Asked(NamedTuple):
    """Probes that measure rates: n rows of probes.parquet, the row of each one's item (n,), and how to compute rates.

    With `space` they are the control's, weighted to stand for use; without, all count alike.
    """

    probes: pd.DataFrame
    row: np.ndarray
    seed: int
    space: ConceptSpace | None = None

    @property
    def failed(self) -> np.ndarray:
        """Which probes failed (n,)."""
        return self.probes["failed"].to_numpy(dtype=bool)

    def some(self, mask: np.ndarray) -> Self:
        return self._replace(probes=self.probes[mask], row=self.row[mask])

    def rate(self, level: float = LEVEL) -> Rate:
        """Failure rate, with an interval for other items like these."""
        if self.space is None:
            return share(self.failed, self.probes, level)
        return rate_in_use(self.space, self.failed, self.probes, level=level).rate

    @property
    def weights(self) -> np.ndarray:
        """Weights (n,) under which the probes stand for use, with mean 1."""
        if self.space is None or not len(self.probes):
            return np.ones(len(self.probes))
        cells = self.probes[self.space.names].to_numpy(dtype=np.int64)
        return self.space.weights(cells, self.probes["item"].nunique()) * len(cells)


def measure_slices(
    probes: pd.DataFrame,
    item_ids: Sequence[str],
    attributes: pd.DataFrame,
    space: ConceptSpace,
    fresh: pd.DataFrame,
    modes: Mapping[str, Region],
    *,
    exact: bool,
    seed: int,
) -> Slices | None:
    """Measure failure rates of every value of every attribute, in use and inside each mode, and confusions.

    Rates are of the control's probes, weighted to stand for use; their intervals, and the test of a value against all
    other items (`worse_values`), are about other items like these. A value is marked as worse if its p-value, adjusted
    for all values of all attributes, is below 0.05 and its interval is above the overall rate. A group by label is
    compared with the items of its label alone.

    Inside a mode, its fresh probes and all of the control's count, including those that helped to find it: all rates
    there may be equally too high. Compare them with each other. Confusions there come from the probes of its rate.

    Args:
        probes: as in probes.parquet.
        attributes: one row per item, in the order of `item_ids`, with columns of strings.
        fresh: probes drawn inside modes, as in fresh.parquet.
        exact: whether the grid was enumerated.

    Returns:
        None if items have no attributes, or there are no control probes.
    """
    control = probes[(probes["role"] == "control").to_numpy()]
    row = pd.Index(item_ids).get_indexer(control["item"])
    control, row = control[row >= 0], row[row >= 0]
    if not len(attributes.columns) or control.empty:
        return None
    asked = _Asked(control, row, seed, space)
    coded = {str(name): pd.factorize(attributes[name], sort=True) for name in attributes}
    weights, codes_of = asked.weights, [codes for codes, _ in coded.values()]
    p_values = worse_values(asked.failed, row, codes_of, seed, control.get("group"), weights)
    alike = {name: coded[LABEL][0] for name in coded if name.endswith(AND_LABEL) and LABEL in coded}
    for number, name in enumerate(coded):
        if name in alike:
            p_values[number] = _worse_within(asked, codes_of[number], alike[name])
    adjusted = np.split(holm(np.concatenate(p_values)), np.cumsum([len(p) for p in p_values])[:-1])
    cells = control[space.names].to_numpy(dtype=np.int64)
    inside, behind = {}, {}
    for mode, region in modes.items():
        own = fresh[(fresh["mode"] == mode).to_numpy() & (fresh["role"] != "others").to_numpy()]
        kept = region.contains(space, cells, attributes.iloc[row])
        behind[mode] = control[kept] if exact else own[(own["role"] == "measure").to_numpy()]
        rows = np.concatenate([row[kept], pd.Index(item_ids).get_indexer(own["item"])])
        there = pd.concat([control[kept], own], ignore_index=True)
        inside[mode] = asked._replace(probes=there, row=rows, space=space if exact else None)
    confusions = mode_confusions = None
    if LABEL in coded and _names_labels(control, labels := attributes[LABEL].set_axis(item_ids)):
        confusions = _confusions(control, labels)
        mode_confusions = {mode: _confusions(probes, labels) for mode, probes in behind.items()}
    return Slices(
        attributes=[
            AttributeSlices(
                attribute=name, missing=int((codes < 0).sum()), values=_slices(asked, codes, values, p, alike.get(name))
            )
            for (name, (codes, values)), p in zip(coded.items(), adjusted, strict=True)
        ],
        modes={
            mode: [
                AttributeRates(attribute=name, values=_rates(there, codes, values))
                for name, (codes, values) in coded.items()
            ]
            for mode, there in inside.items()
        },
    ).having(confusions=confusions, mode_confusions=mode_confusions)


def worse_values(
    failed: np.ndarray,
    row: np.ndarray,
    attributes: Sequence[np.ndarray],
    seed: int,
    groups: pd.Series | None = None,
    weights: np.ndarray | None = None,
) -> list[np.ndarray]:
    """One-sided p-values of values that fail no more often than all other items, from permutations of the items.

    Probes of one item are alike, so they are not independent evidence about a value: whole items, with all their
    probes, are permuted. With one probe per item this is Fisher's exact test (1935). It needs no model of how items
    differ, and is also valid for an enumerated grid. With more than 5,000 items, only as many items as have the value
    are drawn; if these are more than 200, their sum is assumed to be normal. If whole groups share an attribute's
    value, groups are permuted instead of items.

    Args:
        failed: (n,) whether each of the control's probes failed.
        row: (n,) the item of each.
        attributes: for each attribute (items,) the number of each item's value, from 0; -1 for none.
        groups: (n,) the group of each probe's item, if items belong to groups.
        weights: (n,) how much each probe counts; by default all alike.

    Returns:
        For each attribute, a p-value for each value; 1 for a value of no probe or of every probe.
    """
    if groups is not None:
        return _worse_by_group(failed, row, attributes, seed, groups, weights)
    asked, at = np.unique(row, return_inverse=True)
    weights = np.ones(len(failed)) if weights is None else weights
    # Failures beyond those expected of as many probes at the overall rate.
    excess = np.bincount(at, weights * (failed - np.average(failed, weights=weights)), len(asked))
    rng = np.random.default_rng(seed)
    if len(asked) > MOST_DEALT:
        return [
            np.array([_of_many(excess, codes[asked] == value, rng) for value in range(codes.max(initial=-1) + 1)])
            for codes in attributes
        ]
    groups = [_Groups.of(codes[asked], int(codes.max(initial=-1)) + 1) for codes in attributes]
    observed = [group.sums(excess[None])[0] - 1e-9 for group in groups]  # tolerance, so that equal sums count as equal
    above = [np.zeros(len(sums), dtype=np.int64) for sums in observed]
    step = 2_000_000 // len(asked)
    for start in range(0, DRAWS, step):
        dealt = rng.permuted(np.tile(excess, (min(step, DRAWS - start), 1)), axis=1)
        for number, group in enumerate(groups):
            above[number] += (group.sums(dealt) >= observed[number]).sum(axis=0)
    return [(1 + count) / (1 + DRAWS) for count in above]


def _worse_by_group(
    failed: np.ndarray,
    row: np.ndarray,
    attributes: Sequence[np.ndarray],
    seed: int,
    groups: pd.Series,
    weights: np.ndarray | None,
) -> list[np.ndarray]:
    """Compute the p-values of `worse_values` for items in groups."""
    _, first, group = np.unique(groups.to_numpy(dtype=str), return_index=True, return_inverse=True)
    found = []
    for codes in attributes:
        of_groups = codes[row[first]]
        if (of_groups[group] == codes[row]).all():
            [p_values] = worse_values(failed, group, [of_groups], seed, weights=weights)
        else:
            [p_values] = worse_values(failed, row, [codes], seed, weights=weights)
        values = int(codes.max(initial=-1)) + 1  # the last values may have no probes
        found.append(np.pad(p_values, (0, values - len(p_values)), constant_values=1.0))
    return found


def _worse_within(asked: _Asked, codes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the p-values of `worse_values` for one attribute, each value among the items (items,) of its label."""
    found = np.ones(int(codes.max(initial=-1)) + 1)
    for label in np.unique(labels[asked.row]):
        some, values = asked.some(labels[asked.row] == label), np.unique(codes[(labels == label) & (codes >= 0)])
        groups = some.probes.get("group")
        [p_values] = worse_values(some.failed, some.row, [codes], asked.seed, groups, some.weights)
        found[values] = p_values[values]
    return found


def _of_many(excess: np.ndarray, inside: np.ndarray, rng: np.random.Generator) -> float:
    """Compute the p-value of one value among very many items: its sum against that of as many drawn items.

    Args:
        excess: (items,), with mean 0.
        inside: (items,) whether each item has the value.
    """
    n, k = len(excess), int(inside.sum())
    observed = float(excess[inside].sum()) - 1e-9
    if k <= FEW:
        return float(1 + (rng.choice(excess, (DRAWS, k)).sum(axis=1) >= observed).sum()) / (1 + DRAWS)
    deviation = float(excess.std(ddof=1)) * sqrt(k * (n - k) / n)
    return 0.5 * erfc(observed / deviation / sqrt(2)) if deviation else 1.0


class _Groups(NamedTuple):
    """Items sorted by value: their order, and where each value begins and ends in it."""

    order: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, values: int) -> Self:
        order = np.argsort(codes, kind="stable")
        sides = (np.searchsorted(codes[order], np.arange(values), side) for side in ("left", "right"))
        return cls(order, *sides)

    def sums(self, of_items: np.ndarray) -> np.ndarray:
        """Sum numbers (k, items) by value: (k, values)."""
        running = np.cumsum(of_items[:, self.order], axis=1)
        running = np.concatenate([np.zeros((len(running), 1)), running], axis=1)
        return running[:, self.ends] - running[:, self.starts]


def _slices(
    asked: _Asked, codes: np.ndarray, values: Sequence[str], p_values: np.ndarray, labels: np.ndarray | None
) -> list[Slice]:
    overall = asked.rate().value
    found = []
    for rate, of, p in zip(_rates(asked, codes, values), range(len(values)), p_values.tolist(), strict=True):
        has = codes[asked.row] == of
        joint = asked.some(has).rate(joint_level(len(values)))
        others = ~has
        if labels is not None:
            others &= labels[asked.row] == labels[codes == of][0]
            overall = asked.some(others | has).rate().value
        rest = asked.some(others).rate().value if others.any() else None
        tested = rate.probes > 0 and rest is not None
        found.append(
            Slice(
                **rate.to_json(),
                joint=_bounds(joint),
                rest=rest,
                p=p if tested else None,
                worse=bool(tested and p < SIGNIFICANT and (rate.low or 0.0) > overall),
            )
        )
    return sorted(found, key=lambda one: -(one.rate or 0.0))


def _rates(asked: _Asked, codes: np.ndarray, values: Sequence[str]) -> list[SliceRate]:
    found = []
    for number, value in enumerate(values):
        part = asked.some(codes[asked.row] == number)
        rate = part.rate()._replace(n=len(part.failed)).of_probes
        found.append(SliceRate(value=value, items=len(np.unique(part.row)), failures=int(part.failed.sum()), **rate))
    return found


def worst_slice(attribute: str, one: Slice) -> str:
    """Describe the worst slice: "label 9: 48% fail, 95% interval 39% to 59%, all others 23%"."""
    others = "" if one.rest is None else f", {others_than(attribute)} {one.rest:.0%}"
    note = "" if one.worse else " (not significantly more than the others)"
    return f"{attribute} {one.value}: {one.rate:.0%} fail, 95% interval {one.low:.0%} to {one.high:.0%}{others}{note}"


def joint_level(values: int) -> float:
    """Return the level at which each of several intervals has to be for all to hold together with 95% (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, values)


def _bounds(rate: Rate) -> Bounds:
    record = RateRecord.from_rate(rate)
    return Bounds(low=record.low, high=record.high)


def _names_labels(control: pd.DataFrame, labels: pd.Series) -> bool:
    """Whether outputs name labels: those of passing probes equal the label, up to a probability at the end."""
    expected = labels.loc[control["item"]].to_numpy(dtype=object)
    passed = ~control["failed"].to_numpy(dtype=bool) & pd.notna(expected)
    if "valid" in control:
        passed &= control["valid"].to_numpy(dtype=bool)
    return bool(passed.sum() >= FEWEST_NAMED and (_named(control) == expected)[passed].mean() >= NAMES_LABEL)


def _named(probes: pd.DataFrame) -> np.ndarray:
    """Extract the labels that outputs name: (n,) strings."""
    return probes["output"].astype(str).str.replace(_PROBABILITY, "", regex=True).to_numpy(dtype=object)


def _confusions(probes: pd.DataFrame, labels: pd.Series) -> list[Confusion]:
    """Count which label was mistaken for which, most frequent first, if outputs name labels; see `_names_labels`."""
    expected = labels.loc[probes["item"]].to_numpy(dtype=object)
    table = pd.DataFrame({"label": expected, "output": _named(probes), "failed": probes["failed"].to_numpy(dtype=bool)})
    table = table[table["label"].notna()]
    of_label = table.groupby("label")["failed"].agg(["size", "sum"])
    wrong = table[table["failed"] & (table["output"] != table["label"])]
    counts = wrong.groupby(["label", "output"]).size().sort_values(ascending=False, kind="stable")
    return [
        Confusion(
            label=label,
            output=output,
            count=count,
            of_failures=count / int(of_label.loc[label, "sum"]),
            of_probes=count / int(of_label.loc[label, "size"]),
        )
        for (label, output), count in counts.head(MOST_CONFUSIONS).items()
    ]


def compare_slices(
    attributes: pd.DataFrame,
    item_ids: Sequence[str],
    items: np.ndarray,
    cells: np.ndarray,
    inside: np.ndarray,
    shares: np.ndarray,
    failed: Mapping[str, np.ndarray],
    groups: np.ndarray | None = None,
    use: np.ndarray | None = None,
    *,
    usage: Usage | None = None,
    resamples: int,
    seed: int,
) -> list[AttributeDifferences] | None:
    """Compare before and after for every value of every attribute, on the paired probes of its items.

    Within a value both strata, inside and outside the target modes, are weighted as in the grid. Intervals come from
    resampling its items, which may be few. A value is marked as worse if its failure rate rose significantly: the
    interval of the change is above 0, and Holm's test over all values of all attributes confirms it.

    Args:
        attributes: one row per item, in the order of `item_ids`, with columns of strings.
        items: (n,) item ids of the pairs.
        cells: (n, concepts).
        inside: (n,) whether the pair is in a target mode.
        shares: (items,) share of use that target modes cover for each item.
        failed: model -> (n,).
        groups: (n,) groups of the items; None if each item is its own group.
        use: (n,) weights of the pairs, see `use_of_pairs`; None if all count alike.
        resamples: minimum number of resamples of the items; joint intervals of many values need more.

    Returns:
        None if items have no attributes.
    """
    if not len(attributes.columns):
        return None
    row = pd.Index(item_ids).get_indexer(items)
    found: list[tuple[str, int, list[SliceDifference]]] = []
    rises: list[float] = []
    for name in attributes:
        codes, values = pd.factorize(attributes[name], sort=True)
        level = joint_level(len(values))
        differences = []
        for number, value in enumerate(values):
            of = codes[row] == number
            some = {model: answers[of] for model, answers in failed.items()}
            n = max(resamples, resamples_for(level, len(np.unique(items[of]))))
            covered = float(shares[codes == number].mean())
            own, some_use = (None if of_all is None else of_all[of] for of_all in (groups, use))
            paired = PairedAnswers(
                items[of], cells[of], inside[of], covered, some, own, some_use, usage=usage, resamples=n, seed=seed
            )
            everywhere = np.ones(int(of.sum()), dtype=bool)
            differences.append(
                SliceDifference(
                    **paired.difference().to_json(),
                    value=value,
                    items=len(np.unique(items[of])),
                    joint_after=_bounds(paired.rate("after", level=level)),
                    joint_change=_bounds(paired.change(level=level)),
                    p=None,
                    worse=False,
                )
            )
            rises.append(paired.p_rise(everywhere) if of.sum() >= MIN_PAIRS else np.nan)
        found.append((str(name), int((codes < 0).sum()), differences))
    tested = np.isfinite(rises)
    adjusted = np.full(len(rises), np.nan)
    adjusted[tested] = holm(np.array(rises)[tested])
    p_values = iter(adjusted.tolist())
    return [
        AttributeDifferences(
            attribute=name,
            missing=missing,
            values=sorted((_tested(one, next(p_values)) for one in values), key=lambda one: -(one.after or 0.0)),
        )
        for name, missing, values in found
    ]


def _tested(one: SliceDifference, p_value: float) -> SliceDifference:
    """Add the adjusted p-value of a rise; NaN if there were too few pairs for a test."""
    if np.isnan(p_value):
        return one
    risen = one.low is not None and one.low > 0 and p_value < (1 - LEVEL) / 2
    return one.model_copy(update={"p": p_value, "worse": risen})
