"""Check that the model behind an endpoint is still the one that was prepared.

Its weights are not visible, so a prepared model is stored as its answers to a few fixed inputs, and every later stage
asks for these again. Settings of speed and retries change no answer, so they are only in params.yaml: a rate that is
too high can be lowered, and a search resumes where it was.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.core.errors import UsageError
from stages.core.files import content_hash, read_json, write_json
from stages.tasks.endpoint import Endpoint, safe_url

ANSWERS = "answers.json"
DECIMALS = 2  # of numbers below 10; larger ones are kept to three digits
# Relative tolerance for numbers above 1: rounding changed the stored number by up to half a unit of its last digit, and
# the last bits of sums on a GPU depend on the batch.
CLOSE = 0.5 * 10**-DECIMALS + 1e-3
EXACT = 1e15  # floats represent whole numbers exactly up to it; larger ones are probably identifiers
LONG = 200  # characters; longer texts (pictures) are stored as a hash


def keep_answers(endpoint: Endpoint, inputs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Query the model on a few fixed inputs and write its answers to answers.json, to recognise the model later.

    If params.yaml declares that the model is not deterministic, only its address is stored.

    Args:
        inputs: few, because every later stage queries them again.
        folder: folder of the prepared model.
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
    """Repeat the queries of `keep_answers`, unless the model is declared as not deterministic.

    Raises a UsageError if the answers or the address in params.yaml differ from those of the prepared model.
    """
    kept, config = read_json(folder / ANSWERS), endpoint.config
    if (kept["endpoint"], kept["headers"]) != (config.endpoint, config.headers):
        then, today = safe_url(kept["endpoint"]), safe_url(config.endpoint)
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
    """Convert an answer to its stored form: long texts as their hash, keys in order.

    Args:
        coarse: whether to round numbers, so that a model whose last bits vary gives the same file whenever it is
            prepared, and nothing that depends on it becomes stale.
    """
    if isinstance(value, str) and len(value) > LONG:
        return f"{len(value):,} characters, {content_hash([], value)}"
    if isinstance(value, dict):
        return {key: _short(value[key], coarse) for key in sorted(value)}
    if isinstance(value, list):
        return [_short(one, coarse) for one in value]
    if coarse and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < EXACT:
        rounded = round(float(value), DECIMALS) if abs(value) < 10 else float(f"{value:.{DECIMALS}e}")
        return rounded + 0.0  # turns -0.0 into 0.0
    return value


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= CLOSE * max(1.0, abs(one))
    return bool(one == other)
