"""Whether the model behind an endpoint is still the one that was prepared.

Nobody sees its weights, so a prepared model is what it answered to a few fixed inputs, which every later stage asks
again. How fast and how patiently it is asked changes no answer, so that is in params.yaml alone: a rate that turned out
too high can be lowered, and a search goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.errors import UsageError
from stages.files import content_hash, read_json, write_json
from stages.tasks.endpoint import Endpoint, shown

ANSWERS = "answers.json"
DECIMALS = 2  # of numbers below 10; of larger ones three digits are kept
# As a share of numbers above 1: what was kept is off by half a unit of its last digit, and sums on a GPU depend on the
# batch in their last bits.
CLOSE = 0.5 * 10**-DECIMALS + 1e-3
EXACT = 1e15  # floats hold whole numbers up to it; larger ones are names rather
LONG = 200  # characters; longer texts (pictures) are kept as a hash


def keep_answers(endpoint: Endpoint, inputs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Ask a few fixed inputs and write answers.json: by these the model is known again.

    Of a model that is said not to be deterministic the address alone is kept.

    Args:
        endpoint: the model under test.
        inputs: few, for every later stage asks them again.
        folder: of the prepared model.
    """
    config = endpoint.config
    kept = {
        "endpoint": config.endpoint,
        "headers": config.headers,
        "inputs": [dict(one) for one in inputs],
        "outputs": [_short(answer, coarse=True) for answer in endpoint.ask(inputs)] if config.deterministic else [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ANSWERS, kept)


def check_answers(endpoint: Endpoint, folder: Path) -> None:
    """Ask again what `keep_answers` asked, unless the model is said not to be deterministic.

    Raises:
        UsageError: when the model, or params.yaml, names another one than was prepared.
    """
    kept, config = read_json(folder / ANSWERS), endpoint.config
    if (kept["endpoint"], kept["headers"]) != (config.endpoint, config.headers):
        then, today = shown(kept["endpoint"]), shown(config.endpoint)
        raise UsageError(
            f"{folder} was prepared for {then}, params.yaml names {today}"
            + (", with another query or other headers" if then == today else "")
            + ": run prepare"
        )
    if not config.deterministic:
        return
    if not kept["outputs"]:
        raise UsageError(f"{folder} was prepared with deterministic: false, params.yaml says true: run prepare")
    now = [_short(answer) for answer in endpoint.ask(kept["inputs"])]
    for number, (before, after) in enumerate(zip(kept["outputs"], now, strict=True), start=1):
        if not _alike(before, after):
            then, today = (endpoint.quoted(json.dumps(one, ensure_ascii=False)) for one in (before, after))
            raise UsageError(
                f"{endpoint.name} answers differently than when prepared: to input {number} of {folder / ANSWERS}"
                f" {then} then, {today} now. If it was changed, run prepare again (faded audit --force); if it never"
                " answers the same twice, set deterministic: false"
            )


def _short(value: Any, coarse: bool = False) -> Any:
    """An answer as it is kept: long texts by their hash, keys in order.

    Args:
        value: the answer.
        coarse: whether numbers are rounded: a model that differs in their last bits leaves the same file, and all that
            depends on it stays fresh, whenever it is prepared.
    """
    if isinstance(value, str) and len(value) > LONG:
        return f"{len(value):,} characters, {content_hash([], value)}"
    if isinstance(value, dict):
        return {key: _short(value[key], coarse) for key in sorted(value)}
    if isinstance(value, list):
        return [_short(one, coarse) for one in value]
    if coarse and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < EXACT:
        rounded = round(float(value), DECIMALS) if abs(value) < 10 else float(f"{value:.{DECIMALS}e}")
        return rounded + 0.0  # no -0.0
    return value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= CLOSE * max(1.0, abs(one))
    return bool(one == other)
