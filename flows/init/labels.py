"""Labels of a person's data against the classes a model names: what differs in writing alone is matched."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.errors import UsageError, did_you_mean

_ALIKE = 0.8  # of difflib; below it a guess is none


@dataclass(frozen=True)
class Matched:
    """What became of the labels.

    Args:
        sure: label to class, where they differ in capitals, spaces or marks alone, or a class has several names.
        guessed: label to class, where they only look alike.
        unknown: labels like no class.
    """

    sure: Mapping[str, str]
    guessed: Mapping[str, str]
    unknown: Sequence[str]


def match_labels(labels: Iterable[str], classes: Sequence[str]) -> Matched:
    """Match labels with classes; those that are the same need no entry.

    >>> match_labels(["cat", "Dog", "hrse"], ["cat", "dog, hound", "horse"])
    Matched(sure={'Dog': 'dog, hound'}, guessed={'hrse': 'horse'}, unknown=[])
    """
    plain: dict[str, str] = {}
    for name in classes:
        for spelling in (name, *name.split(",")):  # ImageNet's classes have several names each
            plain.setdefault(_plain(spelling), name)
    sure: dict[str, str] = {}
    guessed: dict[str, str] = {}
    unknown: list[str] = []
    for label in labels:
        if label in classes:
            continue
        if _plain(label) in plain:
            sure[label] = plain[_plain(label)]
        elif close := difflib.get_close_matches(_plain(label), plain, n=1, cutoff=_ALIKE):
            guessed[label] = plain[close[0]]
        else:
            unknown.append(label)
    return Matched(sure, guessed, unknown)


def read_labels(given: Sequence[str], labels: Iterable[str], classes: Sequence[str]) -> dict[str, str]:
    """The pairs LABEL=CLASS of a command line.

    Raises:
        UsageError: when one is no such pair, or names a label or a class that there is not.
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
