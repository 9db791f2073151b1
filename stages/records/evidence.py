"""The manifest of an evidence bundle, see `flows.evidence`.

These are types of plain data, not records: a manifest can list a hundred thousand files, and is untrusted until all of
it was checked.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ManifestFile(TypedDict):
    """One file: its size in bytes, and its hashes in hex; `whole`: the bundle contains it."""

    size: int
    md5: str
    sha256: NotRequired[str]
    whole: bool


class Revision(TypedDict):
    """The git revision, and whether code or parameters differed from it."""

    revision: str | None
    dirty: bool | None


Parts = dict[str, dict[str, ManifestFile]]


class Manifest(TypedDict):
    """The provenance of the last stage, and all files of an audit by the part they belong to."""

    schema: int
    audit: str
    passed: bool | None
    landscape: str
    hashes: dict[str, str]
    seed: int
    task: str
    device: str | None
    backend: str | None
    dtype: str | None
    threads: int | None
    batch_size: int | None
    python: str
    platform: str
    versions: dict[str, str]
    git: Revision
    parts: Parts
