"""`usage:` of an audit: how often changes occur in use, which every rate, draw and share follows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from stages.concepts.space import ConceptSpace, Level
from stages.concepts.usage import Usage
from stages.core.errors import did_you_mean
from stages.params.strict import Strict, short_value

UNIFORM = "uniform"
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CombinationConfig(Strict):
    """Levels of several concepts that occur together more often than by chance."""

    share: float = Field(gt=0, lt=1, description="share of inputs with this combination, beside the others")
    levels: dict[str, Level] = Field(min_length=1, description="level by concept; other concepts are unchanged")


class MeasuredConfig(Strict):
    """What a usage was measured on, as the report says."""

    inputs: int = Field(ge=1, description="number of production inputs")
    source: str = Field(min_length=1, max_length=400, description="where they are from")
    worth: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="by measured concept, the inputs that would say as much if each showed its level without error",
    )


class UsageConfig(Strict):
    """How often changes occur in use. What is not stated is assumed, see docs/usage.md."""

    changes: list[Weight] | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="share of inputs with 0, 1, 2, ... concepts changed at once; by default 0.3, 0.4, 0.2, 0.1",
    )
    levels: dict[str, dict[Level, Weight]] = Field(
        default_factory=dict,
        description="how common levels are: weights by concept and level; others of a named concept never occur",
    )
    combinations: list[CombinationConfig] = Field(
        default_factory=list, max_length=100, description="combinations that occur more often than by chance"
    )
    measured: MeasuredConfig | None = Field(None, description="what this was measured on, as `faded usage` writes it")

    @model_validator(mode="before")
    @classmethod
    def _levels_have_moved(cls, block: Any) -> Any:
        given = block if isinstance(block, Mapping) else {}
        moved = {name: of for name, of in given.items() if name not in cls.model_fields and _are_weights(of)}
        if moved:
            raise ValueError(f"weights of levels now belong under usage.levels: write levels: {short_value(moved)}")
        return block

    @property
    def stated(self) -> bool:
        return self.changes is not None or bool(self.levels) or bool(self.combinations)


def _are_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and not any(isinstance(inner, Mapping) for inner in value.values())


def _read(value: Any) -> Any:
    """Read either form; errors of a union would name both."""
    if value == UNIFORM or isinstance(value, UsageConfig):
        return value
    if not isinstance(value, Mapping):
        hint = did_you_mean(value, [UNIFORM]) if isinstance(value, str) else ""
        keys = ", ".join(UsageConfig.model_fields)
        raise ValueError(f"expected {UNIFORM}, or some of {keys}; found {short_value(value)}{hint}")
    return UsageConfig.model_validate(value)


AnyUsage = Annotated[UsageConfig | Literal["uniform"], BeforeValidator(_read)]


def usage_error(usage: AnyUsage, concepts: Mapping[str, Sequence[Level]]) -> str | None:
    """Return what is wrong with a usage for these concepts, or None."""
    return None if isinstance(usage, str) else next(_errors(usage, concepts), None)


def _errors(usage: UsageConfig, concepts: Mapping[str, Sequence[Level]]) -> Iterator[str]:
    if usage.changes is not None and not sum(usage.changes) > 0:
        yield f"usage.changes: expected one share above 0, found {short_value(usage.changes)}"
    for name, weights in usage.levels.items():
        if error := _levels_error(name, list(weights), concepts):
            yield f"usage.levels.{error}"
        elif sum(weights.values()) <= 0:
            yield f"usage.levels.{name}: expected one weight above 0, found {short_value(dict(weights))}"
    for number, combination in enumerate(usage.combinations):
        for name, level in combination.levels.items():
            if error := _levels_error(name, [level], concepts):
                yield f"usage.combinations.{number}.levels.{error}"
    for name in usage.measured.worth if usage.measured else ():
        if name not in usage.levels:
            yield f"usage.measured.worth.{name}: expected a concept of usage.levels, found {', '.join(usage.levels)}"
    if (total := sum(one.share for one in usage.combinations)) >= 1:
        yield f"usage.combinations: expected shares of less than 1 together, found {total:g}"


def _levels_error(name: str, levels: Sequence[Level], concepts: Mapping[str, Sequence[Level]]) -> str | None:
    if name not in concepts:
        return f"{name}: there is no concept of that name{did_you_mean(name, concepts)}, found {', '.join(concepts)}"
    known = list(concepts[name])
    strange = [level for level in levels if level not in known]
    return f"{name}: {_told(strange[0])} is not one of its levels: {', '.join(map(_told, known))}" if strange else None


def _told(level: Level) -> str:
    return short_value(level) if isinstance(level, str) else f"{level:g}"


def in_use(space: ConceptSpace, usage: AnyUsage) -> ConceptSpace:
    """Return a grid with its usage as an audit states it."""
    if isinstance(usage, str):
        return replace(space, usage=None)
    place = {name: j for j, name in enumerate(space.names)}

    def of_levels(name: str, given: Mapping[Level, float]) -> np.ndarray:
        return np.array([given.get(level, 0.0) for level in space.concepts[place[name]].levels])

    def at(name: str, level: Level) -> int:
        return space.concepts[place[name]].levels.index(level)

    combined = [
        (one.share, {place[name]: at(name, level) for name, level in one.levels.items()}) for one in usage.combinations
    ]
    levels = {place[name]: of_levels(name, given) for name, given in usage.levels.items() if name in place}
    worth = {place[name]: n for name, n in usage.measured.worth.items() if name in place} if usage.measured else {}
    return replace(space, usage=Usage.of(space.sizes, space.neutral_levels, usage.changes, levels, combined, worth))
