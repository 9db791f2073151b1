"""Attributes that the words of prompts show, for comparing captions with pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.concepts import ConceptSpace, Region
from stages.tasks.text_to_image.judges import expected_values
from stages.tasks.text_to_image.probes import PainterProbes

NOT_SHOWN = -1  # or unknown


class Vocabulary:
    """Attributes that the words of a grid show: those that the judge reads, and those that pictures have columns for.

    Args:
        space: concepts are slots of prompts, levels are the phrases that fill them.
        attributes: values by attribute.
    """

    def __init__(self, space: ConceptSpace, attributes: Mapping[str, Sequence[str]]) -> None:
        self.space, self.attributes = space, {name: tuple(values) for name, values in attributes.items()}
        self.names = list(self.attributes)
        self._shown = [np.array([self.codes({c.name: str(level)}) for level in c.levels]) for c in space.concepts]
        self.neutral = [c.levels.index(c.neutral) if c.neutral in c.levels else -1 for c in space.concepts]
        told_of = [(shown != NOT_SHOWN).any(0) for shown in self._shown]
        self.of_slots = np.any(told_of, axis=0)  # (attributes,) whether some slot names it

    def codes(self, words: Mapping[str, str]) -> np.ndarray:
        """Encode what words show, by slot or attribute: (attributes,) the number of each value, or NOT_SHOWN."""
        found = expected_values(self.attributes, words)
        return np.array([self.attributes[n].index(found[n]) if n in found else NOT_SHOWN for n in self.names])

    def table(self, pictures: Sequence[Mapping[str, str]]) -> np.ndarray:
        """Encode what n pictures show, from the words for each: (n, attributes)."""
        rows = [self.codes(said) for said in pictures]
        return np.array(rows, dtype=np.int64).reshape(len(pictures), len(self.names))

    def said_of(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return a captioned picture's column for each attribute, or its text if it has no such column."""
        columns = {name.replace("_", " "): value for name, value in row.items()}
        said = {name: columns.get(name.replace("_", " "), row["text"]) for name in self.names}
        return {name: value for name, value in said.items() if isinstance(value, str)}

    def of_cell(self, cell: np.ndarray) -> np.ndarray:
        """Encode what a cell asks for: (attributes,)."""
        return np.max([shown[level] for shown, level in zip(self._shown, cell, strict=True)], axis=0)

    def true(self, slot: int, shows: np.ndarray) -> np.ndarray:
        """Which levels of a slot are true of pictures (n, attributes): (n, levels) bool; neutral ones say nothing."""
        levels = self._shown[slot][None]
        says = levels != NOT_SHOWN
        return (~says | (levels == shows[:, None])).all(2) & says.any(2)

    def inside(self, region: Region, shows: np.ndarray, *, strictly: bool) -> np.ndarray:
        """Which pictures (n, attributes) prompts of a region may ask for: (n,) bool.

        Args:
            region: if it allows a slot to be unsaid, the slot excludes no picture.
            shows: what the pictures show.
            strictly: whether what a picture shows must be known; otherwise unknown attributes exclude no picture.
        """
        told_of = shows[:, self.of_slots] != NOT_SHOWN
        within = told_of.all(1) if strictly else np.ones(len(shows), dtype=bool)
        for slot, concept in enumerate(self.space.concepts):
            allowed = list(region.allowed.get(concept.name, range(len(concept))))
            if self.neutral[slot] in allowed:
                continue
            fits = self.true(slot, shows)[:, allowed].any(1)
            if not strictly:
                of_slot = (self._shown[slot] != NOT_SHOWN).any(0)
                fits |= (shows[:, of_slot] == NOT_SHOWN).all(1)
            within &= fits
        return within

    def words_for(self, cell: np.ndarray, shows: np.ndarray) -> np.ndarray | None:
        """Replace words of a cell that are not true of a picture (attributes,) by true ones; None if there are none."""
        if (shows[self.of_slots] == NOT_SHOWN).any():
            return None
        words = np.array(cell)
        for slot, level in enumerate(cell):
            if level == self.neutral[slot] or self.true(slot, shows[None])[0, level]:
                continue
            fitting = np.flatnonzero(self.true(slot, shows[None])[0])
            if not len(fitting) and self.neutral[slot] < 0:
                return None
            words[slot] = fitting[0] if len(fitting) else self.neutral[slot]
        return words


def repair_templates(task: PainterProbes) -> list[str]:
    """Return the prompt template of each item that a repair learns from."""
    table = task.items.table
    return table.loc[table["split"] == "repair", "label"].tolist()
