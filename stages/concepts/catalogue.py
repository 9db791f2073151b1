"""What the concepts of all modalities share: the levels an audit may give them, and the grid these span."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.concepts.space import Concept, ConceptSpace, Level
from stages.errors import did_you_mean


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


def check_levels(levels: Mapping[str, Sequence[Any]], catalogue: Mapping[str, Change]) -> list[str]:
    """Say what is wrong with the `concepts:` of an audit, one line each; empty if nothing is."""
    errors = []
    for name, values in levels.items():
        if name not in catalogue:
            hint = did_you_mean(name, catalogue)
            errors.append(f"concepts.{name}: unknown concept{hint}; known: {', '.join(catalogue)}")
            continue
        errors += [f"concepts.{name}: {error}" for value in values if (error := catalogue[name].error(value))]
    return errors


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
