"""Base classes of all records, which are frozen, validated on reading, and written deterministically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from stages.core.errors import UsageError
from stages.core.files import SCHEMA, parse_json, without_numpy
from stages.core.intervals import Rate
from stages.params import validation_lines

_SHOWN = 5  # errors shown per file

T = TypeVar("T")
Listed = Annotated[list[T], FailFast()]
"""A list whose validation stops at the first wrong entry, because a forged one may have any number of them."""


class Record(BaseModel):
    """A part of a record. Unset fields are not written, so reading and writing a file keeps its bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without unset fields."""
        return self.model_dump(exclude_unset=True)

    def having(self, **more: object) -> Self:
        """Return a copy with those of these fields that are not None."""
        return self.model_copy(update={name: value for name, value in more.items() if value is not None})

    @classmethod
    def computed(cls, data: Mapping[str, Any]) -> Self:
        """Create a record from computed data, converting numpy's numbers to Python's."""
        return cls.model_validate(json.loads(json.dumps(data, default=without_numpy, allow_nan=False)))

    @classmethod
    def from_json(cls, data: Any, where: str) -> Self:
        """Validate plain data.

        Raises a UsageError with what is wrong.

        Args:
            data: plain data, as returned by `to_json`.
            where: the file it comes from, for messages.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = validation_lines(error, cls)
            more = f" (and {len(lines) - _SHOWN} more)" if len(lines) > _SHOWN else ""
            raise UsageError(
                f"{where} is not what this version of Faded writes there: {'; '.join(lines[:_SHOWN])}{more}; run the"
                " stage that writes it again, or restore it with `dvc checkout`"
            ) from None


class OpenRecord(Record):
    """A record to which its producer (an explorer, an estimator, a task) may add fields."""

    model_config = ConfigDict(extra="allow")

    @property
    def more(self) -> dict[str, Any]:
        return self.model_extra or {}

    def number(self, key: str) -> float | None:
        """Return an added number; None if there is none."""
        value = self.more.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        """Return an added text; None if there is none."""
        value = self.more.get(key)
        return value if isinstance(value, str) else None


class JsonRecord(Record):
    """A record that is a separate JSON file, with a schema version."""

    has_schema: ClassVar[bool] = True

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Read the bytes of a file; `where` is its name for messages.

        Raises a UsageError if they are not JSON, of another schema, or not such a record.
        """
        return cls.from_json({key: value for key, value in parse_json(data, where).items() if key != "schema"}, where)

    def dump(self) -> bytes:
        data = {"schema": SCHEMA, **self.to_json()} if self.has_schema else self.to_json()
        return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class Metrics(JsonRecord):
    """A record that is a metrics.json, without a schema because DVC shows every number in it."""

    has_schema: ClassVar[bool] = False


class FlatMetrics(Metrics, OpenRecord):
    """Numbers of a stage for `dvc metrics diff`, which only people read; code reads the verdict alone."""

    model_config = ConfigDict(extra="allow")

    @property
    def passed(self) -> bool | None:
        value = self.more.get("passed")
        return value if isinstance(value, bool) else None


class RateRecord(Record):
    """A rate as stored in a record: null instead of NaN."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def rate(self) -> Rate:
        value, low, high = (np.nan if x is None else x for x in (self.value, self.low, self.high))
        return Rate(value, low, high, self.n)

    @classmethod
    def from_rate(cls, rate: Rate) -> Self:
        return cls(**rate.to_json())


def read_bytes_of(path: Path) -> bytes:
    """Return the bytes of a stage's file. Raises a UsageError if it is missing."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run the stage that writes it (`faded status` shows which)") from None
