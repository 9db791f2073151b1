"""Code that the concepts of all modalities share: checks of an audit's levels, and the grid that they span."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stages.concepts.space import Concept, ConceptSpace, Level
from stages.core import plugins
from stages.core.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Change:
    """One way to change an input; how it is applied depends on the modality.

    Args:
        name: key in params.yaml.
        doc: one-line description.
        low, high: valid range of a level, inclusive; not used if there are `choices`.
        neutral: the level that changes nothing.
        unit: printed after a level.
        choices: the levels, if they are names without an order; otherwise levels are numbers.
    """

    name: str
    doc: str
    low: float = 0
    high: float = 1
    neutral: Level = 0
    unit: str = ""
    choices: tuple[str, ...] = ()

    def error(self, level: Any) -> str | None:
        """Return what is wrong with a level, or None if it is valid."""
        if self.choices:
            known = f"not one of {', '.join(self.choices)}"
            return None if level in self.choices else f"level {level!r} is {known}{did_you_mean(level, self.choices)}"
        if isinstance(level, bool) or not isinstance(level, int | float) or not math.isfinite(level):
            return f"level {level!r} is not a number"
        if not self.low <= level <= self.high:
            unit = f" {self.unit.strip()}" if self.unit else ""
            return f"level {level:g} is outside {self.low:g}..{self.high:g}{unit}"
        return None


Kind = TypeVar("Kind", bound=Change)


def with_plugins(built_in: Mapping[str, Kind], kind: type[Kind]) -> dict[str, Kind]:
    """Combine the built-in concepts of a modality with those that other packages add by entry points.

    Raises a UsageError when an entry point is not a concept, or differs in name from it, or has the name of a built-in
    one.

    Args:
        built_in: concepts by name, in the order in which they are applied.
        kind: the modality's own subclass of `Change`; concepts of other modalities are skipped.
    """
    catalogue = dict(built_in)
    for name, entry in sorted(plugins.entry_points_of(plugins.CONCEPTS).items()):
        where = f"the entry point {name} = {entry.value} of {plugins.CONCEPTS}"
        found = plugins.imported(entry)
        if not isinstance(found, Change):
            raise UsageError(f"{where} is not a concept but of type {type(found).__name__}")
        if not isinstance(found, kind):
            continue
        if found.name != name or name in built_in:
            told = f"{name!r} is built in" if name in built_in else f"the concept has another name, {found.name!r}"
            raise UsageError(f"{where}: {told}")
        catalogue[name] = found
    return catalogue


def check_levels(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, Change]) -> list[str]:
    """List what is wrong with the `concepts:` of an audit, one line per error."""
    errors = []
    for name, values in levels.items():
        if name not in catalogue:
            hint = did_you_mean(name, catalogue)
            errors.append(f"concepts.{name}: unknown concept{hint}; known: {', '.join(catalogue)}")
            continue
        wrong = [error for value in values if (error := catalogue[name].error(value))]
        errors += [f"concepts.{name}: {error}" for error in wrong or _order_errors(catalogue[name], values)]
    return errors


def _order_errors(known: Change, values: Sequence[Any]) -> list[str]:
    """List what is wrong with the order of levels that are valid individually.

    Explorers, modes and reports take the first level to be the weakest. Levels on both sides of the neutral one have no
    weakest end and may run in either direction.
    """
    if known.choices or isinstance(known.neutral, str):
        return []
    first, last = (value - known.neutral for value in (values[0], values[-1]))
    if first * last < 0 or abs(first) <= abs(last):
        return []
    turned = ", ".join(f"{value:g}" for value in reversed(values))
    return [f"levels run from the strongest to the weakest ({known.neutral:g} changes nothing), expected [{turned}]"]


def span(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, Change]) -> ConceptSpace:
    """Build the grid of an audit's `concepts:` that `check_levels` accepted."""
    concepts = []
    for name, values in levels.items():
        known = catalogue[name]
        named: tuple[Level, ...] = tuple(values) if known.choices else tuple(float(v) for v in values)
        neutral: Level | None = known.neutral if isinstance(known.neutral, str) else float(known.neutral)
        neutral = neutral if neutral in named else None
        concepts.append(Concept(name, named, known.unit, ordered=not known.choices, neutral=neutral))
    return ConceptSpace(tuple(concepts))


def steps_of(space: ConceptSpace, catalogue: Mapping[str, Kind]) -> list[tuple[Kind, int, tuple[Level, ...]]]:
    """Return the concepts of a grid in the order in which they are applied, each with its column and its levels."""
    columns = {name: column for column, name in enumerate(space.names)}
    return [
        (concept, columns[name], space.concepts[columns[name]].levels)
        for name, concept in catalogue.items()
        if name in columns
    ]
