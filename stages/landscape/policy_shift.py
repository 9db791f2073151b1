"""Compare the levels at which the search's policy looks before and after the repair, concept by concept.

The paper shows the policy's actions over the landscape beside the failures. Here they are compared per concept, because
people act on where to look for the next failures.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

from stages.concepts import Concept, ConceptSpace
from stages.landscape.shift import spread, transport
from stages.records.repair import PolicyShift

SPLITS = 20  # random splits of the items, for the noise floor: they need no queries, so more than for landscapes


def policy_shift(space: ConceptSpace, drawn: pd.DataFrame, seed: int) -> list[PolicyShift]:
    """Compare the cells drawn by the policies learnt before and after the repair; empty without policies.

    Distances are optimal transport in the concept's coordinates. 1 is its whole range; for unordered levels it is any
    level to any other, so the distance is the total variation.

    Args:
        space: the grid.
        drawn: as in re_evaluate's policies.parquet, with the same number of rows per item.
        seed: seed of the splits. The noise floor is the distance of the policy before to itself on two halves of the
            items, which overstates noise, as each has half of the items. Another training may differ by more.
    """
    if drawn.empty:
        return []
    before, after = (drawn[drawn["model"] == model] for model in ("before", "after"))
    codes, ids = pd.factorize(before["item"])
    rng = np.random.default_rng(seed)
    halves = [(rng.permutation(len(ids)) < (len(ids) + 1) // 2)[codes] for _ in range(SPLITS if len(ids) > 1 else 0)]
    found = []
    for concept in space.concepts:
        cost = _cost(concept)
        levels = before[concept.name].to_numpy(dtype=np.int64)
        old, new = _shares(concept, levels), _shares(concept, after[concept.name].to_numpy(dtype=np.int64))
        moved = transport(cost, old, new)
        chance = [transport(cost, _shares(concept, levels[half]), _shares(concept, levels[~half])) for half in halves]
        found.append(
            PolicyShift(
                concept=concept.name,
                before=old.tolist(),
                after=new.tolist(),
                mean_before=_mean(concept, old),
                mean_after=_mean(concept, new),
                distance=moved,
                noise_floor=spread(chance),
                beyond_noise=moved > max(chance) if chance else None,
            )
        )
    return found


def _cost(concept: Concept) -> np.ndarray:
    """Return the distances between the levels of a concept."""
    points = ConceptSpace((concept,)).coordinates(np.arange(len(concept))[:, None])
    return cdist(points, points)


def _shares(concept: Concept, levels: np.ndarray) -> np.ndarray:
    return np.bincount(levels, minlength=len(concept)) / len(levels)


def _mean(concept: Concept, shares: np.ndarray) -> float | None:
    """Return the mean level, if levels are numbers."""
    numbers = [level for level in concept.levels if isinstance(level, int | float)]
    return float(shares @ numbers) if concept.ordered and len(numbers) == len(concept) else None
