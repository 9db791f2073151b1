"""Failure rates of each kind of item in every cell, in which regions such as "label 9" are found.

The landscape is chosen and calibrated for the mean over all items, to which a weakness of one class in a hundredth of
the grid hardly adds. Boosted trees with an attribute beside the levels find it wherever there are probes. They only
estimate how the kinds differ around the landscape's rates, and the model is queried again in the regions found.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import prod
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from stages.concepts import ConceptSpace, Region
from stages.landscape.estimate import CellRates
from stages.landscape.pairs import UNKNOWN
from stages.tasks.contract import AND_LABEL

FEWEST_ITEMS = 5  # items with a value, for a region about it
CROSSED = 3.0  # t-statistic of a pair of values against all others of either, for a region about the pair
MOST_CROSSED = 12  # pairs of attributes that are searched
MOST_CATEGORIES = 255  # that scikit-learn's trees can tell apart without an order


@dataclass(frozen=True)
class Kind:
    """One attribute of the items, or two together.

    Args:
        attributes: their names, none for all items together.
        values: values of these attributes that at least five items have, but not all.
        having: (values, items) bool, whether each item has each value.
        rates: (values, cells) failure rates.
    """

    attributes: tuple[str, ...]
    values: Sequence[tuple[str, ...]]
    having: np.ndarray
    rates: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share of the items with each value, (values,)."""
        return self.having.mean(axis=1)

    def rows(self, region: Region) -> list[int]:
        """Return which values a region allows that has conditions on no other attributes."""
        at = {name: self.attributes.index(name) for name in region.items}
        return [
            k for k, own in enumerate(self.values) if all(own[at[name]] in some for name, some in region.items.items())
        ]


@dataclass(frozen=True)
class Rates:
    """Failure rates of cells, for all items together and for each kind of item.

    Args:
        cells: (n, concepts) level indices, all that occur in use or a sample.
        use: (n,) share of use of each, or of what it stands for.
        attributes: attributes of the items, one row each.
        kinds: first all items together, without an attribute; then each attribute with a value shared by enough items,
            and each two attributes with values that fail together.
    """

    space: ConceptSpace
    cells: np.ndarray
    use: np.ndarray
    attributes: pd.DataFrame
    kinds: tuple[Kind, ...]

    @classmethod
    def of_cells(cls, space: ConceptSpace, cells: np.ndarray, rates: np.ndarray, use: np.ndarray | None = None) -> Self:
        """Create the rates (n,) of cells (n, concepts) for all items together, by default equally common."""
        use = np.full(len(cells), 1 / len(cells)) if use is None else use
        return cls(space, cells, use, UNKNOWN, (_everything(1, rates),))

    def rate(self, region: Region) -> float:
        """Mean rate in a region; 0 if it contains no cells, or items whose rate is unknown."""
        inside = region.in_box(self.space, self.cells)
        if self.use[inside].sum() <= 0:
            return 0.0
        kind = self._kind(region)
        rows = kind.rows(region)
        if region.items and kind.having[rows].sum() < region.about(self.attributes).sum():
            return 0.0
        means = np.average(kind.rates[rows][:, inside], axis=1, weights=self.use[inside])
        return float(np.average(means, weights=kind.share[rows]))

    def share(self, region: Region) -> float:
        """Share of use of a region, over all items."""
        return region_size(self.space, region, self.attributes) / len(self.attributes)

    def within(self, region: Region) -> Self:
        """Restrict the rates to the cells of a region, and if it is about some items, to their kinds, its own first."""
        inside = region.in_box(self.space, self.cells)
        kinds = []
        for kind in self.kinds:
            if set(region.items) <= set(kind.attributes) and (rows := kind.rows(region)):
                values = [kind.values[row] for row in rows]
                kinds.append(Kind(kind.attributes, values, kind.having[rows], kind.rates[rows][:, inside]))
        return replace(self, cells=self.cells[inside], use=self.use[inside], kinds=tuple(kinds))

    def _kind(self, region: Region) -> Kind:
        return next(kind for kind in self.kinds if kind.attributes == tuple(region.items))

    def free(self, kind: Kind, regions: Sequence[Region]) -> np.ndarray:
        """Share of the items of each value that are in none of the regions, in each cell: (values, cells)."""
        if not regions:
            return np.ones(kind.rates.shape)
        about, which = np.unique([r.about(self.attributes) for r in regions], axis=1, return_inverse=True)
        boxes = np.array([region.in_box(self.space, self.cells) for region in regions])
        held = np.array([boxes[alike].any(axis=0) for alike in about.T])  # per set of items in the same regions
        alike = np.eye(len(held))[which.ravel()]
        return 1.0 - (kind.having @ alike / kind.having.sum(axis=1, keepdims=True)) @ held


def region_size(space: ConceptSpace, region: Region, attributes: pd.DataFrame) -> float:
    """Share of use in a region's cells, times the number of items it covers; they count as one if nothing is known."""
    return int(region.about(attributes).sum()) * region.share(space)


def rates_of(landscape: CellRates, space: ConceptSpace, probes: pd.DataFrame, attributes: pd.DataFrame) -> Rates:
    """Compute the rates of a landscape, for all items and for each kind."""
    cells = landscape.cells(space)
    kinds = [_everything(len(attributes), landscape.rates)]
    for names, values, code in [*_single(attributes), *_crossed(probes, attributes)]:
        having = np.stack([code == number for number in range(len(values))])
        if landscape.answers is not None:
            rates = having @ landscape.answers / having.sum(axis=1, keepdims=True)
        else:
            of_probes = pd.Series(code, attributes.index).loc[probes["item"]].to_numpy()
            learnt = _learn(probes, of_probes % (len(values) + 1), len(values) + 1, space, cells)
            share = np.append(having.mean(axis=1), 1 - having.any(axis=0).mean())
            rates = np.clip(landscape.rates + learnt[:-1] - share @ learnt, 0, 1)
        kinds.append(Kind(names, values, having, rates.astype(np.float32)))
    return Rates(space, cells, landscape.use, attributes, tuple(kinds))


def _everything(items: int, rates: np.ndarray) -> Kind:
    return Kind((), [()], np.ones((1, items), dtype=bool), rates[None])


class _Coded(NamedTuple):
    """Attributes, the values that a kind has, and the number of each item's value, -1 for any other: (items,)."""

    names: tuple[str, ...]
    values: Sequence[tuple[str, ...]]
    code: np.ndarray


def _single(attributes: pd.DataFrame) -> Iterator[_Coded]:
    for name in attributes:
        counts = attributes[name].value_counts()
        if values := sorted(counts.index[(counts >= FEWEST_ITEMS) & (counts < len(attributes))]):
            yield _Coded((str(name),), [(v,) for v in values], pd.Index(values).get_indexer(attributes[name]))


def _crossed(probes: pd.DataFrame, attributes: pd.DataFrame) -> list[_Coded]:
    """Return two attributes if items with some pair of values fail more often than all others with either of them.

    Both must be so by Welch's t-statistic (1947) of the items' shares of failures among the control's probes, so that
    few attributes are searched together: at most the 12 pairs where it is highest. Attributes that already name two
    (`AND_LABEL`) are crossed with no other.
    """
    failed = probes[probes["role"] == "control"].groupby("item")["failed"].mean().reindex(attributes.index).to_numpy()
    names = [str(name) for name in attributes if not str(name).endswith(AND_LABEL)]
    crossed = []
    for pair in combinations(names, 2):
        (one, of_one), (other, of_other) = (pd.factorize(attributes[name], sort=True) for name in pair)
        both, shape = (one >= 0) & (other >= 0), (len(of_one), len(of_other))
        known = both & ~np.isnan(failed)
        at = np.ravel_multi_index((one[known], other[known]), shape)
        powers = np.stack([np.bincount(at, failed[known] ** k, prod(shape)).reshape(shape) for k in range(3)])
        found, least = powers[0] >= FEWEST_ITEMS, np.full(shape, np.inf)
        for axis in (1, 2):
            rest = powers.sum(axis=axis, keepdims=True) - powers
            with np.errstate(all="ignore"):  # one value alone compares with nothing: not a number
                t = stats.ttest_ind_from_stats(*_moments(powers), *_moments(rest), equal_var=False).statistic
            least = np.minimum(least, np.where(found, np.nan_to_num(t, nan=0.0), 0.0))
        if least.max() > CROSSED:
            values = [(str(of_one[i]), str(of_other[j])) for i, j in np.argwhere(found)]
            code = np.full(shape, -1)
            code[found] = np.arange(len(values))
            crossed.append((least.max(), _Coded(pair, values, np.where(both, code[one, other], -1))))
    return [coded for _, coded in sorted(crossed, key=lambda one: -one[0])[:MOST_CROSSED]]


def _moments(powers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, standard deviation and count of groups, given their sums of the powers 0, 1 and 2: (3, ...)."""
    n, mean = powers[0], powers[1] / powers[0]
    return mean, np.sqrt(np.maximum(powers[2] / n - mean**2, 0) * n / (n - 1)), n


def _learn(probes: pd.DataFrame, kind: np.ndarray, kinds: int, space: ConceptSpace, cells: np.ndarray) -> np.ndarray:
    """Estimate failure rates (kinds, cells) with boosted trees, from probes that each have a kind, (n,) numbers from 0.

    All items of a kind have equal weights: an explorer probes most the items that fail most, and no kind consists only
    of these. The cells it chose matter little, because trees predict a cell from the probes near it.
    """
    failed = probes["failed"].to_numpy(dtype=bool)
    if failed.all() or not failed.any():
        return np.full((kinds, len(cells)), float(failed.mean()))
    of_kind = probes["item"].groupby(kind)
    of_item = probes["item"].groupby(probes["item"].to_numpy())
    weights = of_kind.transform("size") / of_kind.transform("nunique") / of_item.transform("size")
    with threadpool_limits(1):  # a second thread spins more than it computes, as in `estimate`
        trees = HistGradientBoostingClassifier(
            max_iter=60,
            max_leaf_nodes=8,
            min_samples_leaf=10,
            early_stopping=False,
            categorical_features=[0] if kinds <= MOST_CATEGORIES else None,
            random_state=0,
        ).fit(np.column_stack([kind, probes[space.names]]), failed, sample_weight=weights.to_numpy())
        return np.stack([trees.predict_proba(np.insert(cells, 0, k, axis=1))[:, 1] for k in range(kinds)])
