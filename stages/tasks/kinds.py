"""Kinds of items that nobody has named: clusters of what explorers see of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.errors import UsageError

KIND = "kind"  # the name of the attribute


@dataclass(frozen=True)
class Kinds:
    """Clusters of items by k-means (Lloyd 1982).

    Args:
        centres: (k, d).
        names: of each kind, by the item nearest to its centre: "like item 17 (label 9)".
        nearest: of each kind, by its name, the items nearest to its centre first.
    """

    centres: np.ndarray
    names: list[str]
    nearest: dict[str, list[str]]

    @classmethod
    def of(cls, item_ids: Sequence[str], vectors: np.ndarray, labels: Sequence[str | None], count: int) -> Kinds:
        """Find so many kinds; the same ones for the same items, whatever the seed of the audit.

        Args:
            item_ids: n ids.
            vectors: (n, d) what explorers see of them.
            labels: n labels, None where there is none.
            count: how many kinds.

        Raises:
            UsageError: when the items do not differ enough.
        """
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        vectors = vectors.astype(float)
        if (distinct := len(np.unique(vectors, axis=0))) < count:
            raise UsageError(
                f"summarize.clusters: found {count} kinds to sort the discover items into, whose embeddings take"
                f" {distinct} different value{'s' if distinct != 1 else ''}; expected as many at least (0 for no kinds)"
            )
        with threadpool_limits(1):  # sums are the same on any number of cores
            found = KMeans(count, n_init=10, random_state=0).fit(vectors)
            distances = found.transform(vectors)
        names, nearest = [], {}
        for kind in range(count):
            order = np.argsort(distances[:, kind], kind="stable")
            members = order[distances[order].argmin(axis=1) == kind]
            label = labels[members[0]]
            names.append(f"like item {item_ids[members[0]]}" + ("" if label is None else f" (label {label})"))
            nearest[names[-1]] = [item_ids[member] for member in members]
        return cls(found.cluster_centers_, names, nearest)

    def __call__(self, vectors: np.ndarray) -> list[str]:
        """The kinds of n items of any split, by the centre nearest to the vector (n, d) of each."""
        from sklearn.metrics import pairwise_distances_argmin

        return [self.names[kind] for kind in pairwise_distances_argmin(vectors.astype(float), self.centres)]
