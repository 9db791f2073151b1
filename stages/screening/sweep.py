"""A sweep: items with each concept alone, over the range that people accept, and everything else unchanged.

It shows up to which level a model holds, for which items it does not, and which concepts have no effect. Every item is
probed unchanged, and once with each concept (more often, if there are few items), so that the probes of a concept are
independent of each other. Levels are dealt in turn to the items of each label, the strongest twice as often as the
others. Each concept is an axis with a base, and probes on several grids share one budget.

The *strength* of a level is its distance from the base level, as a share of the strongest level in params.yaml.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from stages.concepts import Concept, Level
from stages.core.errors import UsageError
from stages.core.intervals import LEVEL, Rate, holm, wilson
from stages.core.ledger import Ledger
from stages.explorers.prober import Prober
from stages.tasks.attributes import LABEL
from stages.tasks.base import LoadedTask, known_attributes
from stages.tasks.contract import Compute

Bounds = tuple[float, float]
Levels = Mapping[str, Sequence[Level]]


def declared_bounds(task: LoadedTask) -> dict[str, Bounds]:
    """Return the lowest and highest level that the task's `catalogue` allows, by concept; empty without a catalogue.

    A concept with declared bounds is valid at every level between them. For others, and for those that are `whole`,
    only the levels in params.yaml are known to be valid.
    """
    catalogue = task.automatic_task.catalogue
    known = (n for n in task.concepts.names if n in catalogue and not getattr(catalogue[n], "whole", False))
    return {name: (float(catalogue[name].low), float(catalogue[name].high)) for name in known}


@dataclass(frozen=True)
class Axis:
    """One concept as an axis with a base.

    Args:
        concept: the concept with the user's levels.
        bounds: lowest and highest level that the task allows, inclusive; None if only the user's levels are known.
    """

    concept: Concept
    bounds: Bounds | None = None

    @property
    def base(self) -> int:
        """Index of the level to compare with: the neutral one if there is one, else the first."""
        neutral = self.concept.neutral
        return self.concept.levels.index(neutral) if neutral is not None and neutral in self.concept.levels else 0

    @property
    def shrinks(self) -> bool:
        """Whether levels between those of the user are valid."""
        numbers = self.concept.ordered and all(isinstance(level, int | float) for level in self.concept.levels)
        return numbers and self.bounds is not None and len(self.concept) > 1

    @property
    def nearest(self) -> list[int]:
        """Indices of the weakest level on each side of the base."""
        return [i for i in (self.base - 1, self.base + 1) if 0 <= i < len(self.concept)]

    @property
    def weakest(self) -> float:
        """The largest strength of the weakest levels."""
        reach = np.abs(np.array(self.concept.levels, dtype=float) - float(self.concept.levels[self.base]))
        return float(reach[self.nearest].max() / reach.max())

    def scaled(self, factor: float) -> tuple[Level, ...]:
        """Return the levels with every strength multiplied by `factor`, at most 1, rounded to short numbers."""
        if self.bounds is None:
            raise ValueError(f"{self.concept.name} has no bounds, so no other levels of it are known to be valid")
        own = np.array(self.concept.levels, dtype=float)
        values = own[self.base] + factor * (own - own[self.base])
        # Rounding to half the smallest gap or finer keeps all levels distinct.
        decimals = max(0, ceil(-log10(np.abs(np.diff(values)).min() / 2)))
        rounded = np.clip(values.round(decimals), *self.bounds) + 0.0  # no -0
        rounded[self.base] = own[self.base]  # rounding it might leave no neutral level
        return tuple(rounded.tolist())


class Probes:
    """All probes of a screening, on any number of grids within one budget.

    Raises a UsageError if there are no items to screen on.

    Args:
        load: loads the task with other levels of its concepts.
        levels: the levels in params.yaml.
        budget: maximum number of unique probes on all grids together.
        ledger: file of the ledger of a grid; None to keep it in memory.
        tell: called with (unique probes spent, their purpose).
    """

    def __init__(
        self,
        load: Callable[[Levels], LoadedTask],
        levels: Levels,
        budget: int,
        ledger: Callable[[Levels], Path | None],
        compute: Compute | None,
        tell: Callable[[int, str], None],
    ) -> None:
        self._load, self._ledger, self._compute, self._tell = load, ledger, compute, tell
        self._budget = budget
        self._probers: dict[str, Prober] = {}
        self.task = load(levels)
        self.item_ids = self.task.items.ids("discover")
        if not self.item_ids:
            raise UsageError("the split discover has no items, so there is nothing to screen")
        self._on(levels, self.task)

    @property
    def spent(self) -> int:
        """Unique probes spent on all grids."""
        return sum(prober.spent for prober in self._probers.values())

    @property
    def left(self) -> int:
        return self._budget - self.spent

    def _on(self, levels: Levels, task: LoadedTask | None = None) -> Prober:
        key = repr({name: list(values) for name, values in levels.items()})
        if key not in self._probers:
            ledger = Ledger(self._ledger(levels))
            self._probers[key] = Prober(task or self._load(levels), self.item_ids, 0, ledger, self._compute)
        return self._probers[key]

    def ask(self, levels: Levels, items: np.ndarray, cells: np.ndarray, purpose: str) -> pd.DataFrame:
        """Probe items (n,), as positions in `item_ids`, at cells (n, concepts) of a grid.

        Returns:
            `discrepancy` and `failed` of the probes that the budget allows, with their positions among the n as index.
        """
        prober = self._on(levels)
        prober.budget = prober.spent + self.left
        size = (self._compute or Compute()).batch_size
        parts = []
        for start in range(0, len(items), size):  # in batches, to show progress
            answers = prober.ask(items[start : start + size], cells[start : start + size])
            parts.append(pd.DataFrame({name: getattr(answers, name) for name in ("discrepancy", "failed", "answered")}))
            self._tell(self.spent, purpose)
        rows = pd.concat(parts, ignore_index=True)
        return rows.loc[rows["answered"], ["discrepancy", "failed"]]


FEWEST_ITEMS = 10
SLIGHT = 0.2  # standard deviations of the discrepancy; smaller changes of it are no larger effect (Cohen 1988: small)
_FEWEST_OF_A_GROUP = 4  # items; fewer cannot differ clearly
_SIGNIFICANT = 0.05
_SCOUTS = 8  # items that pass unchanged, and show whether the weakest levels already break nearly everything
_BREAKS = 0.85  # share of these that fail then
_FINER = 3  # how often a range is cut down to its weakest level

Verdict = Literal["effect", "no larger effect", "not known"]


@dataclass(frozen=True)
class Worst:
    """Items that fail clearly more often than the others under a concept.

    Args:
        attribute: what distinguishes them ("label").
        value: its value ("four").
        level: the level at which they differ most from the others.
        rate: their failure rate there.
        others: failure rate of all other items there.
        p: of the test over all levels, adjusted for all groups and concepts.
    """

    attribute: str
    value: str
    level: str
    rate: Rate
    others: Rate
    p: float

    @property
    def said(self) -> str:
        """Who fails, and how often."""
        return f"{self.attribute} {self.value} {self.rate.value:.0%}"


@dataclass(frozen=True)
class ConceptSweep:
    """What happens with one concept changed.

    Args:
        labels: the levels for people.
        rates: failure rate at each level.
        base: index of the unchanged level; in the middle if a concept goes both ways.
        changes: change of the discrepancy of the same items from the unchanged level to each level; intervals hold for
            all levels together (Bonferroni).
        slight: smaller changes than this are no larger effect.
        finer: whether the range was cut, because its weakest levels broke nearly everything.
        worst: who fails clearly more often than others; None if nobody does.
    """

    name: str
    levels: Sequence[Level]
    labels: Sequence[str]
    rates: Sequence[Rate]
    base: int
    changes: Sequence[Rate]
    slight: float
    finer: bool = False
    worst: Worst | None = None

    @property
    def said(self) -> str:
        """What was seen at the end of the range, the worse one if there are two, and who fails most."""
        worst, end = self.worst, max(_ends(len(self.levels), self.base), key=lambda i: self.rates[i].value)
        told = f"{self.labels[end]}: {self.rates[end].value:.0%} fail"
        if worst is None:
            return told
        return f"{told}, {worst.said}" if worst.level == self.labels[end] else f"{told}; {worst.level}: {worst.said}"

    @property
    def others(self) -> list[int]:
        """Indices of the levels that change something."""
        return [i for i in range(len(self.levels)) if i != self.base]

    @property
    def verdict(self) -> Verdict:
        """Whether a level certainly changes the discrepancy, or certainly none does by more than a little."""
        changes = [self.changes[i] for i in self.others]
        if any(change.low > 0 or change.high < 0 for change in changes):
            return "effect"
        slight = all(-self.slight < change.low <= change.high < self.slight for change in changes)
        return "no larger effect" if slight else "not known"

    @property
    def harmful(self) -> list[Level]:
        """The levels that certainly raise the discrepancy."""
        return [self.levels[i] for i in self.others if self.changes[i].low > 0]


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Args:
        probes: unique probes spent.
        clean: failure rate of unchanged items.
        strata: attribute whose values have equally many items, as far as there are; None if items have no attributes.
    """

    probes: int
    items: int
    clean: Rate
    concepts: Sequence[ConceptSweep]
    strata: str | None = None

    @property
    def said(self) -> str:
        """Which items were probed, and how many of them fail unchanged: every rate is that of such a mixture."""
        drawn = f", equally many of each {self.strata}" if self.strata is not None else ""
        return f"{self.items:,} items{drawn}; {self.clean.value:.0%} of them fail unchanged"

    @property
    def levels(self) -> dict[str, list[Level]]:
        return {concept.name: list(concept.levels) for concept in self.concepts}


def _ends(levels: int, base: int) -> list[int]:
    """Return the indices of the strongest levels: the last, and the first if the unchanged one is between them."""
    return [i for i in dict.fromkeys((0, levels - 1)) if i != base] or [base]


def fewest_probes(concepts: int) -> int:
    """Return the smallest number of unique probes that sweeps so many concepts."""
    return FEWEST_ITEMS * (1 + concepts)


def sweep(
    load: Callable[[Levels], LoadedTask],
    levels: Levels,
    budget: int,
    *,
    seed: int,
    ledger: Callable[[Levels], Path | None] = lambda _levels: None,
    compute: Compute | None = None,
    tell: Callable[[int, str], None] = lambda _spent, _note: None,
    only: Collection[str] | None = None,
) -> Sweep:
    """Probe each concept alone.

    Raises a UsageError if the budget is too small for so many concepts.

    Args:
        load: loads the task with other levels of its concepts.
        levels: levels of each concept, up to the end of what people accept.
        budget: maximum number of unique probes.
        ledger: file of the ledger of a grid, from which a sweep can be resumed; None to keep it in memory.
        tell: called with (unique probes spent, their purpose).
        only: names of the concepts to sweep. None: all.
    """
    probes = Probes(load, levels, budget, ledger, compute, tell)
    bounds, concepts = declared_bounds(probes.task), probes.task.concepts.concepts
    axes = [Axis(concept, bounds.get(concept.name)) for concept in concepts]
    columns = [j for j, concept in enumerate(concepts) if only is None or concept.name in only]
    if budget < (least := fewest_probes(len(columns))):
        raise UsageError(
            f"{budget} probes are too few for {len(columns)} concepts: expected {least} or more (--probes)"
        )
    n = min(len(probes.item_ids), budget // (1 + len(columns)))
    attributes = known_attributes(probes.task, probes.item_ids)
    strata = LABEL if LABEL in attributes else next(iter(attributes), None)
    order, turns = _stratified(attributes, strata, n, seed)
    base = np.array([axis.base for axis in axes])
    unchanged = probes.ask(levels, order, np.tile(base, (n, 1)), "unchanged")
    clean = unchanged["failed"].to_numpy(dtype=bool)
    dealt = {j: _dealt(axes[j], turns, probes.left // len(columns)) for j in columns}
    cut = _finer(probes, axes, levels, dealt, order, clean)
    grid = {**levels, **cut}
    asked = []
    for j in columns:
        who, at = dealt[j]
        cells = np.tile(base, (len(who), 1))
        cells[:, j] = at
        rows = probes.ask(grid, order[who], cells, axes[j].concept.name)
        found = pd.DataFrame({"row": who, "level": at}).loc[rows.index]
        before = unchanged["discrepancy"].to_numpy(dtype=float)[found["row"]]
        asked.append(found.assign(failed=rows["failed"], change=rows["discrepancy"].astype(float) - before))
    known = attributes.iloc[order].reset_index(drop=True)
    rate = wilson(int(clean.sum()), n)
    spread = _spread(unchanged["discrepancy"], asked)
    swept = []
    for j, rows, worst in zip(columns, asked, _worst(asked, known, clean), strict=True):
        name, unit = axes[j].concept.name, axes[j].concept.unit
        labels = [f"{x:g}{unit}" if isinstance(x, int | float) else x or "unsaid" for x in grid[name]]
        here = [rows[rows["level"] == i] for i in range(len(labels))]
        rates = [wilson(int(one["failed"].sum()), len(one)) for one in here]
        rates[axes[j].base] = rate
        changes = [_change(one["change"].to_numpy(), len(labels) - 1) for one in here]
        group = None if worst is None else _group(rows, labels, axes[j].base, known, *worst)
        swept.append(
            ConceptSweep(
                name, grid[name], labels, rates, axes[j].base, changes, SLIGHT * spread, finer=name in cut, worst=group
            )
        )
    return Sweep(probes.spent, n, rate, swept, strata)


def _spread(unchanged: pd.Series, asked: Sequence[pd.DataFrame]) -> float:
    """Return the standard deviation of the discrepancy over items unchanged and with one change."""
    changed = [rows["change"].to_numpy() + unchanged.to_numpy(dtype=float)[rows["row"]] for rows in asked]
    return float(np.concatenate([unchanged.to_numpy(dtype=float), *changed]).std())


def _change(values: np.ndarray, tests: int) -> Rate:
    """Return the mean of one change per item (n,) with Student's interval, corrected for the number of tests."""
    from scipy import stats  # takes a second

    mean, n = float(values.mean()) if len(values) else 0.0, len(values)
    if n < 2:
        return Rate(mean, -np.inf, np.inf, n)
    if values.std() == 0:
        return Rate(mean, mean, mean, n)
    interval = stats.ttest_1samp(values, 0).confidence_interval(1 - (1 - LEVEL) / max(tests, 1))
    return Rate(mean, float(interval.low), float(interval.high), n)


def _stratified(attributes: pd.DataFrame, by: str | None, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose n items, equally many of each value of an attribute, and number them so that each is dealt all levels.

    Returns:
        The items (n,), and the turns (n,) in which levels are dealt.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(attributes))
    groups = np.zeros(len(shuffled), dtype=int) if by is None else pd.factorize(attributes[by])[0][shuffled]
    rank = pd.Series(groups).groupby(groups).cumcount().to_numpy()
    chosen = np.argsort(rank, kind="stable")[:n]
    return shuffled[chosen], rank[chosen] + groups[chosen]


def _dealt(axis: Axis, turns: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Deal the levels of a concept, except the unchanged one, to items; the strongest have two places in the round.

    Returns:
        At most `most` pairs of a row and a level, each once: (n,), (n,).
    """
    others = [i for i in range(len(axis.concept)) if i != axis.base]
    if not others:
        return np.zeros(0, dtype=int), np.zeros(0, dtype=int)
    strongest = _ends(len(axis.concept), axis.base)
    weaker = [i for i in others if i not in strongest]
    half = len(weaker) // 2
    places = np.array([*strongest, *weaker[:half], *(strongest if weaker else []), *weaker[half:]])
    rows = np.tile(np.arange(len(turns)), len(places))
    levels = np.concatenate([places[(turns + shift) % len(places)] for shift in range(len(places))])
    pairs = pd.DataFrame({"row": rows, "level": levels}).drop_duplicates()[:most]
    return pairs["row"].to_numpy(), pairs["level"].to_numpy()


def _finer(
    probes: Probes,
    axes: Sequence[Axis],
    levels: Levels,
    dealt: Mapping[int, tuple[np.ndarray, np.ndarray]],
    order: np.ndarray,
    clean: np.ndarray,
) -> dict[str, tuple[Level, ...]]:
    """Return finer levels of the concepts whose weakest levels already break nearly all items that pass unchanged."""
    base = np.array([axis.base for axis in axes])
    scouts, factors = {}, {}
    for j, (who, at) in dealt.items():
        if axes[j].shrinks:
            weakest = np.isin(at, axes[j].nearest) & ~clean[who]
            chosen = np.column_stack([who, at])[weakest][:_SCOUTS]
            if len(chosen) >= _SCOUTS // 2:
                scouts[j], factors[j] = chosen, 1.0

    def cut() -> dict[str, tuple[Level, ...]]:
        return {axes[j].concept.name: axes[j].scaled(factor) for j, factor in factors.items() if factor < 1}

    for _ in range(_FINER):
        grid = {**levels, **cut()}
        still = []
        for j, chosen in scouts.items():
            if probes.left < len(chosen):
                continue
            cells = np.tile(base, (len(chosen), 1))
            cells[:, j] = chosen[:, 1]
            if probes.ask(grid, order[chosen[:, 0]], cells, "weakest levels")["failed"].mean() >= _BREAKS:
                still.append(j)
        for j in still:
            factors[j] *= axes[j].weakest
        scouts = {j: scouts[j] for j in still}
    return cut()


def _worst(
    asked: Sequence[pd.DataFrame], attributes: pd.DataFrame, clean: np.ndarray
) -> list[tuple[str, str, float] | None]:
    """Return for each concept the group of items that fails more often than the others, and p; None if none does.

    Only items that pass unchanged are compared, so that it is the concept that makes the difference. An item counts as
    failing if it fails at more of its levels than the median item (Mood's median test), which is at any if each was
    probed once. The test is Fisher's, and Holm's over all groups and concepts.
    """
    from scipy.stats import fisher_exact

    tests: list[tuple[int, str, str]] = []
    p_values: list[float] = []
    for j, rows in enumerate(asked):
        means = rows[~clean[rows["row"]]].groupby("row")["failed"].mean()
        middle = means.median() if len(means) else 0.0
        failed = means > middle if len(means) and middle < means.max() else means >= 1.0
        for attribute in attributes:
            values = attributes[attribute].iloc[means.index].to_numpy()
            for value in sorted({one for one in values if one is not None}):
                own = values == value
                if min(own.sum(), (~own).sum()) < _FEWEST_OF_A_GROUP:
                    continue
                table = [[int((failed & side).sum()), int((~failed & side).sum())] for side in (own, ~own)]
                tests.append((j, str(attribute), str(value)))
                p_values.append(float(fisher_exact(table, alternative="greater").pvalue))
    found: list[tuple[str, str, float] | None] = [None] * len(asked)
    adjusted = holm(np.array(p_values))
    for at in np.argsort(adjusted, kind="stable").tolist():
        j, attribute, value = tests[at]
        if adjusted[at] <= _SIGNIFICANT and found[j] is None:
            found[j] = attribute, value, float(adjusted[at])
    return found


def _group(
    rows: pd.DataFrame,
    labels: Sequence[str],
    base: int,
    attributes: pd.DataFrame,
    attribute: str,
    value: str,
    p: float,
) -> Worst | None:
    """Return the failures of a group at the level at which it differs most from the others, the strongest of these."""
    own = attributes[attribute].iloc[rows["row"]].to_numpy() == value
    best: tuple[float, int, Worst] | None = None
    for level, label in enumerate(labels):
        at = (rows["level"] == level).to_numpy()
        rate, others = (
            wilson(int(rows.loc[side & at, "failed"].sum()), int((side & at).sum())) for side in (own, ~own)
        )
        if rate.n and others.n:
            here = rate.value - others.value, abs(level - base), Worst(attribute, value, label, rate, others, p)
            best = here if best is None else max(best, here, key=lambda one: one[:2])
    return None if best is None else best[-1]
