"""Renamed keys of params.yaml: errors on old spellings state the new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Paths from the top of params.yaml, each with its replacement.
FILE = {"shards": "audits.NAME.discover.shards alone"}
# The same for paths from an entry of `audits:` or `repairs:`.
AUDIT = {
    "discover.control": "discover.baseline",
    "prepare.pictures": "prepare.data",
    "prepare.data.dataset": "prepare.data.datasets",
    "prepare.generation.dtype": "compute.dtype",
    "prepare.model.dtype": "compute.dtype",
}
REPAIR = {"restructure.settings.folder.dataset": "restructure.settings.folder.datasets"}


def refuse_renamed(block: Any, renamed: Mapping[str, str]) -> Any:
    """Return the block if it has no key in the old spelling.

    Raises:
        ValueError: with the old keys and the new ones.
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
