"""Files between stages: schema versions, atomic outputs, and scratch folders that survive a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from stages.core.environment import DATA, WORK
from stages.core.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq
    from typing_extensions import Buffer

T = TypeVar("T")

SCHEMA = 1
_LARGEST_STATE = 64 << 20  # bytes; Faded writes no larger file
_MOST_VALUES = 100_000_000  # of a table from outside; read, they take about 2 GB


def stage_dir(audit: str, stage: str) -> Path:
    """Return the folder of a stage's outputs: data/<audit>/<stage>."""
    return DATA / audit / stage


def local_file(inputs: Path, name: str, where: str) -> Path:
    """Return a user's file in data/<audit>/inputs, the only folder whose changes make stages stale.

    Raises a UsageError if the path leaves the folder or does not exist.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UsageError(
            f"{where}: {name} lies outside {inputs}; put the file or a link to it there and name it relative to that"
        )
    if not (inputs / name).exists():
        there = sorted(p.name for p in inputs.iterdir() if not p.name.startswith(".")) if inputs.is_dir() else []
        raise UsageError(f"{where}: no {inputs / name}; found there: {', '.join(there) or 'nothing'}")
    return inputs / name


def without_numpy(value: Any) -> Any:
    """Convert a numpy scalar or array to plain JSON data."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def write_json(path: Path, data: dict[str, Any], *, schema: bool = True) -> None:
    """Write plain data deterministically. Metrics have no schema, because DVC shows every number in them."""
    payload = {"schema": SCHEMA, **data} if schema else data
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(payload, indent=1, ensure_ascii=False, default=without_numpy, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file written by `write_json`. Raises a UsageError if it is missing, not JSON, or of another schema."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: run the stage that writes it (`faded status` shows which)") from None
    return parse_json(data, str(path))


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """Parse bytes as `read_json` does; `name` is used in messages."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict) or value.get("schema", SCHEMA) != SCHEMA:
        raise UsageError(
            f"{name} has schema {value.get('schema') if isinstance(value, dict) else None}, this version reads {SCHEMA}"
        )
    return value


def read_named(path: Path, digest: str, where: str, again: str = "") -> bytes:
    """Read a file that params.yaml names with its SHA-256.

    Raises a UsageError if it cannot be read, or is another file.

    Args:
        digest: its SHA-256 by params.yaml.
        where: the block that names it, for messages.
        again: what writes both, for messages.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{where}.file: {path} cannot be read ({error.strerror}): restore it from git") from None
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        more = f"; {again}" if again else ""
        raise UsageError(f"{where}: {path} has sha256 {found[:12]}…, params.yaml names {digest[:12]}…{more}")
    return data


@contextlib.contextmanager
def publishing(target: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `target` when the block ends without an error.

    Outputs appear whole or not at all: `target` is never partly written. All moves are within one folder, so they are
    renames on whatever file system contains `data/`.
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


def replace_file(path: Path, data: bytes | str, mode: int | None = None) -> None:
    """Write a file atomically: a kill leaves the old file or the new one.

    There is no fsync, so a crash of the machine may damage it; Faded seals its own files and recreates them then.

    Args:
        path: the file. With a mode it is one of Faded's own and is replaced; otherwise it may be a user's link, and the
            link's target is replaced and keeps its mode.
    """
    path = path.resolve() if mode is None else path
    with _written(path, data, 0o666 if mode is None else mode) as partial:
        if mode is None and path.exists():
            shutil.copymode(path, partial)
        partial.replace(path)


def new_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write a whole file that survives a crash of the machine, without ever replacing another.

    Raises a FileExistsError if the file exists already.
    """
    with _written(path, data, mode, durable=True) as partial:
        os.link(partial, path)


@contextlib.contextmanager
def _written(path: Path, data: bytes | str, mode: int, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path` with the data, which the caller renames or links."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.partial")
    partial.unlink(missing_ok=True)  # of an earlier process with this id
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.write(data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield partial
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[str], object] = lambda _: None) -> Iterator[None]:
    """Lock a file against all other processes and threads; it contains the holder's id and is released when that ends.

    Args:
        path: the lock file, which is kept.
        busy: called with the holder's process id if the lock is taken; unless it raises an error, the call then waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            busy(holder(path) or "unknown")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def holder(path: Path) -> str | None:
    """Return the id of the process that holds a lock, "" if it is unknown; None if the lock is free."""
    try:
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        text = path.read_text().strip()
        return text if text.isdigit() else ""
    return None


def checksum(path: Path, *data: Buffer) -> str:
    """Return a checksum (16 hex digits) of a file's data, bound to the file's path within its workspace."""
    parts = path.absolute().parts
    inside = parts[len(parts) - parts[::-1].index(WORK.name) :] if WORK.name in parts else parts[-2:]
    digest = hashlib.blake2b("/".join(inside).encode() + b"\0", digest_size=8)
    for part in data:
        digest.update(part)
    return digest.hexdigest()


def seal(path: Path, data: bytes) -> bytes:
    """Return a line for the file at `path`: data without line breaks, preceded by their checksum."""
    return checksum(path, data).encode() + b" " + data + b"\n"


def unseal(path: Path, line: bytes) -> bytes | None:
    """Return the data of a sealed line; None if it is damaged or was written to another file."""
    data = line[17:-1]
    return data if line == seal(path, data) else None


def append_sealed(path: Path | None, data: bytes) -> None:
    """Append a sealed line to a file from which a killed run resumes; None stores nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(seal(path, data))


def read_sealed(path: Path | None) -> list[bytes]:
    """Return the data of a file's sealed lines up to the first damaged one, from which on the file is cut.

    A line that a kill cut short is normal; with other damage the file is put aside.
    """
    if path is None or not path.exists():
        return []
    lines, good = path.read_bytes().splitlines(keepends=True), list[bytes]()
    for line in lines:
        if (data := unseal(path, line)) is None:
            if lines[-1].endswith(b"\n"):
                put_aside(path)
            replace_file(path, b"".join(lines[: len(good)]))
            break
        good.append(data)
    return good


def put_aside(path: Path) -> None:
    """Move a damaged file out of the way so that it is recreated, and print a line about it."""
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(OSError):  # in a read-only workspace it stays
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink(missing_ok=True)  # a folder replaces no file
        path.replace(aside)
        print(f"{path} was damaged: set aside as {aside.name}, recreated", file=sys.stderr)


def write_state(path: Path, state: Any) -> None:
    """Store state that outlives a process, such as how long stages took: sealed, private and atomic."""
    replace_file(path, seal(path, TypeAdapter(type(state)).dump_json(state)), mode=0o600)


def read_state(path: Path, kind: type[T]) -> T | None:
    """Read a file written by `write_state`; a damaged file, or one of another version, is put aside.

    Args:
        kind: type of the state, for pydantic.

    Returns:
        The state; None if there is no valid file.
    """
    try:
        with path.open("rb") as file:
            data = unseal(path, file.read(_LARGEST_STATE))
        if data is not None:
            return TypeAdapter(kind).validate_json(data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError):
        pass
    put_aside(path)
    return None


def read_table(source: Path | bytes, where: str = "") -> pd.DataFrame:
    """Read a parquet file written by a stage.

    Raises a UsageError if it is missing or cannot be read.

    Args:
        source: the file, or its bytes.
        where: its name in messages; by default the path.
    """
    import pandas as pd

    where = where or str(source)
    try:
        return pd.read_parquet(io.BytesIO(source) if isinstance(source, bytes) else source)
    except FileNotFoundError:
        raise UsageError(f"{where} is missing: run the stage that writes it (`faded status` shows which)") from None
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise UsageError(
            f"{where} cannot be read as a parquet file ({str(error).splitlines()[0][:200]}): run the stage that writes"
            " it again, or restore it with `dvc checkout`"
        ) from None


def parquet_metadata(path: Path, where: str) -> pq.FileMetaData:
    """Read the metadata of a parquet file from outside, before its values: equal ones take no space in the file.

    Raises a UsageError if it is not a parquet file, or has more than 100 million values.

    Args:
        where: the option or block that names it, for messages.
    """
    import pyarrow.parquet as pq

    try:
        found = pq.read_metadata(path)
    except (OSError, ValueError) as error:  # pyarrow.ArrowException
        raise UsageError(f"{where}: {path} is not a readable parquet file: {error}") from None
    groups = [found.row_group(i) for i in range(found.num_row_groups)]
    values = sum(max(one.num_rows, one.column(i).num_values) for one in groups for i in range(one.num_columns))
    if values > _MOST_VALUES:
        raise UsageError(
            f"{where}: {path} has {values:,} values in {found.num_rows:,} rows, expected {_MOST_VALUES:,} at most; draw"
            " some rows at random"
        )
    return found


def record_probe_seconds(audit: str, seconds: float) -> None:
    """Store how long a probe takes on this machine; not in a stage's output, which is the same on every run."""
    write_state(WORK / "probe_seconds" / f"{audit}.json", seconds)


def probe_seconds(audit: str) -> float | None:
    """Return how long a probe took when `prepare` last ran here; None if its task does not measure that."""
    seconds = read_state(WORK / "probe_seconds" / f"{audit}.json", float)
    return seconds if seconds is not None and 0 < seconds < float("inf") else None


@contextlib.contextmanager
def scratch(audit: str, stage: str, key: str) -> Iterator[Path]:
    """Yield the stage's scratch folder for these inputs, locked against other processes.

    It survives a kill, so that work can be resumed; scratch folders of other inputs are removed.
    """
    home = WORK / "scratch" / audit / stage

    def refuse(process: str) -> None:
        raise InfrastructureError(
            f"another process is running {stage} of {audit} in this workspace (process {process}): wait or stop it"
        )

    with locked(home / "lock", refuse):
        for other in home.iterdir():
            if other.is_dir() and other.name != key:
                shutil.rmtree(other, ignore_errors=True)
        folder = home / key
        folder.mkdir(exist_ok=True)
        yield folder


def decisions_lock(audit: str) -> contextlib.AbstractContextManager[None]:
    """Prevent all other processes and threads of the workspace from recording a decision on an audit."""
    return locked(WORK / f"decisions-{audit}.lock")


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder without Python's caches; follows links, as DVC does."""
    walk = os.walk(folder, followlinks=True)
    return sorted(Path(here) / name for here, _, names in walk if "__pycache__" not in here for name in names)


def content_hash(paths: Iterable[Path], *more: Any) -> str:
    """Return the SHA-256 (first 16 hex digits) of the bytes of files and folders, and of plain data.

    The order of keys counts, because cells are numbered in the order of the concepts.
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
