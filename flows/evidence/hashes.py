"""Hashes that evidence is made of: of files (`flows.digests`), and of what a bundle holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from flows.digests import Hashes, directory_md5, files_below, sha256, sha256_file, signature_of

__all__ = ["Hashes", "content_hash_of", "directory_md5", "files_below", "sha256", "sha256_file", "signature_of"]


def content_hash_of(files: Iterable[tuple[str, bytes]]) -> str:
    """What `stages.files.content_hash` makes of files that are at hand as (name, bytes)."""
    digest = hashlib.sha256()
    for name, data in files:
        digest.update(name.encode() + b"\0" + data)
    digest.update(json.dumps(()).encode())
    return digest.hexdigest()[:16]
