"""Compares the numbers of two results of one audit, each within the noise with which it was measured.

A number's noise is its 95% interval, or for a distance the measured noise floor. Two measurements agree if the interval
of their difference contains 0 (Zou and Donner 2008, as in `faded gate`), widened so that all numbers together agree
with 95% if nothing but chance differs (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import NormalDist
from typing import Any

from stages.core.intervals import LEVEL

_WITH_PLAIN_BOUNDS = ("value", "rate", "change")  # their interval is `low` and `high`; that of x is x_low and x_high
_FOUND = (".modes[", ".failures_moved.regions[")  # what one result has and the other has not is a difference by itself


@dataclass(frozen=True)
class Number:
    """One value of a result, and the bounds between which chance may move it; None if they were not measured."""

    value: Any
    low: float | None = None
    high: float | None = None

    @property
    def counts(self) -> bool:
        """Whether it was measured together with its noise."""
        return self.low is not None and self.high is not None and isinstance(self.value, int | float)


@dataclass(frozen=True)
class Deviation:
    """A value that is not the same in both results; None where one of them lacks it.

    Args:
        ours: the value that was to be reproduced.
        theirs: the other one.
        noise: by how much the two may differ in this direction.
        beyond: whether they differ by more.
    """

    where: str
    ours: Any
    theirs: Any
    noise: float | None
    beyond: bool


@dataclass(frozen=True)
class Likeness:
    """How two results compare.

    Args:
        judged: how many values have a known noise, or have to be equal: verdicts, and which failure modes were found.
        equal: how many of these are equal.
        deviations: all others of these.
        rest: how many other values differ: counts, losses, texts, whose noise nobody measured.
    """

    judged: int
    equal: int
    deviations: Sequence[Deviation]
    rest: int

    @property
    def beyond(self) -> list[Deviation]:
        """What no noise explains."""
        return [one for one in self.deviations if one.beyond]


def compare_results(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Likeness:
    """Compare two results, each a document of plain data by file name."""
    a, b = dict(_numbers(ours)), dict(_numbers(theirs))
    wider = _wider(sum(number.counts for number in a.values()))
    judged = equal = rest = 0
    deviations = []
    for where in dict.fromkeys([*a, *b]):
        one, other = a.get(where), b.get(where)
        both = [number for number in (one, other) if number is not None]
        measured = all(number.counts for number in both)
        strict = where.endswith(".passed") or (len(both) == 1 and measured and any(part in where for part in _FOUND))
        if not strict and not (measured and len(both) == 2):
            rest += one != other
            continue
        judged += 1
        x: Any = one.value if one else None
        y: Any = other.value if other else None
        if one and other and x == y:
            equal += 1
        else:
            noise = wider * _noise(one, other) if one and other and not strict else None
            deviations.append(Deviation(where, x, y, noise, noise is None or abs(x - y) > noise))
    return Likeness(judged, equal, deviations, rest)


def _wider(numbers: int) -> float:
    """By how much to widen 95% intervals so that this many hold together."""
    normal, tail = NormalDist(), (1 - LEVEL) / 2
    return normal.inv_cdf(1 - tail / max(numbers, 1)) / normal.inv_cdf(1 - tail)


def _noise(one: Number, other: Number) -> float:
    """The half-width of the interval of a difference, on the side towards 0."""
    upper, lower = (one, other) if one.value < other.value else (other, one)
    return hypot((upper.high or 0.0) - upper.value, lower.value - (lower.low or 0.0))


def _numbers(value: Any, where: str = "") -> Iterator[tuple[str, Number]]:
    """All leaves of a document but the bounds of intervals, by their places."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            if isinstance(inner, Mapping | list):
                yield from _numbers(inner, place)
            elif not key.endswith(("_low", "_high")) and key not in ("low", "high"):
                yield place, Number(inner, *_bounds(value, key))
    elif isinstance(value, list):
        names = [_name(inner) for inner in value]
        if not all(names) or len(set(names)) < len(names):
            names = [str(i) for i in range(len(value))]
        for name, inner in zip(names, value, strict=True):
            yield from _numbers(inner, f"{where}[{name}]")
    else:
        yield where, Number(value)


def _name(entry: Any) -> str:
    """What a list's entry is about, by which two lists are aligned: a mode's id says only its place."""
    if not isinstance(entry, Mapping):
        return ""
    named = (entry.get(key) for key in ("gate", "text", "attribute", "concept", "label", "value"))
    return " ".join(name for name in named if isinstance(name, str))


def _bounds(of: Mapping[str, Any], key: str) -> tuple[float | None, float | None]:
    floor = of.get("noise_floor")
    if isinstance(floor, Mapping) and isinstance(of[key], float):
        most = floor.get("max") if key == "distance" else (floor.get(key) or {}).get("max") if key in floor else None
        if isinstance(most, int | float):
            return of[key] - most, of[key] + most
    names = ("low", "high") if key in _WITH_PLAIN_BOUNDS else (f"{key}_low", f"{key}_high")
    low, high = (of.get(name) for name in names)
    return (low, high) if isinstance(low, int | float) and isinstance(high, int | float) else (None, None)
