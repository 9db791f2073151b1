"""Numbers and sentences as text for people."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

_SAID = {  # keys of metrics that need explanation
    "failing_cells": "distinct failing cells",
    "steps": "steps taken, including repeats",
    "filled_at_random": "probes filled in at random",
    "surrogate": "surrogate model",
    "fits": "fits of the surrogate model",
    "random_probes": "probes drawn at random",
    "policy_entropy": "entropy of the policy, relative to a uniform one",
    "name": "estimator",
    "probes_agent": "probes of the agent",
    "probes_control": "probes of the control",
    "log_loss_constant": "log loss of always predicting the overall rate",
    "brier": "Brier score",
    "brier_constant": "Brier score of always predicting the overall rate",
    "calibration_error": "expected calibration error",
}


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, including those of numpy but not booleans."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any, digits: int = 1) -> str:
    """Format a share as a percentage: "71.0%"; a dash if there is none."""
    return f"{100 * value:.{digits}f}%" if is_number(value) else "–"


def interval(low: Any, high: Any, digits: int = 1) -> str:
    """Format the bounds of an interval of shares: "64.0–77.0%"; a dash if there is none."""
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}%" if is_number(low) and is_number(high) else "–"


def points(value: Any) -> str:
    """Format a difference of shares in percentage points, signed unless it is 0: "−20.0"."""
    if not is_number(value):
        return "–"
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def whole_points(value: Any) -> str:
    """Format a difference of shares in whole percentage points: "−44", "+3", "0"; empty if there is none."""
    return f"{round(100 * value):+d}".replace("-", "−").replace("+0", "0") if is_number(value) else ""


def points_interval(low: Any, high: Any) -> str:
    """Format the bounds of a difference: "−24.0 to −16.0"."""
    return f"{points(low)} to {points(high)}" if is_number(low) and is_number(high) else "–"


def score(value: Any, digits: int, sign: str = "") -> str:
    """Format a measure: "0.712"; with `sign` "+" a change: "+0.020"; a dash if there is none."""
    # "z": no sign before a negative value that rounds to zero
    return f"{value:{sign}z.{digits}f}".replace("-", "−") if is_number(value) else "–"


def times(value: Any) -> str:
    """Format a ratio: "3.1×"."""
    return f"{value:.2g}×" if is_number(value) and value < 10 else f"{value:.0f}×" if is_number(value) else "–"


def number(value: Any) -> str:
    """Format any single value: integers with thousands separators, floats with four significant digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def words(key: str) -> str:
    """Write a key as a person would say it: "failure_rate" -> "failure rate"."""
    return _SAID.get(key) or key.replace("_", " ").replace(".", " · ")


def listed(region: str) -> str:
    """Write the values of a region as a list: "digit is 3 or 8 or 9" -> "digit is 3, 8 or 9"."""
    return re.sub(r" or (?=(?:(?! and ).)* or )", ", ", region)


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested plain data to (name, text) rows; lists of plain values are joined, `schema` is left out."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key == "schema":
            continue
        if isinstance(value, Mapping) and key == "versions":
            yield name, ", ".join(f"{package} {version}" for package, version in value.items())
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            for i, item in enumerate(value, 1):
                yield from flatten(item if isinstance(item, Mapping) else {"": item}, f"{name}.{i}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(number(item) for item in value) or "none"
        else:
            # Integers in provenance are seeds, years and sizes, so they have no thousands separators.
            yield name, str(value) if isinstance(value, int) and not isinstance(value, bool) else number(value)
