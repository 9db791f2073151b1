"""Random draws that depend on (seed, item, concept, repeat) and on the place in the article, and on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """The draws of one concept on one article: two numbers for each of its characters.

    A place is a character of the original article. The first number of a place is its turn: of the eligible words
    (or letters), those whose turns come first are touched, so a stronger level touches all that a weaker one does. The
    second number chooses among options. As places are fixed, other concepts change neither.

    Args:
        seed: of the audit.
        item: the article's id.
        concept: its name.
        repeat: of the probe.
        length: of the article, in characters.
    """

    def __init__(self, seed: int, item: str, concept: str, repeat: int, length: int) -> None:
        # Seeded by a string through SHA-512; Python keeps this stream the same across processes and versions.
        rng = Random(repr((int(seed), str(item), concept, int(repeat))))
        self._size = length + 1
        self._turns = [rng.random() for _ in range(self._size)]
        self._choices = [rng.random() for _ in range(self._size)]

    def order(self, places: Sequence[int]) -> list[int]:
        """Indices into `places`, those whose turn comes first in front."""
        return sorted(range(len(places)), key=lambda i: self._turns[places[i] % self._size])

    def some(self, places: Sequence[int], share: float) -> set[int]:
        """Indices into `places` of the share of them that is touched, `round(share * len(places))`."""
        return set(self.order(places)[: round(share * len(places))])

    def choose(self, options: Sequence[T], place: int) -> T:
        """One of the options, each with the same probability."""
        return options[int(self.uniform(place) * len(options))]

    def uniform(self, place: int) -> float:
        """A number in [0, 1)."""
        return self._choices[place % self._size]
