"""What a repair learns: which picture under which caption, step by step.

A caption says what its picture shows, in the words of the prompts that failed: a template of the split `repair`, filled
with a cell of a target mode, of which each word is exchanged for the one that is true of the picture. Some keep their
own captions, and replayed ones come from anywhere outside the targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.concepts import ConceptSpace, Region
from stages.errors import UsageError
from stages.tasks.contract import RepairPlan
from stages.tasks.text_to_image.judges import expected_values
from stages.tasks.text_to_image.repair_config import RepairSettings

if TYPE_CHECKING:
    from stages.tasks.text_to_image.album import Album
    from stages.tasks.text_to_image.task import TextToImage

OWN_TEXT = 0.25  # share of captioned pictures that keep their own caption
NOT_SHOWN = -1  # or nobody knows


@dataclass(frozen=True)
class Lesson:
    """A picture, by its row in the album, the caption it is learnt under, and whether it is none of the targets'."""

    picture: int
    caption: str
    replayed: bool = False


class Vocabulary:
    """What the words of a grid show, by attribute: those the judge reads, and those that pictures have columns for.

    Args:
        space: concepts are slots of prompts, levels what fills them.
        attributes: values by attribute.
    """

    def __init__(self, space: ConceptSpace, attributes: Mapping[str, Sequence[str]]) -> None:
        self.space, self.attributes = space, {name: tuple(values) for name, values in attributes.items()}
        self.names = list(self.attributes)
        self._shown = [np.array([self.codes({c.name: str(level)}) for level in c.levels]) for c in space.concepts]
        self.neutral = [c.levels.index(c.neutral) if c.neutral in c.levels else -1 for c in space.concepts]
        told_of = [(shown != NOT_SHOWN).any(0) for shown in self._shown]
        self.of_slots = np.any(told_of, axis=0)  # (attributes,) which ones some slot tells of

    def codes(self, words: Mapping[str, str]) -> np.ndarray:
        """What words show, by slot or attribute: (attributes,) the number of each value, NOT_SHOWN where none."""
        found = expected_values(self.attributes, words)
        return np.array([self.attributes[n].index(found[n]) if n in found else NOT_SHOWN for n in self.names])

    def table(self, pictures: Sequence[Mapping[str, str]]) -> np.ndarray:
        """What n pictures show, by what is said of each: (n, attributes)."""
        rows = [self.codes(said) for said in pictures]
        return np.array(rows, dtype=np.int64).reshape(len(pictures), len(self.names))

    def said_of(self, row: Mapping[str, Any]) -> dict[str, str]:
        """What a captioned picture's columns say of each attribute; where it has none, what its text says."""
        columns = {name.replace("_", " "): value for name, value in row.items()}
        said = {name: columns.get(name.replace("_", " "), row["text"]) for name in self.names}
        return {name: value for name, value in said.items() if isinstance(value, str)}

    def of_cell(self, cell: np.ndarray) -> np.ndarray:
        """What a cell asks for: (attributes,)."""
        return np.max([shown[level] for shown, level in zip(self._shown, cell, strict=True)], axis=0)

    def true(self, slot: int, shows: np.ndarray) -> np.ndarray:
        """Which levels of a slot say what pictures (n, attributes) show: (n, levels) bool; neutral ones say nothing."""
        levels = self._shown[slot][None]
        says = levels != NOT_SHOWN
        return (~says | (levels == shows[:, None])).all(2) & says.any(2)

    def inside(self, region: Region, shows: np.ndarray, *, strictly: bool) -> np.ndarray:
        """Which pictures (n, attributes) prompts of a region may ask for: (n,) bool.

        Args:
            region: where it allows a slot to be unsaid, any picture will do.
            shows: what the pictures show.
            strictly: whether what a picture shows must be known; else nothing known may speak against it.
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
        """A cell with each word exchanged for one that is true of a picture (attributes,); None if there is none."""
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


def repair_templates(task: TextToImage) -> list[str]:
    """The prompt templates a repair may learn from."""
    table = task.items.table
    return sorted(set(table.loc[table["split"] == "repair", "label"]))


class Lessons:
    """The lessons of each step, which depend on the seed and the number of the step alone.

    A cell is drawn of a target (by severity), then one of the pictures that show most of what the cell says.

    Args:
        task: gives prompts and their templates.
        plan: target modes, or what the control trains on; seed.
        settings: batch size, replay, sources, balance.
        album: the pictures.
        words: what cells and pictures show.
    """

    def __init__(
        self, task: TextToImage, plan: RepairPlan, settings: RepairSettings, album: Album, words: Vocabulary
    ) -> None:
        self.task, self.settings, self.seed, self.album, self.words = task, settings, plan.seed, album, words
        self.targets = plan.regions(task.concepts)
        severity = np.array([target.severity for target in self.targets], dtype=float)
        self._share = severity / severity.sum()
        self._templates = repair_templates(task)
        self._texts = album.table["text"].tolist()
        self._whole = album.table["whole"].to_numpy(bool)
        self._sources = {s: (album.table["source"] == s).to_numpy() for s in settings.sources}
        self._inside: list[np.ndarray] = list(album.inside)
        outside = np.asarray(~album.inside.any(0))
        self._outside = outside if outside.any() else np.ones_like(outside)  # a control's region is everywhere
        bias = task.config.bias
        balance = settings.balance if settings.balance != "auto" else bias.attribute if bias else None
        if balance is not None and balance not in words.names:
            raise UsageError(
                f"restructure.settings.balance: {balance} is not an attribute; the judge and the pictures know"
                f" {', '.join(words.names)}"
            )
        self._balance = words.names.index(balance) if balance is not None else None
        self._subject = words.names.index(bias.subject) if bias and bias.subject in words.names else None

    def __call__(self, step: int) -> list[Lesson]:
        """The lessons of a step."""
        rng = np.random.default_rng([self.seed, 6, step])
        aimed = self.settings.batch_size - self.settings.replayed
        return [self._aimed(rng) for _ in range(aimed)] + [self._replayed(rng) for _ in range(self.settings.replayed)]

    def _aimed(self, rng: np.random.Generator) -> Lesson:
        number = int(rng.choice(len(self.targets), p=self._share))
        cell = self.targets[number].region.sample(self.task.concepts, 1, rng)[0]
        pool = self._of_one_source(self._inside[number], rng)
        wanted = self.words.of_cell(cell)
        fits = (self.album.shows[pool] == wanted)[:, wanted != NOT_SHOWN].sum(1)
        picture = self._evenly(pool[fits == fits.max()], rng)
        return Lesson(picture, self._caption(picture, cell, rng))

    def _replayed(self, rng: np.random.Generator) -> Lesson:
        picture = self._evenly(self._of_one_source(self._outside, rng), rng)
        return Lesson(picture, self._caption(picture, self.task.concepts.sample(1, rng)[0], rng), replayed=True)

    def _of_one_source(self, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Rows of pictures of one source, chosen by weight among those that have any."""
        having = {source: rows for source, of_it in self._sources.items() if len(rows := np.flatnonzero(pool & of_it))}
        weights = np.array([self.settings.sources[source] for source in having])
        return list(having.values())[rng.choice(len(having), p=weights / weights.sum())]

    def _evenly(self, rows: np.ndarray, rng: np.random.Generator) -> int:
        """One of the pictures; of those of its subject, each value to be balanced comes as often as the others."""
        chosen = int(rng.choice(rows))
        if self._balance is None:
            return chosen
        shows = self.album.shows
        if self._subject is not None:
            rows = rows[shows[rows, self._subject] == shows[chosen, self._subject]]
        values = shows[rows, self._balance]
        return int(rng.choice(rows[values == rng.choice(np.unique(values))]))

    def _caption(self, picture: int, cell: np.ndarray, rng: np.random.Generator) -> str:
        if self._whole[picture] or rng.random() < OWN_TEXT:
            return str(self._texts[picture])
        words = self.words.words_for(cell, self.album.shows[picture])
        if words is None:
            return str(self._texts[picture])
        return self.task.prompt(self._templates[rng.integers(len(self._templates))], words)
