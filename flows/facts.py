"""What a command found, as JSON for programs: the dataclasses that it prints as text, field by field.

docs/commands.md describes them. A field that is renamed or removed makes a new version of its command's schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from stages.core.errors import Exit

VERSIONS = dict.fromkeys(("audit", "compare", "error", "gate", "history", "plan", "reproduce", "status", "verify"), 1)
TEXT_ONLY = {"text only": True}  # the metadata of a dataclass field that is left out
_KINDS = {Exit.GATE_FAILED: "failed", Exit.USAGE: "usage", 130: "stopped"}


def as_json(command: str, found: object) -> str:
    """A JSON document: the schema of a command, and everything that it found."""
    document = {"schema": f"faded/{command}/{VERSIONS[command]}", **_plain(found)}
    return json.dumps(document, indent=1, allow_nan=False)  # ASCII: nothing in it can control a terminal


def error_as_json(command: str, message: str, exit_code: int) -> str:
    """The same of an error: its kind (failed, usage, infrastructure, stopped), message and exit code."""
    kind = _KINDS.get(exit_code, "infrastructure")
    return as_json("error", {"command": command, "kind": kind, "message": message, "exit_code": int(exit_code)})


def _plain(value: Any) -> Any:
    """Plain data, NaN as null."""
    if (named := _named(value)) is not None:
        return {str(name): _plain(one) for name, one in named.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str | bytes):
        return [_plain(one) for one in value]
    if isinstance(value, Path | datetime):
        return str(value.absolute()) if isinstance(value, Path) else value.isoformat()
    value = value.item() if hasattr(value, "item") else value  # a number of numpy's
    return None if isinstance(value, float) and not isfinite(value) else value


def _named(value: Any) -> Mapping[Any, Any] | None:
    """The parts of a value by name: a dataclass's fields and public properties; None if it has no named parts."""
    if is_dataclass(value):
        names = [one.name for one in fields(value) if one.metadata != TEXT_ONLY]
        names += [name for name, of in vars(type(value)).items() if isinstance(of, property) and name[0] != "_"]
        return {name: getattr(value, name) for name in names}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return dict(value._asdict())
    return value if isinstance(value, Mapping) else None
