"""How common conditions are in use: an audit's `usage:`, weights of the levels of concepts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.concepts.space import Level
from stages.errors import did_you_mean
from stages.params.strict import shown

Weights = Mapping[str, Mapping[Level, float]]
"""Weights by concept and level. Unnamed levels never occur; the levels of unnamed concepts are equally common."""


def usage_error(usage: Weights, concepts: Mapping[str, Sequence[Level]]) -> str | None:
    """Return what is wrong with weights for these concepts, or None."""
    for name, weights in usage.items():
        if name not in concepts:
            known = ", ".join(concepts)
            return f"usage.{name}: there is no concept of that name{did_you_mean(name, concepts)}, found {known}"
        levels = list(concepts[name])
        if strange := [level for level in weights if level not in levels]:
            return f"usage.{name}: {shown(strange[0])} is not one of its levels, {shown(levels)}"
        if any(weight < 0 for weight in weights.values()) or sum(weights.values()) <= 0:
            return f"usage.{name}: expected weights of 0 or more, one of them above 0, found {shown(dict(weights))}"
    return None
