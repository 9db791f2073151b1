"""What configuration models share: unknown keys are errors, and errors say where, what was found and expected."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from stages.errors import did_you_mean, known_keys


class Strict(BaseModel):
    """Base of all configuration models: an unknown key is an error, not a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def validation_lines(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """One line per pydantic error: where, what is wrong, what was found, and a suggestion for a mistyped key."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"])
        where = f"{prefix}.{where}".strip(".")
        if item["type"] == "extra_forbidden":
            known = known_keys(model, item["loc"][:-1])
            hint = did_you_mean(item["loc"][-1], known)
            lines.append(f"{where}: unknown key{hint}; expected one of {', '.join(sorted(known))}")
        elif item["type"] == "missing":
            lines.append(f"{where}: missing")
        else:
            message = item["msg"].removeprefix("Value error, ")
            found = "" if item["type"] == "value_error" else f", found {item['input']!r}"
            lines.append(f"{where}: {message}{found}" if where else message + found)
    return lines
