"""Files between stages: schema versions, atomic outputs, and scratch that survives a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.environment import WORK
from stages.errors import InfrastructureError, UsageError
from stages.params import DATA

SCHEMA = 1


def stage_dir(audit: str, stage: str) -> Path:
    """Where a stage's outputs lie: data/<audit>/<stage>."""
    return DATA / audit / stage


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def write_json(path: Path, data: dict[str, Any], *, schema: bool = True) -> None:
    """Write plain data; the same data give the same bytes. Metrics carry no schema, DVC shows every number in them."""
    payload = {"schema": SCHEMA, **data} if schema else data
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(payload, indent=1, ensure_ascii=False, default=_plain, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        UsageError: when it is missing, not JSON, or of another schema.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run the stage that writes it (`faded status` shows which)") from None
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(
            f"{path} has schema {data.get('schema') if isinstance(data, dict) else None}, this version reads {SCHEMA}"
        )
    return data


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` when the block ends well.

    Outputs appear whole or not at all: whatever happens, `target` is never a part of what was to be written. All
    moves are within one folder, so they are renames on whatever file system `data/` is.
    """
    partial, old = (target.with_name(f".{target.name}.{what}") for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    if target.exists():
        target.replace(old)
    partial.replace(target)
    shutil.rmtree(old, ignore_errors=True)


def record_probe_seconds(audit: str, seconds: float) -> None:
    """Remember what a probe takes on this machine: no output of a stage, for those are the same on every run."""
    path = WORK / "probe_seconds" / f"{audit}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    write_json(partial, {"seconds": seconds})
    partial.replace(path)


def probe_seconds(audit: str) -> float | None:
    """What a probe took when `prepare` last ran here; None if its task does not measure that."""
    try:
        seconds = read_json(WORK / "probe_seconds" / f"{audit}.json").get("seconds")
    except UsageError:
        return None
    return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < float("inf") else None


@contextlib.contextmanager
def scratch(audit: str, stage: str, key: str) -> Iterator[Path]:
    """Yield the stage's own scratch folder for these inputs, locked against a second process.

    It outlives a kill, so that work can be resumed; scratch of other inputs is removed.
    """
    home = WORK / "scratch" / audit / stage
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InfrastructureError(
                f"another process runs {stage} of {audit} in this workspace; wait for it or end it"
            ) from None
        for other in home.iterdir():
            if other.is_dir() and other.name != key:
                shutil.rmtree(other, ignore_errors=True)
        folder = home / key
        folder.mkdir(exist_ok=True)
        yield folder


def _files(folder: Path) -> list[Path]:
    """All files below a folder, links followed as DVC does, without Python's caches."""
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(here) / name for here, _, names in walk if "__pycache__" not in here for name in names)


def content_hash(paths: Iterable[Path], *more: Any) -> str:
    """SHA-256 (first 16 hex digits) over the bytes of files and folders, and over plain data.

    The order of keys counts: cells are numbered in the order of the concepts.
    """
    digest = hashlib.sha256()
    for path in paths:
        for file in _files(path) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0")
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    digest.update(json.dumps(more, default=str).encode())
    return digest.hexdigest()[:16]
