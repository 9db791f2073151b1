"""Conventions of other libraries: names of splits, and the order in which folders of classes are numbered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from stages.errors import UsageError
from stages.tasks.contract import SPLITS

# Common names of splits, and the audit's splits they become: failures are searched on pictures the model has not
# learnt from, and a repair learns from those it has.
FOREIGN = {"train": "repair", "val": "discover", "valid": "discover", "validation": "discover", "test": "test"}
OWN = (*SPLITS, "train")


def ready_splits(names: Iterable[str]) -> Mapping[str, str] | None:
    """Return {name of a ready-made pool: the audit's split}; None if a name is not that of a pool."""
    named = set(names)
    if named <= set(OWN) and named & {"discover", "repair"}:
        return {name: name for name in named}
    return {name: FOREIGN[name] for name in named} if named <= set(FOREIGN) else None


def check_apart(splits: Mapping[str, str], found: str) -> None:
    """Check that no two names refer to the same split of the audit.

    Raises:
        UsageError: if they do.
    """
    for ours, n in Counter(splits.values()).items():
        if n > 1:
            theirs = sorted(name for name, one in splits.items() if one == ours)
            raise UsageError(f"{found} {' and '.join(theirs)}, which are all {ours} to an audit; expected one of them")


def folder_order(names: Iterable[str]) -> tuple[list[str] | None, str]:
    """Return classes in the order in which libraries number their folders; None and the reason if libraries disagree.

    torchvision sorts names as plain strings, timm by the numbers in them and ignoring case.
    """
    plain = sorted(names)
    natural = sorted(plain, key=_natural)
    if plain == natural:
        return plain, ""
    at = next(i for i, name in enumerate(plain) if name != natural[i])
    return None, f"torchvision sorts their folders otherwise than timm: class {at} is {plain[at]} or {natural[at]}"


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]
