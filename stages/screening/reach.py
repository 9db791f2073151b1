"""Find how far ranges should reach: to the strongest level at which a concept alone still does hardly any harm.

Each concept is probed alone, on a few items that pass unchanged. Its strongest level is doubled until items fail or the
concept's bound is reached, or halved until hardly any fail.
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

ITEMS = 6  # items that pass unchanged, and are probed at each strength
_FAILS = 2  # failing items at which a level is too strong
_LOOKED_AT = 2 * ITEMS  # items probed unchanged to find those
_WEAKEST = 3  # maximum number of halvings


@dataclass(frozen=True)
class Reach:
    """The result of the search for ranges.

    Args:
        levels: levels of all concepts, with ranges that were too mild or too strong changed.
        probes: unique probes spent.
        said: one line on each change and its reason.
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
    """Scale each range so that it ends just before its concept alone does harm.

    Args:
        load: loads the task with other levels of its concepts.
        levels: the present levels.
        budget: maximum number of unique probes; ranges for which they do not suffice stay as they are.
        ledger: opens the ledger of a grid.
        compute: threads and batch size of the model.
        tell: called with (unique probes spent, their purpose).
    """
    own = load(levels)
    bounds = declared_bounds(own)
    axes = [Axis(concept, bounds.get(concept.name)) for concept in own.concepts.concepts]
    searches = {j: _Search(axis, tried) for j, axis in enumerate(axes) if (tried := _factors(axis))}
    same = Reach({name: list(values) for name, values in levels.items()}, 0)
    if not searches:
        return same
    # One grid with the base of each concept, followed by its strongest level at each factor.
    grid = {
        axis.concept.name: (axis.concept.levels[0], *searches[j].strongest) if j in searches else axis.concept.levels
        for j, axis in enumerate(axes)
    }
    probes = Probes(load, grid, budget, ledger, compute, tell)
    # Adjacent items may be of one class, or parts of one photo.
    items = np.random.default_rng(0).permutation(len(probes.item_ids))[:_LOOKED_AT]
    clean = np.array([0 if j in searches else axis.base for j, axis in enumerate(axes)])
    if budget < len(items) + ITEMS:
        return same
    rows = probes.ask(grid, items, np.tile(clean, (len(items), 1)), "reach")
    right = rows["item"].to_numpy()[~rows["failed"].to_numpy(dtype=bool)][:ITEMS]
    if len(right) < _FAILS:  # the model fails whatever the levels
        return Reach(same.levels, probes.spent)
    while (open_ := [j for j, search in searches.items() if search.next is not None]) and (
        probes.left >= len(right) * len(open_)
    ):
        cells = np.repeat(np.tile(clean, (len(open_), 1)), len(right), axis=0)
        for k, j in enumerate(open_):
            cells[k * len(right) : (k + 1) * len(right), j] = 1 + (searches[j].next or 0)
        asked = probes.ask(grid, np.tile(right, len(open_)), cells, "reach")
        failed = asked["failed"].to_numpy(dtype=int).reshape(len(open_), len(right)).sum(axis=1)
        for j, count in zip(open_, failed.tolist(), strict=True):
            searches[j].told(count)
    moved = {search.axis.concept.name: list(search.axis.scaled(search.factor)) for search in searches.values()}
    said = [line for search in searches.values() if (line := search.said(len(right)))]
    return Reach({**same.levels, **moved}, probes.spent, said)


class _Search:
    """The search for the strongest harmless level of one concept.

    Args:
        axis: the concept.
        factors: factors of its strongest level, in ascending order; the search begins at 1.
    """

    def __init__(self, axis: Axis, factors: Sequence[float]) -> None:
        self.axis, self._factors = axis, factors
        self.strongest = [axis.scaled(factor)[-1] for factor in factors]
        self.next: int | None = factors.index(1.0)
        self._failed: dict[int, int] = {}  # number of failed items, by index of the factor

    @property
    def factor(self) -> float:
        """The largest factor that was harmless, or the smallest that was probed if none was."""
        harmless = [step for step, count in self._failed.items() if count < _FAILS]
        return self._factors[max(harmless) if harmless else min(self._failed, default=self._factors.index(1.0))]

    def told(self, count: int) -> None:
        """Record how many items failed at the next factor, and choose the one after it."""
        assert self.next is not None
        self._failed[self.next] = count
        step = self.next + (1 if count < _FAILS else -1)
        self.next = step if 0 <= step < len(self._factors) and step not in self._failed else None

    def said(self, n: int) -> str:
        """Describe how the range was changed and why; "" if it was not, and the search is complete.

        Args:
            n: number of items it was tried on.
        """
        concept, at = self.axis.concept, self._factors.index(self.factor)
        if self.next is not None:
            beyond = "stronger" if at in self._failed and self._failed[at] < _FAILS else "weaker"
            return f"{concept.name}: no probes were left to see what is {beyond} than {self._label(at)}"
        if self._failed[at] >= _FAILS:
            return f"{concept.name}: down to {self._label(at)}, where {self._failed[at]} of {n} items still fail"
        if at + 1 == len(self._factors):
            return f"{concept.name}: reaches its limit, {self._label(at)}, where {self._failed[at]} of {n} items fail"
        if self._factors[at] == 1.0:
            return ""
        too_strong = f"at {self._label(at + 1)} {self._failed[at + 1]} of {n} items fail"
        return f"{concept.name}: up to {self._label(at)}; {too_strong}"

    def _label(self, step: int) -> str:
        return f"{self.strongest[step]:g}{self.axis.concept.unit}"


def _factors(axis: Axis) -> list[float]:
    """Return ..., 1/2, 1, 2, 4, ... up to the concept's bound; empty if that is unknown or levels go both ways."""
    if not axis.numeric or axis.bounds is None or axis.base != 0 or len(axis.ends) != 1:
        return []
    doubled = [2.0**n for n in range(16) if 2.0**n < 0.95 * axis.widest]
    return [*(2.0**-n for n in range(_WEAKEST, 0, -1)), *([*doubled, axis.widest] if doubled else [1.0])]
