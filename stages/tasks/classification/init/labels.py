"""Matching of labels in the data with the classes of a model, allowing for differences in spelling."""

from __future__ import annotations

import difflib
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.errors import UsageError, did_you_mean

_ALIKE = 0.8  # ratio of difflib below which no class is guessed
_NAMED = 10  # number of labels or classes that a message lists


@dataclass(frozen=True)
class Matched:
    """Result of matching labels with classes.

    Args:
        sure: label to class, if they differ only in case, spaces or punctuation, or the class has several names.
        guessed: label to class, if they are only similar: a person has to confirm it.
        unknown: labels that are similar to no class.
    """

    sure: Mapping[str, str]
    guessed: Mapping[str, str]
    unknown: Sequence[str]

    @property
    def open(self) -> dict[str, str | None]:
        """Labels that a person has to assign, each with the guess."""
        return {**self.guessed, **dict.fromkeys(self.unknown)}


def match_labels(labels: Iterable[str], classes: Sequence[str], taken: Iterable[str] = ()) -> Matched:
    """Match labels with classes; identical ones need no entry.

    A class that one label spells exactly is never guessed for another: "female" is similar to "male" but not the same.

    Args:
        labels: labels of the data.
        classes: classes of the model.
        taken: classes that other labels already have.

    >>> match_labels(["cat", "Dog", "hrse", "grade 1"], ["cat", "dog, hound", "horse", "grade 2"])
    Matched(sure={'Dog': 'dog, hound'}, guessed={'hrse': 'horse'}, unknown=['grade 1'])
    """
    spelled: dict[str, set[str]] = defaultdict(set)
    for name in classes:
        for spelling in (name, *name.split(",")):  # ImageNet's classes have several names each
            spelled[_plain(spelling)].add(name)
    plain = {spelling: names.pop() for spelling, names in spelled.items() if len(names) == 1}  # drop ambiguous ones
    given = list(labels)
    sure = {label: plain[_plain(label)] for label in given if label not in classes and _plain(label) in plain}
    held = {*taken, *sure.values(), *given}
    free = [spelling for spelling, name in plain.items() if name not in held]
    others = [label for label in given if label not in classes and label not in sure]
    looks = {label: plain[near] for label in others if (near := _nearest(_plain(label), free)) is not None}
    offered = Counter(looks.values())
    guessed = {label: name for label, name in looks.items() if offered[name] == 1}
    return Matched(sure, guessed, [label for label in others if label not in guessed])


def refuse_unsaid(unsaid: Mapping[str, str | None], classes: Sequence[str]) -> None:
    """Raise an error if labels are unassigned and nobody can be asked.

    Args:
        unsaid: unassigned labels, each with a similar class.
        classes: classes of the model.

    Raises:
        UsageError: if there are any.
    """
    if not unsaid:
        return
    named = ", ".join(f"{label!r}{f' ({guess!r}?)' if guess else ''}" for label, guess in list(unsaid.items())[:_NAMED])
    more = f" and {len(unsaid) - _NAMED:,} more" if len(unsaid) > _NAMED else ""
    raise UsageError(
        f"{len(unsaid):,} labels of the data match no class of the model: {named}{more}; it has {some(classes)}."
        f" They are never guessed: for each, use --label {shlex.quote(f'{next(iter(unsaid))}=CLASS')}"
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


def _nearest(label: str, spellings: Iterable[str]) -> str | None:
    """Return the most similar spelling with the same digits: "grade 1" is never meant by "grade 2"."""
    alike = [spelling for spelling in spellings if re.findall(r"\d+", spelling) == re.findall(r"\d+", label)]
    return next(iter(difflib.get_close_matches(label, alike, n=1, cutoff=_ALIKE)), None)


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
