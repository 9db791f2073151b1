"""Conventions of other libraries: what splits are called, and in which order folders of classes are numbered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from stages.errors import UsageError
from stages.tasks.contract import SPLITS

# Names others give their splits, and what an audit makes of them: failures are searched on pictures the model has not
# learnt from, and a repair learns from those it has.
FOREIGN = {"train": "repair", "val": "discover", "valid": "discover", "validation": "discover", "test": "test"}
OWN = (*SPLITS, "train")


def ready_splits(names: Iterable[str]) -> Mapping[str, str] | None:
    """{name of a ready-made pool: the audit's split}, None where some name is none of a pool."""
    named = set(names)
    if named <= set(OWN) and named & {"discover", "repair"}:
        return {name: name for name in named}
    return {name: FOREIGN[name] for name in named} if named <= set(FOREIGN) else None


def check_apart(splits: Mapping[str, str], found: str) -> None:
    """Whether no two names are of the same split of an audit.

    Raises:
        UsageError: when they are.
    """
    for ours, n in Counter(splits.values()).items():
        if n > 1:
            theirs = sorted(name for name, one in splits.items() if one == ours)
            raise UsageError(f"{found} {' and '.join(theirs)}, which are all {ours} to an audit; expected one of them")


def folder_order(names: Iterable[str]) -> tuple[list[str] | None, str]:
    """Classes in the order in which libraries number their folders; None where they disagree, and why.

    torchvision sorts names plainly, timm by the numbers in them and whatever their case.
    """
    plain = sorted(names)
    natural = sorted(plain, key=_natural)
    if plain == natural:
        return plain, ""
    at = next(i for i, name in enumerate(plain) if name != natural[i])
    return None, f"torchvision sorts their folders otherwise than timm: class {at} is {plain[at]} or {natural[at]}"


def _natural(name: str) -> list[int | str]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name.lower())]
