"""Reads dvc.lock: the stages that ran, and the hashes of their inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LOCK = Path("dvc.lock")


def read_lock(data: bytes) -> dict[str, dict[str, Any]]:
    """The stages in the bytes of a dvc.lock; none if they are not YAML, as after a kill."""
    try:
        content = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    stages = content.get("stages") if isinstance(content, dict) else None
    whole = stages if isinstance(stages, dict) else {}
    return {str(name): entry for name, entry in whole.items() if isinstance(entry, dict)}


def md5_in(stages: Mapping[str, Mapping[str, Any]], key: str, path: str) -> str | None:
    """The MD5 of an output ("outs") or a dependency ("deps") of these stages; None if they do not have it."""
    for entry in stages.values():
        for one in entry.get(key) or ():
            if one.get("path") == path:
                return str(one["md5"]) if "md5" in one else None
    return None
