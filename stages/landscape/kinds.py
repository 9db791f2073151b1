"""Failure rates of each kind of item in every cell: what a region about "label 9" is found in.

The landscape is chosen and calibrated for the mean over all items, to which a weakness of one class in a hundredth of
the grid hardly adds. Boosted trees that see an attribute beside the levels find it wherever probes do. They only say by
how much the kinds differ, around the rates of the landscape; and what is found there is put to the model again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from stages.concepts import ConceptSpace, Region
from stages.landscape.estimate import Landscape
from stages.landscape.pairs import UNKNOWN

FEWEST_ITEMS = 5  # of a value that a region may be about


@dataclass(frozen=True)
class Kind:
    """One attribute of the items.

    Args:
        attribute: its name, "" of all items together.
        values: those that at least five items have, but not all.
        having: (values, items) bool, which items have each.
        rates: (values, cells) failure rates.
    """

    attribute: str
    values: list[str]
    having: np.ndarray
    rates: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Share of the items that have each value, (values,)."""
        return self.having.mean(axis=1)


@dataclass(frozen=True)
class Rates:
    """Failure rates of cells, for all items together and for each kind of them.

    Args:
        space: the grid.
        cells: (n, concepts) level indices, all of the grid or a uniform sample.
        attributes: a row an item.
        kinds: first all items as one, of no attribute; then each attribute of which enough items have a value.
    """

    space: ConceptSpace
    cells: np.ndarray
    attributes: pd.DataFrame
    kinds: tuple[Kind, ...]

    @classmethod
    def of_cells(cls, space: ConceptSpace, cells: np.ndarray, rates: np.ndarray) -> Rates:
        """Rates (n,) of cells (n, concepts), whatever the items."""
        return cls(space, cells, UNKNOWN, (Kind("", [""], np.ones((1, 1), dtype=bool), rates[None]),))

    def rate(self, region: Region) -> float:
        """Mean rate in a region about values of one attribute or about all items; 0 where it holds nothing."""
        inside = region.in_box(self.space, self.cells)
        if not inside.any():
            return 0.0
        attribute, values = next(iter(region.items.items()), ("", ("",)))
        kind = next(kind for kind in self.kinds if kind.attribute == attribute)
        rows = [kind.values.index(value) for value in values]
        return float(np.average(kind.rates[rows][:, inside].mean(axis=1), weights=kind.share[rows]))

    def share(self, region: Region) -> float:
        """Share of all pairs of item and cell that lie in a region."""
        return size(self.space, region, self.attributes) / (len(self.attributes) * self.space.n_cells)

    def within(self, region: Region) -> Rates:
        """The cells of a region, and whose failures there may be told from the others': of the items it is about."""
        inside = region.in_box(self.space, self.cells)
        kinds = [replace(kind, rates=kind.rates[:, inside]) for kind in self.kinds]
        if region.items:
            [(attribute, values)] = region.items.items()
            kind = next(kind for kind in kinds if kind.attribute == attribute)
            rows = [kind.values.index(value) for value in values]
            kinds = [Kind(attribute, list(values), kind.having[rows], kind.rates[rows])]
        return replace(self, cells=self.cells[inside], kinds=tuple(kinds))

    def free(self, kind: Kind, regions: Sequence[Region]) -> np.ndarray:
        """Share of the items of each value that none of the regions holds, in each cell: (values, cells)."""
        if not regions:
            return np.ones(kind.rates.shape)
        about, which = np.unique([r.about(self.attributes) for r in regions], axis=1, return_inverse=True)
        boxes = np.array([region.in_box(self.space, self.cells) for region in regions])
        held = np.array([boxes[alike].any(axis=0) for alike in about.T])  # by items that the same regions are about
        alike = np.eye(len(held))[which.ravel()]
        return 1.0 - (kind.having @ alike / kind.having.sum(axis=1, keepdims=True)) @ held


def size(space: ConceptSpace, region: Region, attributes: pd.DataFrame = UNKNOWN) -> int:
    """Number of pairs of item and cell in a region; of cells, where nothing is known of the items."""
    return int(region.about(attributes).sum()) * region.n_cells(space)


def rates_of(landscape: Landscape, space: ConceptSpace, probes: pd.DataFrame, attributes: pd.DataFrame) -> Rates:
    """The rates of a landscape, of all items and of each kind.

    Args:
        landscape: of the probes.
        space: the grid.
        probes: as in probes.parquet.
        attributes: of the items, a row each by their ids.
    """
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
    return Rates(space, cells, attributes, tuple(kinds))


def _learn(probes: pd.DataFrame, kind: np.ndarray, kinds: int, space: ConceptSpace, cells: np.ndarray) -> np.ndarray:
    """Failure rates (kinds, cells) by boosted trees, from probes each of one kind, (n,) numbers from 0.

    The items of a kind count alike: an explorer asks most about those that fail most, and no kind is made of these
    alone. In which cells it asked matters little, as what trees say of a place depends on the probes there.
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
