"""Base of configuration models: unknown keys are errors, and errors state the place, what was found and expected."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.core.errors import UsageError, did_you_mean, escape_controls

_MOST = 2000  # characters of a message: one screen
_MOST_OF_ONE = 400  # of one error
_short = reprlib.Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxtuple = 2, 4, 8, 8
_short.maxstring = _short.maxlong = _short.maxother = 80


B = TypeVar("B", bound=BaseModel)
# Keys of older versions, as paths from the top of params.yaml, and what became of each.
OLD_KEYS = {"shards": "is now audits.NAME.discover.shards alone"}
# The same for paths from an entry of `audits:` or `repairs:`.
OLD_KEYS_OF_AUDIT = {
    "code": "is not needed any more, the module is found through task: remove this line",
    "discover.control": "is now discover.baseline",
    "prepare.pictures": "is now prepare.data",
    "prepare.data.dataset": "is now prepare.data.datasets",
    "prepare.generation.dtype": "is now compute.dtype",
    "prepare.model.dtype": "is now compute.dtype",
}
OLD_KEYS_OF_REPAIR = {
    "restructure.aim": "is always modes now: remove this line",
    "restructure.settings.folder.dataset": "is now restructure.settings.folder.datasets",
}


class Strict(BaseModel):
    """Base of all configuration models: an unknown key is an error, not a silent default, and nothing is converted.

    Yes is not 1, and neither "3" nor 3.0 is a whole number, but a whole number is a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


def validation_lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return one line per pydantic error: place, problem, value found, and a suggestion for a mistyped key."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part)[:80] for part in item["loc"])
        where = f"{prefix}.{where}".strip(".")
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, item["loc"][:-1])
            hint = did_you_mean(str(item["loc"][-1])[:80], known)
            lines.append(f"{where}: unknown key{hint}; expected one of {', '.join(sorted(known))}")
        elif item["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if item["type"] == "value_error" else f", found {short_value(item['input'])}"
            lines.append(f"{where}: {message}{found}" if where else message + found)
    return lines


def _keys_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the model nested at `loc`."""
    here: Any = model
    for part in loc:
        field = here.model_fields.get(str(part)) if _is_model(here) else None
        here = here if field is None else field.annotation
        for argument in getattr(here, "__args__", ()):  # dict[str, Model] and Model | None
            here = argument if _is_model(argument) else here
    return [field.alias or name for name, field in here.model_fields.items()] if _is_model(here) else []


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def checked(model: type[B], data: Mapping[str, Any], where: str) -> B:
    """Validate a block.

    Args:
        model: its model.
        data: the block.
        where: its key in params.yaml, or its file, for messages.

    Raises:
        UsageError: with one line per error.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as error:
        raise UsageError("\n".join(validation_lines(error, model, where))) from None


def short_value(value: Any) -> str:
    """Format a value for messages, always short."""
    text = _short.repr(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            text += f", which YAML reads as text: write {float(value):g} without quotes"
    return text


def errors_in(name: str, lines: Sequence[str]) -> UsageError:
    """Combine all errors of a file into one error of at most a screen.

    Args:
        name: the file's name.
        lines: one error each.
    """
    told, size = [], 0
    for line in lines:
        shown = escape_controls(line[: _MOST_OF_ONE + 1])
        told.append(f"  {shown[:_MOST_OF_ONE] + ' ...' if len(shown) > _MOST_OF_ONE else shown}")
        size += len(told[-1].encode())
        if size > _MOST - _MOST_OF_ONE and len(told) < len(lines):
            told.append(f"  and {len(lines) - len(told)} more")
            break
    return UsageError(f"{len(lines)} error(s) in {name}:\n" + "\n".join(told))


def refuse_old_keys(block: Any, old_keys: Mapping[str, str]) -> Any:
    """Return the block if it has none of the keys of older versions.

    Raises:
        ValueError: with the old keys, and what became of them.
    """
    found = [f"{key} {advice}" for key, advice in old_keys.items() if _has_key(block, key.split("."))]
    if found:
        raise ValueError("; ".join(found))
    return block


def _has_key(block: Any, path: list[str]) -> bool:
    for key in path:
        if not isinstance(block, Mapping) or key not in block:
            return False
        block = block[key]
    return True
