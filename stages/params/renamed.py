"""Keys of params.yaml that were renamed: an old spelling is answered with the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Paths from the top of params.yaml, each with what has taken its place.
FILE = {"shards": "audits.NAME.discover.shards alone"}
# Paths from an entry of `audits:` or `repairs:`, likewise.
AUDIT = {
    "discover.control": "discover.baseline",
    "prepare.pictures": "prepare.data",
    "prepare.data.dataset": "prepare.data.datasets",
    "prepare.generation.dtype": "compute.dtype",
    "prepare.model.dtype": "compute.dtype",
}
REPAIR = {"restructure.settings.folder.dataset": "restructure.settings.folder.datasets"}


def refuse_renamed(block: Any, renamed: Mapping[str, str]) -> Any:
    """Give back a block in which no key is spelt the old way.

    Raises:
        ValueError: naming the old keys and the new ones.
    """
    found = [f"{old} is now {new}" for old, new in renamed.items() if _holds(block, old.split("."))]
    if found:
        raise ValueError("; ".join(found))
    return block


def _holds(block: Any, path: list[str]) -> bool:
    for key in path:
        if not isinstance(block, Mapping) or key not in block:
            return False
        block = block[key]
    return True
