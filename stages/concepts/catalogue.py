"""What the concepts of all modalities share: the levels an audit may give them, and the grid these span."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from stages import plugins
from stages.concepts.space import Concept, ConceptSpace, Level
from stages.errors import UsageError, did_you_mean


@dataclass(frozen=True)
class Change:
    """One thing to change about an input, without how it is done, which depends on the modality.

    Args:
        name: key in params.yaml.
        doc: one line for people.
        low, high: valid range of a level, both included; not used where there are `choices`.
        neutral: the level that changes nothing.
        unit: printed behind a level.
        choices: the levels, where these are names without an order; else levels are numbers.
    """

    name: str
    doc: str
    low: float = 0
    high: float = 1
    neutral: Level = 0
    unit: str = ""
    choices: tuple[str, ...] = ()

    def error(self, level: Any) -> str | None:
        """What is wrong with a level, or None."""
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
    """The built-in concepts of a modality, and after them those that other distributions add by entry points.

    Args:
        built_in: by name, in the order in which they are applied.
        kind: the modality's own subclass of `Change`; concepts of other modalities are left out.

    Raises:
        UsageError: when an entry point names no concept, one under another name, or one that is built in.
    """
    catalogue = dict(built_in)
    for name, entry in sorted(plugins.load(plugins.CONCEPTS).items()):
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
    """Say what is wrong with the `concepts:` of an audit, one line each; empty if nothing is."""
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
    """What is wrong with the order of levels that are right, each for itself.

    Explorers, modes and reports take the first level for the weakest. Levels to both sides of the unchanged one have no
    weakest end, and may run either way.
    """
    if known.choices or isinstance(known.neutral, str):
        return []
    first, last = (value - known.neutral for value in (values[0], values[-1]))
    if first * last < 0 or abs(first) <= abs(last):
        return []
    turned = ", ".join(f"{value:g}" for value in reversed(values))
    return [f"levels run from the strongest to the weakest ({known.neutral:g} changes nothing), expected [{turned}]"]


def span(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, Change]) -> ConceptSpace:
    """The grid spanned by `concepts:` of an audit that `check_levels` found right."""
    concepts = []
    for name, values in levels.items():
        known = catalogue[name]
        named: tuple[Level, ...] = tuple(values) if known.choices else tuple(float(v) for v in values)
        neutral = known.neutral if isinstance(known.neutral, str) else float(known.neutral)
        concepts.append(
            Concept(
                name,
                named,
                known.unit,
                ordered=not known.choices,
                neutral=neutral if neutral in named else None,
            )
        )
    return ConceptSpace(tuple(concepts))
