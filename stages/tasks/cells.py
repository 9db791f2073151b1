"""Samplers of a repair's training pairs (item, cell), from its target modes or from the search's policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.core.errors import UsageError
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import RepairPlan, TargetMode

CANDIDATES = 8  # cells drawn for each one that is trained on
DRAWN = 64  # cells the policy draws for each item
FOCUS = 0.25  # of the pairs drawn by the policy, the minimum share inside the targets


class Sampler(Protocol):
    """Draws training pairs for a repair."""

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pairs: rows of items (n,) and cells (n, d) int64."""
        ...


def sampler(task: LoadedTask, plan: RepairPlan, items: Sequence[str]) -> Sampler:
    """Return the sampler that a plan asks for: pairs of these items and cells.

    Raises:
        UsageError: see `RepairPlan.regions` and `PairSampler`.
    """
    boxes = PairSampler(task.concepts, plan.regions(task.concepts), known_attributes(task, items))
    if plan.policy is None or plan.control is not None:
        return boxes
    return PolicySampler(boxes, plan.policy.sample(task.embed(items), DRAWN, plan.seed), plan.spared)


class PairSampler:
    """Draws training pairs from the targets: rows of items, each with a cell of a target.

    If a target is about only some items, every other row is one of the remaining items, in the same cells: a model that
    sees only one class in these cells learns to always answer that class.

    Args:
        space: the grid.
        targets: where to draw, in proportion to severity.
        attributes: attributes of the items, one row each.
        risk: cells (n, d) -> (n,) failure risk by which cells are weighted; None weights all alike.

    Raises:
        UsageError: if a target is about none of the items.
    """

    def __init__(
        self,
        space: ConceptSpace,
        targets: Sequence[TargetMode],
        attributes: pd.DataFrame,
        risk: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        self.space, self.targets, self.risk, self._items = space, targets, risk, np.arange(len(attributes))
        self.attributes = attributes
        self.rows = [np.flatnonzero(target.region.about(attributes)) for target in targets]
        if none := [t for t, rows in zip(targets, self.rows, strict=True) if not len(rows)]:
            raise UsageError(
                f"{none[0].id} ({none[0].region.describe(space)}) is about none of the {len(attributes)} items that the"
                " repair learns from: add items (prepare.items.repair), or choose other modes"
            )
        severity = np.array([t.severity for t in targets], dtype=float)
        self.share = severity / severity.sum()

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return _mixed([self.of(number, k, rng) for number, k in enumerate(rng.multinomial(n, self.share))], rng)

    def of(self, number: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pairs of one target."""
        return self._rows(number, n, rng), self._cells(number, n, rng)

    def _rows(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        rows = self.rows[number]
        others = np.setdiff1d(self._items, rows)
        half = n // 2 if len(others) else 0
        sides = (np.resize(rng.permutation(side), count) for side, count in ((rows, n - half), (others, half)))
        return rng.permutation(np.concatenate([*sides]))

    def _cells(self, number: int, n: int, rng: np.random.Generator) -> np.ndarray:
        region = self.targets[number].region
        if self.risk is None or n == 0:
            return region.sample(self.space, n, rng)
        candidates = region.sample(self.space, CANDIDATES * n, rng)
        weights = self.risk(candidates)
        return candidates[rng.choice(len(candidates), size=n, replace=False, p=weights / weights.sum())]


class PolicySampler:
    """Draws training pairs from the search's policy: rows of items, each with a cell the policy drew for that item.

    The policy prefers cells where the model fails most, whichever modes people chose. So pairs in spared modes are left
    out, and each target gets at least its share, by severity, of `FOCUS` of the pairs. If the policy draws too few
    pairs in a target, more of those are repeated; if it draws none, they come from the target at random.

    Args:
        boxes: draws from the targets.
        drawn: (items, k, d) cells that the policy draws for each item; those that never occur in use are left out.
        spared: regions to leave out, except where a target overlaps them.
    """

    def __init__(self, boxes: PairSampler, drawn: np.ndarray, spared: Sequence[Region] = ()) -> None:
        self.boxes = boxes
        cells, rows = drawn.reshape(-1, drawn.shape[2]), np.repeat(np.arange(len(drawn)), drawn.shape[1])
        items = boxes.attributes.iloc[rows]

        def lies_in(region: Region) -> np.ndarray:
            return region.contains(boxes.space, cells, items)

        inside = np.array([lies_in(target.region) for target in boxes.targets])
        occurs = boxes.space.density(cells) > 0
        inside = inside & occurs
        spare = np.any([np.zeros(len(cells), dtype=bool), *map(lies_in, spared)], axis=0)
        kept = inside.any(axis=0) | (occurs & ~spare)
        self._pairs = [(rows[mask], cells[mask]) for mask in (*inside, kept)]  # of each target, and of all kept pairs
        own = inside[:, kept].mean(axis=1) if kept.any() else np.zeros(len(inside))
        lacking = np.clip(FOCUS * boxes.share - own, 0, None)
        self._share = np.append(lacking, 1 - lacking.sum()) if kept.any() else np.append(boxes.share, 0.0)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return _mixed([self._of(part, count, rng) for part, count in enumerate(rng.multinomial(n, self._share))], rng)

    def _of(self, part: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows, cells = self._pairs[part]
        if n == 0 or not len(rows):
            return self.boxes.of(min(part, len(self.boxes.targets) - 1), n, rng)
        # Weight items equally, however many pairs each has; rows are in the order of items.
        asked = np.resize(rng.permutation(np.unique(rows)), n)
        first, end = np.searchsorted(rows, asked), np.searchsorted(rows, asked, side="right")
        return asked, cells[rng.integers(first, end)]


def _mixed(parts: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate the pairs of all parts and shuffle them."""
    rows, cells = (np.concatenate(side) for side in zip(*parts, strict=True))
    order = rng.permutation(len(rows))
    return rows[order], cells[order]
