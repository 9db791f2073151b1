"""Gates by slice: bounds for every value of an attribute of the items."""

from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, model_validator

from stages.core.errors import did_you_mean
from stages.params.strict import Strict


class SliceGate(Strict):
    """A bound on the failure rate of every value of an attribute."""

    max: float | None = Field(None, gt=0, lt=1, description="failure rate in use")

    @model_validator(mode="after")
    def _some_bound(self) -> Self:
        if not self.bounds:
            keys = list(type(self).model_fields)
            raise ValueError(f"expected {'at least one of ' if len(keys) > 1 else ''}{', '.join(keys)}; found none")
        return self

    @property
    def bounds(self) -> dict[str, float]:
        return self.model_dump(exclude_none=True)


class SliceRepairGate(SliceGate):
    """The same after a repair, and a bound on how much a repair may raise the rate."""

    change_max: float | None = Field(None, gt=-1, lt=1, description="failure rate after minus before")


def unknown_attributes(gates: Iterable[str], known: Iterable[Any], where: str) -> list[str]:
    """Return one line for each attribute that gates name but the items do not have."""
    names = [str(name) for name in known]
    there = f"they have {', '.join(names)}" if names else "they have none"
    return [
        f"{where}.{name}: the items have no attribute of this name{did_you_mean(name, names)}; {there}"
        for name in gates
        if name not in names
    ]
