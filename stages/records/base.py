"""What all records have in common: frozen, checked when they are read, and written as the same bytes each time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, ValidationError

from stages.errors import UsageError
from stages.files import SCHEMA, parse_json, plain
from stages.params import validation_lines
from stages.rate import Rate

_SHOWN = 5  # errors of one file that are told

T = TypeVar("T")
Listed = Annotated[list[T], FailFast()]
"""A list that is refused at the first entry that is wrong: a forged one may have any number of them."""


class Record(BaseModel):
    """A part of a record. What was not given is not written, so that a file is read and written again byte for byte."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without what was not given."""
        return self.model_dump(exclude_unset=True)

    def having(self, **more: object) -> Self:
        """A copy with what there is of these."""
        return self.model_copy(update={name: value for name, value in more.items() if value is not None})

    @classmethod
    def computed(cls, data: Mapping[str, Any]) -> Self:
        """The record of what was computed, in which numpy's numbers become Python's."""
        return cls.model_validate(json.loads(json.dumps(data, default=plain, allow_nan=False)))

    @classmethod
    def from_json(cls, data: Any, where: str) -> Self:
        """Check plain data.

        Args:
            data: as `to_json` gives it.
            where: the file it comes from, for messages.

        Raises:
            UsageError: naming what is wrong.
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
    """A record to which its maker may add of its own: an explorer, an estimator, a task."""

    model_config = ConfigDict(extra="allow")

    @property
    def more(self) -> dict[str, Any]:
        """What was added."""
        return self.model_extra or {}

    def number(self, key: str) -> float | None:
        """A number that was added, if it was."""
        value = self.more.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def text(self, key: str) -> str | None:
        """A text that was added, if it was."""
        value = self.more.get(key)
        return value if isinstance(value, str) else None


class Document(Record):
    """A record that is a JSON file of its own, with its schema version."""

    has_schema: ClassVar[bool] = True

    @classmethod
    def parse(cls, data: bytes, where: str) -> Self:
        """Read the bytes of a file; `where` is its name for messages.

        Raises:
            UsageError: when it is not JSON, of another schema, or not such a record.
        """
        return cls.from_json({key: value for key, value in parse_json(data, where).items() if key != "schema"}, where)

    def dump(self) -> bytes:
        """The bytes of the file."""
        data = {"schema": SCHEMA, **self.to_json()} if self.has_schema else self.to_json()
        return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


class Metrics(Document):
    """A record that is a metrics.json: DVC shows every number in it, so it carries no schema."""

    has_schema: ClassVar[bool] = False


class FlatMetrics(Metrics, OpenRecord):
    """Numbers of a stage for `dvc metrics diff`, which people read and nothing else does; but for the verdict's."""

    model_config = ConfigDict(extra="allow")

    @property
    def passed(self) -> bool | None:
        """Whether all gates passed."""
        value = self.more.get("passed")
        return value if isinstance(value, bool) else None


class RateRecord(Record):
    """A rate as a record keeps it: null in place of NaN."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    @property
    def rate(self) -> Rate:
        """The rate to compute with."""
        value, low, high = (np.nan if x is None else x for x in (self.value, self.low, self.high))
        return Rate(value, low, high, self.n)

    @classmethod
    def from_rate(cls, rate: Rate) -> RateRecord:
        """The record of a rate."""
        return cls(**rate.to_json())


def read_bytes_of(path: Path) -> bytes:
    """The bytes of a file of a stage.

    Raises:
        UsageError: when it is missing.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run the stage that writes it (`faded status` shows which)") from None
