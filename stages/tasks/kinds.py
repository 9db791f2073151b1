"""Unnamed kinds of items: clusters of their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.core.errors import UsageError

KIND = "kind"  # the name of the attribute


@dataclass(frozen=True)
class Kinds:
    """Clusters of items by k-means (Lloyd 1982).

    Args:
        centres: (k, d).
        names: name of each kind, after the item nearest to its centre: "like item 17 (label 9)".
        nearest: by name of a kind, its items, those nearest to the centre first.
    """

    centres: np.ndarray
    names: list[str]
    nearest: dict[str, list[str]]

    @classmethod
    def of(cls, item_ids: Sequence[str], vectors: np.ndarray, labels: Sequence[str | None], count: int) -> Kinds:
        """Find `count` kinds; the result depends only on the items, not on the seed of the audit.

        Args:
            item_ids: n ids.
            vectors: (n, d) what explorers see of them.
            labels: n labels, None for an item without one.
            count: number of kinds.

        Raises:
            UsageError: if the items do not differ enough.
        """
        from sklearn.cluster import KMeans
        from threadpoolctl import threadpool_limits

        vectors = vectors.astype(float)
        if (distinct := len(np.unique(vectors, axis=0))) < count:
            raise UsageError(
                f"summarize.clusters: found {count} kinds to sort the discover items into, whose embeddings take"
                f" {distinct} different value{'s' if distinct != 1 else ''}; expected as many at least (0 for no kinds)"
            )
        with threadpool_limits(1):  # so that sums do not depend on the number of cores
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
        """Return the kind of n items of any split, the one with the centre nearest to each vector (n, d)."""
        from sklearn.metrics import pairwise_distances_argmin

        return [self.names[kind] for kind in pairwise_distances_argmin(vectors.astype(float), self.centres)]
