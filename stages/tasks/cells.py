"""Which items under which cells a repair learns from: those of its targets, or those where the search would look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.errors import UsageError
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import RepairPlan, TargetMode

CANDIDATES = 8  # cells drawn for each one that is trained on
DRAWN = 64  # cells that the policy draws for each item
FOCUS = 0.25  # of what is learnt by the policy, the least that lies in the targets


class Sampler(Protocol):
    """Draws what a repair learns from."""

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw n pairs: rows of items (n,) and cells (n, d) int64."""
        ...


def sampler(task: LoadedTask, plan: RepairPlan, items: Sequence[str]) -> Sampler:
    """What a plan asks a repair to learn from: pairs of these items and cells.

    Raises:
        UsageError: see `RepairPlan.regions` and `PairSampler`.
    """
    boxes = PairSampler(task.concepts, plan.regions(task.concepts), known_attributes(task, items))
    if plan.policy is None or plan.control is not None:
        return boxes
    return PolicySampler(boxes, plan.policy.sample(task.embed(items), DRAWN, plan.seed), plan.spared)


class PairSampler:
    """Draws what to train on: rows of items, each under a cell of a target.

    Of a target that is about some items only every other row is about the others, in the same cells: a model that sees
    one class alone fail learns to name that class.

    Args:
        space: the grid.
        targets: where to draw, each in proportion to its severity.
        attributes: what tells the items apart, a row each.
        risk: cells (n, d) -> (n,) failure risk to weight cells by; None weights all alike.

    Raises:
        UsageError: when there is no item that a target is about.
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
        """See `Sampler`."""
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
    """Draws where the search's policy looks: rows of items, each under one of the cells it draws for this very item.

    The policy goes where the model fails most, whichever modes people chose. So what it draws in modes that people
    spared is left out, and each target is seen to get its share, by severity, of `FOCUS` of the pairs: where the policy
    looks too seldom, more of its own pairs inside are drawn, or any pairs of a target where it never looks.

    Args:
        boxes: draws from the targets.
        drawn: (items, k, d) cells that the policy draws for each item.
        spared: regions in which nothing is learnt, but where a target overlaps them.
    """

    def __init__(self, boxes: PairSampler, drawn: np.ndarray, spared: Sequence[Region] = ()) -> None:
        self.boxes = boxes
        cells, rows = drawn.reshape(-1, drawn.shape[2]), np.repeat(np.arange(len(drawn)), drawn.shape[1])
        items = boxes.attributes.iloc[rows]

        def lies_in(region: Region) -> np.ndarray:
            return region.contains(boxes.space, cells, items)

        inside = np.array([lies_in(target.region) for target in boxes.targets])
        kept = inside.any(axis=0) | ~np.any([np.zeros(len(cells), dtype=bool), *map(lies_in, spared)], axis=0)
        self._pairs = [(rows[mask], cells[mask]) for mask in (*inside, kept)]  # of each target, and of all that is kept
        own = inside[:, kept].mean(axis=1) if kept.any() else np.zeros(len(inside))
        lacking = np.clip(FOCUS * boxes.share - own, 0, None)
        self._share = np.append(lacking, 1 - lacking.sum()) if kept.any() else np.append(boxes.share, 0.0)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See `Sampler`."""
        return _mixed([self._of(part, count, rng) for part, count in enumerate(rng.multinomial(n, self._share))], rng)

    def _of(self, part: int, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        rows, cells = self._pairs[part]
        if n == 0 or not len(rows):
            return self.boxes.of(min(part, len(self.boxes.targets) - 1), n, rng)
        # Items alike, however many pairs there are of each; rows are in the order of items.
        asked = np.resize(rng.permutation(np.unique(rows)), n)
        first, end = np.searchsorted(rows, asked), np.searchsorted(rows, asked, side="right")
        return asked, cells[rng.integers(first, end)]


def _mixed(parts: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of all parts, in any order."""
    rows, cells = (np.concatenate(side) for side in zip(*parts, strict=True))
    order = rng.permutation(len(rows))
    return rows[order], cells[order]
