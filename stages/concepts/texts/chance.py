"""Random draws that depend only on (seed, item, concept, repeat) and on the place in the article."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """The draws of one concept on one article: two numbers for each of its characters.

    A place is a character of the original article. Its first number is its turn: of the eligible words (or letters),
    those whose turns come first are touched, so a stronger level touches everything that a weaker one does. Its second
    number chooses among options. Places are fixed, so other concepts change neither number.

    Args:
        seed: the audit's seed.
        item: the article's id.
        concept: the concept's name.
        repeat: the probe's repeat.
        length: the article's length in characters.
    """

    def __init__(self, seed: int, item: str, concept: str, repeat: int, length: int) -> None:
        # Python hashes a string seed with SHA-512 and keeps this stream the same across processes and versions.
        rng = Random(repr((int(seed), str(item), concept, int(repeat))))
        self._size = length + 1
        self._turns = [rng.random() for _ in range(self._size)]
        self._choices = [rng.random() for _ in range(self._size)]

    def order(self, places: Sequence[int]) -> list[int]:
        """Return the indices into `places`, sorted by turn."""
        return sorted(range(len(places)), key=lambda i: self._turns[places[i] % self._size])

    def some(self, places: Sequence[int], share: float) -> set[int]:
        """Return the indices of the `round(share * len(places))` places whose turns come first."""
        return set(self.order(places)[: round(share * len(places))])

    def choose(self, options: Sequence[T], place: int) -> T:
        """Choose one of the options, all with the same probability."""
        return options[int(self.uniform(place) * len(options))]

    def uniform(self, place: int) -> float:
        """Return a place's second number, in [0, 1)."""
        return self._choices[place % self._size]
