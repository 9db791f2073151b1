"""Reads dvc.lock, the stages that ran and the hashes of their inputs and outputs, and hashes files from their bytes.

DVC trusts inode, time and size, and in its cache an object's name. All of these can be forged or simply wrong. Here a
hash is remembered only while a file's inode, size and both times stay the same. The system sets the time of the last
change (ctime), and programs cannot.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.code import read_stages
from stages.core.environment import WORK
from stages.core.files import content_hash, unseal, write_state
from stages.core.git import file_at

CACHE = WORK / "bytes.json"
# A file that changed less than this before it was looked at may change again within the resolution of its timestamps.
SETTLED_NS = 2_000_000_000
_BLOCK = 1 << 20
_WORTH_THREADS = 1 << 22  # bytes


class Digests(NamedTuple):
    """MD5 and SHA-256 of one file, in hex."""

    md5: str
    sha256: str


def sha256(data: bytes) -> str:
    """SHA-256, in hex."""
    return hashlib.sha256(data).hexdigest()


_Found = Path | os.DirEntry[str]


def below(path: _Found, above: frozenset[str] = frozenset()) -> Iterator[_Found]:
    """A path and all below it in order, through links but one back to a folder above. May raise an OSError."""
    yield path
    if path.is_dir() and (real := os.path.realpath(path)) not in above:
        with os.scandir(path) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        for entry in inside:
            yield from below(entry, above | {real})


def files_below(path: Path) -> list[Path]:
    """The files of `below`, as DVC follows links."""
    return [Path(one) for one in below(path) if one.is_file()]


def signature_of(paths: Iterable[_Found]) -> tuple[str, int]:
    """A hash of names, inodes, sizes and times of files and folders, and when any of them changed last (ns)."""
    digest, newest = hashlib.sha256(), 0
    for path in paths:
        try:
            mark = _mark(path.stat())
        except OSError:  # missing
            mark = [0]
        digest.update(f"{os.fspath(path)}\0{mark}\n".encode(errors="surrogateescape"))
        newest = max(newest, *mark[-2:])
    return digest.hexdigest(), newest


def content_hash_of(files: Iterable[tuple[str, bytes]]) -> str:
    """The same hash as `stages.core.files.content_hash`, for files given as (name, bytes)."""
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(name.encode() + b"\0" + data)
    digest.update(json.dumps(()).encode())
    return digest.hexdigest()[:16]


def directory_md5(files: Iterable[tuple[str, str]]) -> str:
    """DVC's hash of a folder, from the path and MD5 of each of its files."""
    listed = [{"md5": md5, "relpath": path} for path, md5 in sorted(files)]
    return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _mark(stat: os.stat_result) -> list[int]:
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


class Hashes:
    """Hashes of files and folders; earlier results are kept in `CACHE` in the workspace."""

    def __init__(self, root: Path = Path()) -> None:
        self._path = root / CACHE
        self._known: dict[str, list[int | str]] = _read(self._path)
        self._changed = False

    def of(self, path: Path) -> Digests:
        name, mark = str(path.absolute()), _mark(path.stat())
        known = self._known.get(name, [])
        if known[:-2] == mark:
            return Digests(str(known[-2]), str(known[-1]))
        found = digests_of(path)
        if mark == _mark(path.stat()) and time.time_ns() - max(mark[-2:]) > SETTLED_NS:
            self._known[name], self._changed = [*mark, *found], True
        return found

    def learn(self, paths: Iterable[Path]) -> None:
        """Hash those of these files that are not known, in parallel if they are large."""
        unknown = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if self._known.get(str(path.absolute()), [])[:-2] != _mark(stat):
                    unknown[path] = stat.st_size
        if sum(unknown.values()) > _WORTH_THREADS:
            with ThreadPoolExecutor() as threads:
                list(threads.map(self.of, unknown))

    def md5(self, path: Path) -> str:
        return self.of(path).md5

    def sha256(self, path: Path) -> str:
        return self.of(path).sha256

    def content(self, path: Path) -> str:
        """The `stages.core.files.content_hash` of a file or folder, as stages write it to provenance.json."""
        files = files_below(path)
        key, (signature, newest) = f"content {path.absolute()}", signature_of(files)
        known = self._known.get(key)
        if known is not None and known[0] == signature:
            return str(known[1])
        value = content_hash([path])
        if signature == signature_of(files)[0] and time.time_ns() - newest > SETTLED_NS:
            self._known[key], self._changed = [signature, value], True
        return value

    def save(self) -> None:
        """Keep what was computed; if that fails, it is computed again next time."""
        if not self._changed:
            return
        known = {name: entry for name, entry in self._known.items() if Path(name.removeprefix("content ")).exists()}
        with contextlib.suppress(OSError):
            write_state(self._path, known)
            self._changed = False


def _read(path: Path) -> dict[str, list[int | str]]:
    """The stored hashes. Their size has no limit: each data file has an entry."""
    with contextlib.suppress(OSError, ValueError):
        if (data := unseal(path, path.read_bytes())) is not None:
            known: dict[str, list[int | str]] = json.loads(data)
            return known
    return {}


def digests_of(path: Path) -> Digests:
    """The hashes of a file, from one read."""
    md5, sha = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        buffer = memoryview(bytearray(_BLOCK))
        while n := stream.readinto(buffer):
            md5.update(buffer[:n])
            sha.update(buffer[:n])
    return Digests(md5.hexdigest(), sha.hexdigest())


LOCK = Path("dvc.lock")


@lru_cache(maxsize=8)
def read_lock(data: bytes) -> dict[str, dict[str, Any]]:
    """The stages in the bytes of a dvc.lock; none if they are not YAML, as after a kill."""
    try:
        content = YAML(typ="safe").load(data)  # YAML 1.2, as DVC writes it: in 1.1 the class `no` is false
    except YAMLError:
        return {}
    stages = content.get("stages") if isinstance(content, dict) else None
    whole = stages if isinstance(stages, dict) else {}
    return {str(name): entry for name, entry in whole.items() if isinstance(entry, dict)}


def locked_stages() -> dict[str, dict[str, Any]]:
    """The stages in the workspace's dvc.lock; none if there is no such file."""
    return read_lock(LOCK.read_bytes()) if LOCK.exists() else {}


def md5_in(stages: Mapping[str, Mapping[str, Any]], key: str, path: str) -> str | None:
    """The MD5 of an output ("outs") or a dependency ("deps") of these stages; None if they do not have it."""
    for entry in stages.values():
        for one in entry.get(key) or ():
            if one.get("path") == path:
                return str(one["md5"]) if "md5" in one else None
    return None


def as_published(audit: str) -> str | None:
    """Whether an audit's results are those that the dvc.lock of git's last commit names: "yes", or what differs first.

    Provenance names the versions of packages, and reports repeat them, so they do not count. None if there are no such
    results, or they were made by other code, with other parameters or from other inputs.
    """
    committed = file_at("HEAD", LOCK)
    if committed is None or not LOCK.is_file():
        return None
    published, here = read_lock(committed), locked_stages()
    names = [name for kind in read_stages() if (name := f"{kind}@{audit}") in {**published, **here}]
    if (
        not names
        or not published.keys() >= set(names)
        or any(_made_from(published[name]) != _made_from(here.get(name, {})) for name in names)
    ):
        return None
    for name in names:
        for out in published[name]["outs"]:
            path = Path(out["path"])
            if path.name == "provenance.json" or path.suffix == ".html":
                continue
            if md5_in({name: here[name]}, "outs", out["path"]) != out["md5"]:
                return f"no, {path} is the first that differs"
    return "yes"


def _made_from(entry: Mapping[str, Any]) -> tuple[object, ...]:
    """What a stage was made from, but for what other stages handed on."""
    inputs = [dep["md5"] for dep in entry.get("deps", ()) if dep["path"].endswith(("/inputs", "/decisions"))]
    return entry.get("params"), inputs
