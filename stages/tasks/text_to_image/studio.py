"""Draw and judge pictures, and remember the judgements."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stages.progress import progress
from stages.tasks.text_to_image.judges import Judge, told
from stages.tasks.text_to_image.measures import Judged
from stages.tasks.text_to_image.quality import Quality
from stages.tasks.text_to_image.sample import Drawing, Paints

AT_ONCE = 64  # pictures held in memory before they are judged
PART = 32  # pictures that each of several processes draws and judges at once


class Order(NamedTuple):
    """One picture to draw.

    Args:
        prompt: the whole prompt.
        seed: seed of its start noise.
        expected: (attribute, value) pairs that the prompt names and the judge can check.
        guidance: guidance scale; None is the sampler's.
    """

    prompt: str
    seed: int
    expected: tuple[tuple[str, str], ...] = ()
    guidance: float | None = None


@dataclass
class Studio:
    """Draws and judges pictures. Judged pictures are not drawn again; pixels are not kept, as they can be redrawn.

    Args:
        painter: draws.
        judge: reads attributes and alignment.
        quality: rates a picture by the judge's features, whatever it shows.
        shared: calls `look_anew` for several parts in other processes; None uses this process.
        copies: number of processes.
    """

    painter: Paints
    judge: Judge
    quality: Quality
    shared: Callable[[Sequence[Sequence[Order]]], Sequence[list[Judged]]] | None = None
    copies: int = 1

    def __post_init__(self) -> None:
        self._known: dict[Order, Judged] = {}

    def look(self, orders: Sequence[Order], told: str | None = None) -> list[Judged]:
        """Judge n pictures; `told` names the progress bar, None shows none."""
        unknown = [order for order in dict.fromkeys(orders) if order not in self._known]
        with (
            progress(told, len(unknown))
            if told and unknown
            else contextlib.nullcontext(lambda done, note: None) as tell
        ):
            for guidance in dict.fromkeys(order.guidance for order in unknown):
                alike = [order for order in unknown if order.guidance == guidance]
                for start in range(0, len(alike), AT_ONCE * self.copies):
                    group = alike[start : start + AT_ONCE * self.copies]
                    size = AT_ONCE if self.copies == 1 else PART
                    parts = [group[at : at + size] for at in range(0, len(group), size)]
                    found = map(self.look_anew, parts) if self.shared is None else self.shared(parts)
                    for part, judged in zip(parts, found, strict=True):
                        self._known.update(zip(part, judged, strict=True))
                    tell(sum(order in self._known for order in unknown), "")
        return [self._known[order] for order in orders]

    def look_anew(self, orders: Sequence[Order]) -> list[Judged]:
        """Draw and judge n pictures of one guidance scale that were not judged before."""
        return self.judged(self.draw(orders), orders)

    def draw(self, orders: Sequence[Order], told: str | None = None) -> list[Drawing]:
        """Draw n pictures of one guidance scale."""
        if not orders:
            return []
        prompts, seeds = [order.prompt for order in orders], [order.seed for order in orders]
        return self.painter.draw(prompts, seeds, orders[0].guidance, told=told)

    def show(self, orders: Sequence[Order], told: str | None = None) -> list[Drawing]:
        """Draw n pictures of one guidance scale for people; their judgements are remembered."""
        unique = list(dict.fromkeys(orders))
        drawn = dict(zip(unique, self.draw(unique, told), strict=True))
        unknown = [order for order in unique if order not in self._known]
        self._known.update(zip(unknown, self.judged([drawn[order] for order in unknown], unknown), strict=True))
        return [drawn[order] for order in orders]

    def judged(self, drawings: Sequence[Drawing], orders: Sequence[Order]) -> list[Judged]:
        """Judge n pictures drawn to order."""
        pixels = [drawing.pixels for drawing in drawings]
        found = self.assess(pixels, [order.prompt for order in orders], [dict(order.expected) for order in orders])
        return [
            judged if not drawing.fault else Judged(0.0, 0.0, {}, dict.fromkeys(judged.right, False), drawing.fault)
            for judged, drawing in zip(found, drawings, strict=True)
        ]

    def assess(
        self, pixels: Sequence[np.ndarray], prompts: Sequence[str], expected: Sequence[Mapping[str, str]]
    ) -> list[Judged]:
        """Judge any n pictures (h, w, 3) by what was asked for."""
        reading = self.judge.read(pixels)
        aligned = self.judge.aligned(reading, prompts, expected)
        quality = self.quality(reading.features)
        values = {attribute: told(self.judge, reading, attribute) for attribute in self.judge.attributes}
        judged = []
        for n, wanted in enumerate(expected):
            read = {attribute: named[n] for attribute, named in values.items() if named[n]}
            right = {attribute: read.get(attribute) == value for attribute, value in wanted.items()}
            wrong = any(not shown and name in read for name, shown in right.items())
            unreadable = not (self.judge.reads_prompts or wrong or all(right.values()))
            judged.append(Judged(float(aligned[n]), float(quality[n]), read, right, unreadable=unreadable))
        return judged
