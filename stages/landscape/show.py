"""Examples of a landscape as people would see them: of modes, of the smallest changes, and of the extreme cells."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from stages.landscape.extremes import KINDS, NEAREST, UNCHANGED, extreme_cells
from stages.landscape.robustness import describe_steps, nearest
from stages.records.landscape import Example, ModeRecord
from stages.records.tables import ShownExample
from stages.tasks.base import LoadedTask, offers
from stages.tasks.contract import Exhibit


def exhibits(task: LoadedTask, modes: Sequence[ModeRecord], examples: int) -> dict[str, list[ShownExample]]:
    """Return up to `examples` failing and passing examples of each mode, with captions that begin with their ids."""
    shown = {}
    for mode in modes:
        chosen = _chosen(mode, examples)
        drawn = _show(task, [e.item for e in chosen], np.array([e.cell for e in chosen]))
        shown[mode.id] = [
            ShownExample(one.id, one.failed, replace(exhibit, caption=f"{one.id} - {exhibit.caption}"))
            for one, exhibit in zip(chosen, drawn, strict=True)
        ]
    return shown


def _chosen(mode: ModeRecord, examples: int) -> list[Example]:
    return [e for failed in (True, False) for e in [x for x in mode.examples if x.failed is failed][:examples]]


def extremes(
    task: LoadedTask,
    cells: pd.DataFrame,
    probes: pd.DataFrame,
    walked: pd.DataFrame,
    modes: Sequence[ModeRecord],
    examples: int,
) -> dict[str, list[ShownExample]]:
    """Return the examples shown beside those of modes.

    These are their unchanged items, the smallest failing changes, items of each kind, and, for tasks that draw, the
    cells that fail most and least. A cell without probes has an empty example, which keeps its place.
    """
    shown = {
        UNCHANGED: unchanged_items(task, modes, examples),
        NEAREST: nearest_failures(task, walked, examples),
        KINDS: typical_items(task, examples),
    }
    return shown | (extreme_examples(task, cells, probes) if offers(task, "sheets") else {})


def unchanged_items(task: LoadedTask, modes: Sequence[ModeRecord], examples: int) -> list[ShownExample]:
    """Return the items of the modes' examples unchanged; the id of each is its item."""
    items = list(dict.fromkeys(e.item for mode in modes for e in _chosen(mode, examples)))
    return [ShownExample(item, False, shown) for item, shown in zip(items, show_unchanged(task, items), strict=False)]


def show_unchanged(task: LoadedTask, items: list[str]) -> list[Exhibit]:
    """Return unchanged items as people would see them; empty if some concept has no neutral level."""
    neutral = task.concepts.neutral
    return [] if neutral is None else _show(task, items, np.tile(neutral, (len(items), 1)))


def extreme_examples(task: LoadedTask, cells: pd.DataFrame, probes: pd.DataFrame) -> dict[str, list[ShownExample]]:
    """Return an example of each of the cells that fail most ("worst") and least ("best")."""
    shown = {}
    for side, rows in extreme_cells(task.concepts, cells, probes).items():
        known = rows["item"].notna().to_numpy()
        at = rows.loc[known, task.concepts.names].to_numpy(dtype=np.int64)
        drawn = iter(_show(task, rows.loc[known, "item"].tolist(), at))
        shown[side] = [
            ShownExample(f"{side}.{i}", side == "worst", next(drawn) if there else Exhibit(""))
            for i, there in enumerate(known.tolist())
        ]
    return shown


def nearest_failures(task: LoadedTask, walked: pd.DataFrame, examples: int) -> list[ShownExample]:
    """Return the smallest failing changes as people would see them, smallest first."""
    rows = nearest(walked, task.concepts, examples)
    cells = rows[task.concepts.names].to_numpy(dtype=np.int64)
    said = [describe_steps(task.concepts, cell, int(n)) for cell, n in zip(cells, rows["radius"], strict=True)]
    return [
        ShownExample(f"{NEAREST}.{i}", True, replace(exhibit, caption=f"{text}. {exhibit.caption}"))
        for i, (text, exhibit) in enumerate(zip(said, _show(task, rows["item"].tolist(), cells), strict=True))
    ]


def typical_items(task: LoadedTask, examples: int) -> list[ShownExample]:
    """Return up to `examples` unchanged items of each kind, nearest to its centre first; the id of each is its kind."""
    kinds = task.automatic_task.kinds
    chosen = [(name, item) for name, items in kinds.nearest.items() for item in items[:examples]] if kinds else []
    drawn = show_unchanged(task, [item for _, item in chosen])
    return [ShownExample(name, False, exhibit) for (name, _), exhibit in zip(chosen, drawn, strict=False)]


def _show(task: LoadedTask, items: list[str], cells: np.ndarray) -> list[Exhibit]:
    return task.exhibit(items, cells) if items else []
