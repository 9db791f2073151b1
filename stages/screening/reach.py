"""How far ranges have to reach: levels made stronger until something fails, or the concept's own end is reached.

Each concept alone, on a few items that are right unchanged: its strongest level, twice that, four times, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stages.concepts import Level
from stages.ledger import Ledger
from stages.screening.probes import Levels, Probes
from stages.screening.ranges import Axis, declared_bounds
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute

ITEMS = 6  # that are right unchanged, and asked again at each strength
_FAILS = 2  # of them: then a level is strong enough
_LOOKED_AT = 2 * ITEMS  # unchanged, to find those


@dataclass(frozen=True)
class Reach:
    """How far ranges reach.

    Args:
        levels: of all concepts, those that were too mild made stronger.
        probes: unique probes spent.
        said: what was changed and why, a line each.
    """

    levels: dict[str, list[Level]]
    probes: int
    said: Sequence[str] = ()


def reach(
    load: Callable[[Levels], LoadedTask],
    levels: Levels,
    budget: int,
    *,
    ledger: Callable[[Levels], Ledger] = lambda _levels: Ledger(),
    compute: Compute | None = None,
    tell: Callable[[int, str], None] = lambda _spent, _note: None,
) -> Reach:
    """Widen ranges within which nothing fails.

    Args:
        load: loads the task with other levels of its concepts.
        levels: as they are.
        budget: unique probes at most; what they do not suffice for stays as it is.
        ledger: opens the answers to probes of a grid.
        compute: threads and batch size of the model.
        tell: called with (unique probes spent, what they are for).
    """
    own = load(levels)
    bounds = declared_bounds(own)
    axes = [Axis(concept, bounds.get(concept.name)) for concept in own.concepts.concepts]
    factors = [_factors(axis) for axis in axes]
    same = Reach({name: list(values) for name, values in levels.items()}, 0)
    if not any(factors):
        return same
    # One grid that holds the base of each concept and, after it, its strongest level at each factor.
    grid = {
        axis.concept.name: (
            (axis.concept.levels[0], *(axis.scaled(factor)[-1] for factor in tried)) if tried else axis.concept.levels
        )
        for axis, tried in zip(axes, factors, strict=True)
    }
    probes = Probes(load, grid, budget, ledger, compute, tell)
    items = np.arange(min(_LOOKED_AT, len(probes.item_ids)))
    clean = np.array([0 if tried else axis.base for axis, tried in zip(axes, factors, strict=True)])
    if budget < len(items) + ITEMS:
        return same
    rows = probes.ask(grid, items, np.tile(clean, (len(items), 1)), "reach")
    right = rows["item"].to_numpy()[~rows["failed"].to_numpy(dtype=bool)][:ITEMS]
    if len(right) < _FAILS:  # it fails anyway, whatever the levels
        return Reach(same.levels, probes.spent)
    said, stronger = [], dict(same.levels)
    open_ = [j for j, tried in enumerate(factors) if tried]
    step = 0
    while open_ and probes.left >= len(right) * len(open_):
        cells = np.repeat(np.tile(clean, (len(open_), 1)), len(right), axis=0)
        for k, j in enumerate(open_):
            cells[k * len(right) : (k + 1) * len(right), j] = step + 1
        asked = probes.ask(grid, np.tile(right, len(open_)), cells, "reach")
        failed = asked["failed"].to_numpy(dtype=float).reshape(len(open_), len(right)).sum(axis=1)
        for j, count in zip(list(open_), failed.tolist(), strict=True):
            axis, at_end = axes[j], step + 1 == len(factors[j])
            stronger[axis.concept.name] = list(axis.scaled(factors[j][step]))
            if count >= _FAILS or at_end:
                open_.remove(j)
                if step > 0 or count < _FAILS:
                    said.append(_said(axis, factors[j], step, int(count), len(right)))
        step += 1
    for j in open_:
        said.append(f"{axes[j].concept.name}: no probes were left to see what is stronger than {_at(axes[j], step)}")
    return Reach(stronger, probes.spent, said)


def _factors(axis: Axis) -> list[float]:
    """1, 2, 4, ... up to the end of the concept; none where its end is not known, or it has two."""
    if not axis.numeric or axis.bounds is None or axis.base != 0 or len(axis.ends) != 1:
        return []
    doubled = [2.0**n for n in range(16) if 2.0**n < 0.95 * axis.widest]
    return [*doubled, axis.widest] if doubled else [1.0]


def _said(axis: Axis, factors: Sequence[float], step: int, failed: int, n: int) -> str:
    unit = axis.concept.unit
    strongest = [f"{axis.scaled(factor)[-1]:g}{unit}" for factor in factors[: step + 1]]
    if failed < _FAILS:
        return f"{axis.concept.name}: reaches its end, {strongest[-1]}, where {failed} of {n} items fail"
    tried = ", ".join(strongest[:-1])
    return f"{axis.concept.name}: widened to {strongest[-1]}, where {failed} of {n} items fail; too few did at {tried}"


def _at(axis: Axis, step: int) -> str:
    return f"{axis.scaled(2.0 ** (step - 1) if step else 1.0)[-1]:g}{axis.concept.unit}"
