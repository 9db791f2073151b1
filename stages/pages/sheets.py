"""Contact sheets: pictures that a model draws over two slots, and those of the model after a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stages.pages.gallery import Image, Shrinker
from stages.tasks.contract import Sheet

MODELS = {"before": "before", "after": "after"}


class SheetRow(NamedTuple):
    """A row of a sheet: the strips that the models drew for it."""

    label: str
    strips: list[Image]


class ShownSheet(NamedTuple):
    """A sheet ready for the page; `tile` is the width of one of its pictures in pixels of the page."""

    title: str
    columns: list[str]
    rows: list[SheetRow]
    tile: int


def strips(sheets: Mapping[str, Sequence[Sheet]]) -> list[bytes]:
    """Return all images of the sheets, for the budget of bytes."""
    return [image for drawn in sheets.values() for sheet in drawn for _, image in sheet.rows]


def show_sheets(sheets: Mapping[str, Sequence[Sheet]], shrinker: Shrinker) -> list[ShownSheet]:
    """Prepare sheets for the page, with rows of all models grouped.

    Args:
        sheets: by model ("before", "after"), the same sheets in the same order; those of a single model get no labels.
        shrinker: distributes the budget of bytes.
    """
    shown = []
    for versions in zip(*sheets.values(), strict=True):
        first = versions[0]
        rows = [
            SheetRow(
                drawn[0][0],
                [
                    shrinker.image(image, MODELS[model] if len(sheets) > 1 else "")
                    for model, (_, image) in zip(sheets, drawn, strict=True)
                ],
            )
            for drawn in zip(*(sheet.rows for sheet in versions), strict=True)
        ]
        wide = max((image.width for row in rows for image in row.strips), default=0)
        tile = max(68, min(88, wide // max(1, len(first.columns))))
        shown.append(ShownSheet(first.title, list(first.columns), rows, tile))
    return shown
