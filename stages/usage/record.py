"""The usage of an audit as people see it: what is in force, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.concepts import ConceptSpace
from stages.concepts.usage import Usage
from stages.params.usage import AnyUsage
from stages.usage.estimate import Shares


@dataclass(frozen=True)
class UsageInForce:
    """The usage of an audit.

    Args:
        audit: its name.
        space: the grid.
        usage: how often its cells occur.
        said: whether it is assumed, stated or measured.
        stated: whether params.yaml has anything on it.
    """

    audit: str
    space: ConceptSpace
    usage: Usage
    said: str
    stated: bool

    @classmethod
    def of(cls, audit: str, space: ConceptSpace, config: AnyUsage) -> UsageInForce:
        """Return the usage of a grid, and where it is from according to `usage:` of its audit."""
        usage = space.usage
        if usage is None or isinstance(config, str):
            usage = Usage.uniform(space.sizes, space.neutral_levels)
            return cls(audit, space, usage, "uniform: every cell of the grid is equally common", stated=True)
        if (measured := config.measured) is not None:
            said = f"measured on {measured.inputs:,} inputs, {measured.source}"
            return cls(audit, space, usage, said, stated=True)
        said = "stated in params.yaml" if config.stated else "assumed, as params.yaml states nothing"
        return cls(audit, space, usage, said, config.stated)

    @property
    def changes(self) -> list[float]:
        """Share of inputs with 0, 1, 2, ... concepts changed."""
        return np.trim_zeros(np.round(self.usage.by_changes(), 12), "b").tolist()

    def share(self, concept: str, level: int) -> float:
        """Share of inputs with a level, by number, of a concept."""
        return self.usage.share({self.space.names.index(concept): [level]})


@dataclass(frozen=True)
class MeasuredUsage:
    """How common levels are in production inputs.

    Args:
        in_force: the usage so far.
        concepts: those that could be measured.
        inputs: number of inputs.
        source: where they are from.
        left_out: what could not be read, and why.
    """

    in_force: UsageInForce
    concepts: list[Shares]
    inputs: int
    source: str
    left_out: list[str]
