"""Failure rates of each kind of item in every cell, in which regions such as "label 9" are found.

The landscape is chosen and calibrated for the mean over all items, to which a weakness of one class in a hundredth of
the grid hardly adds. Boosted trees with an attribute beside the levels find it wherever there are probes. They only
estimate how the kinds differ around the landscape's rates, and the model is queried again in the regions found.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from stages.concepts import ConceptSpace, Region
from stages.landscape.estimate import CellRates
from stages.landscape.pairs import UNKNOWN

FEWEST_ITEMS = 5  # items with a value, for a region about it


@dataclass(frozen=True)
class Kind:
    """One attribute of the items.

    Args:
        attribute: its name, "" for all items together.
        values: values that at least five items have, but not all.
        having: (values, items) bool, whether each item has each value.
        rates: (values, cells) failure rates.
    """

    attribute: str
    values: list[str]
    having: np.ndarray
    rates: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share of the items with each value, (values,)."""
        return self.having.mean(axis=1)


@dataclass(frozen=True)
class Rates:
    """Failure rates of cells, for all items together and for each kind of item.

    Args:
        cells: (n, concepts) level indices, all that occur in use or a sample.
        use: (n,) share of use of each, or of what it stands for.
        attributes: attributes of the items, one row each.
        kinds: first all items together, without an attribute; then each attribute with a value shared by enough items.
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
        return cls(space, cells, use, UNKNOWN, (Kind("", [""], np.ones((1, 1), dtype=bool), rates[None]),))

    def rate(self, region: Region) -> float:
        """Mean rate in a region about values of one attribute or about all items; 0 if it contains no cells."""
        inside = region.in_box(self.space, self.cells)
        if self.use[inside].sum() <= 0:
            return 0.0
        attribute, values = next(iter(region.items.items()), ("", ("",)))
        kind = next(kind for kind in self.kinds if kind.attribute == attribute)
        rows = [kind.values.index(value) for value in values]
        means = np.average(kind.rates[rows][:, inside], axis=1, weights=self.use[inside])
        return float(np.average(means, weights=kind.share[rows]))

    def share(self, region: Region) -> float:
        """Share of use of a region, over all items."""
        return region_size(self.space, region, self.attributes) / len(self.attributes)

    def within(self, region: Region) -> Self:
        """Restrict the rates to the cells of a region, and if it is about some items, to the kinds of these items."""
        inside = region.in_box(self.space, self.cells)
        kinds = [replace(kind, rates=kind.rates[:, inside]) for kind in self.kinds]
        if region.items:
            [(attribute, values)] = region.items.items()
            kind = next(kind for kind in kinds if kind.attribute == attribute)
            rows = [kind.values.index(value) for value in values]
            kinds = [Kind(attribute, list(values), kind.having[rows], kind.rates[rows])]
        return replace(self, cells=self.cells[inside], use=self.use[inside], kinds=tuple(kinds))

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
    kinds = [Kind("", [""], np.ones((1, len(attributes)), dtype=bool), landscape.rates[None])]
    for name in attributes:
        counts = attributes[name].value_counts()
        if values := sorted(counts.index[(counts >= FEWEST_ITEMS) & (counts < len(attributes))]):
            having = np.stack([(attributes[name] == value).to_numpy() for value in values])
            if landscape.answers is not None:
                rates = having @ landscape.answers / having.sum(axis=1, keepdims=True)
            else:
                code = pd.Index(values).get_indexer(attributes[name].loc[probes["item"]])
                learnt = _learn(probes, code % (len(values) + 1), len(values) + 1, space, cells)
                share = np.append(having.mean(axis=1), 1 - having.any(axis=0).mean())
                rates = np.clip(landscape.rates + learnt[:-1] - share @ learnt, 0, 1)
            kinds.append(Kind(str(name), values, having, rates.astype(np.float32)))
    return Rates(space, cells, landscape.use, attributes, tuple(kinds))


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
            categorical_features=[0],
            random_state=0,
        ).fit(np.column_stack([kind, probes[space.names]]), failed, sample_weight=weights.to_numpy())
        return np.stack([trees.predict_proba(np.insert(cells, 0, k, axis=1))[:, 1] for k in range(kinds)])
