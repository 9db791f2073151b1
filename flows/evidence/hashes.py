"""SHA-256 of files, remembered while a file's size and time stay the same: models have gigabytes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from stages.environment import WORK
from stages.files import content_hash

CACHE = WORK / "evidence" / "hashes.json"
# One that was written less than this before it was hashed may change once more within its time stamp's resolution.
_SETTLED_NS = 2_000_000_000


def sha256(data: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted, links followed as DVC does; the folder itself if it is a file."""
    if folder.is_file():
        return [folder]
    return sorted(Path(here) / name for here, _, names in os.walk(folder, followlinks=True) for name in names)


def signature_of(paths: Iterable[Path]) -> str:
    """A hash of names, sizes and times of files: while it is the same, so are they."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class Hashes:
    """Hashes of files and folders of the workspace, with what was computed before kept in `CACHE`."""

    def __init__(self) -> None:
        try:
            known = json.loads(CACHE.read_text())
        except (FileNotFoundError, ValueError):
            known = {}
        self._known: dict[str, list[str]] = known if isinstance(known, dict) else {}
        self._changed = False

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file."""
        return self._remembered(f"sha256 {path}", [path], lambda: sha256_file(path))

    def content(self, path: Path) -> str:
        """What `stages.files.content_hash` makes of a file or folder, as stages write it to provenance.json."""
        return self._remembered(f"content {path}", files_below(path), lambda: content_hash([path]))

    def _remembered(self, key: str, files: list[Path], compute: Callable[[], str]) -> str:
        signature = signature_of(files)
        known = self._known.get(key)
        if known is not None and known[0] == signature:
            return known[1]
        before = max((file.stat().st_mtime_ns for file in files), default=0)
        value = compute()
        if _now_ns() - before > _SETTLED_NS:
            self._known[key], self._changed = [signature, value], True
        return value

    def save(self) -> None:
        """Keep what was computed."""
        if self._changed:
            CACHE.parent.mkdir(parents=True, exist_ok=True)
            partial = CACHE.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(self._known, indent=1))
            partial.replace(CACHE)


def _now_ns() -> int:
    import time

    return time.time_ns()


def content_hash_of(files: Iterable[tuple[str, bytes]]) -> str:
    """What `stages.files.content_hash` makes of files that are at hand as (name, bytes)."""
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(name.encode() + b"\0" + data)
    digest.update(json.dumps(()).encode())
    return digest.hexdigest()[:16]
