"""Matching of labels in the data with the classes of a model, allowing for differences in spelling."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence

from stages.core.errors import UsageError, did_you_mean

_NAMED = 10  # number of labels or classes that a message lists


def match_labels(labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Map labels to classes that differ only in case, spaces or punctuation, or have several names.

    Args:
        labels: labels of the data, none of which is a class.
        classes: classes of the model.

    >>> match_labels(["Dog", "hrse"], ["cat", "dog, hound", "horse"])
    {'Dog': 'dog, hound'}
    """
    spelled: dict[str, set[str]] = defaultdict(set)
    for name in classes:
        for spelling in (name, *name.split(",")):  # ImageNet's classes have several names each
            spelled[_plain(spelling)].add(name)
    return {label: next(iter(names)) for label in labels if len(names := spelled.get(_plain(label), set())) == 1}


def refuse_unsaid(unsaid: Sequence[str], classes: Sequence[str]) -> None:
    """Raise an error if labels are unassigned and nobody can be asked.

    Raises:
        UsageError: if there are any.
    """
    if not unsaid:
        return
    named = ", ".join(f"{label!r}{did_you_mean(label, classes)}" for label in unsaid[:_NAMED])
    more = f" and {len(unsaid) - _NAMED:,} more" if len(unsaid) > _NAMED else ""
    raise UsageError(
        f"{len(unsaid):,} labels of the data match no class of the model: {named}{more}; it has {some(classes)}."
        f" They are never guessed: for each, use --label {shlex.quote(f'{unsaid[0]}=CLASS')}"
    )


def some(classes: Sequence[str]) -> str:
    """List the first classes, and how many there are."""
    return ", ".join(classes[:_NAMED]) + (f", ... ({len(classes):,} in all)" if len(classes) > _NAMED else "")


def read_labels(given: Sequence[str], labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """Parse the pairs LABEL=CLASS of a command line.

    Raises:
        UsageError: if one is not such a pair, or its label or class does not exist.
    """
    known, pairs = list(labels), {}
    for one in given:
        label, equals, name = one.partition("=")
        if not equals:
            raise UsageError(f"--label {one}: expected LABEL=CLASS, a label of the data and a class of the model")
        if label not in known:
            raise UsageError(f"--label {one}: the data have no label {label!r}{did_you_mean(label, known)}")
        if classes and name not in classes:
            raise UsageError(f"--label {one}: the model has no class {name!r}{did_you_mean(name, classes)}")
        pairs[label] = name
    return pairs


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
