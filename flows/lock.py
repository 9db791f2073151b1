"""What dvc.lock says: the stages that ran, and the hashes of what they read and wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

LOCK = Path("dvc.lock")


def read_lock(data: bytes) -> dict[str, dict[str, Any]]:
    """The stages that the bytes of a dvc.lock name; none where these are not YAML, as a kill may leave them."""
    try:
        content = yaml.load(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return {}
    stages = content.get("stages") if isinstance(content, dict) else None
    whole = stages if isinstance(stages, dict) else {}
    return {str(name): entry for name, entry in whole.items() if isinstance(entry, dict)}


def md5_in(stages: Mapping[str, Mapping[str, Any]], key: str, path: str) -> str | None:
    """The MD5 of an output ("outs") or a dependency ("deps") of these stages; None where they name none."""
    for entry in stages.values():
        for one in entry.get(key) or ():
            if one.get("path") == path:
                return str(one["md5"]) if "md5" in one else None
    return None
