"""The pictures a repair learns from.

They are captioned pictures of the audit or of a person, and the model's own: those of its drawings for prompts of the
target modes, and for pairs that must pass, that the judge finds right (rejection sampling).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import ConceptSpace, Region
from stages.core.errors import UsageError
from stages.core.progress import progress
from stages.tasks.contract import RatedExample, RepairPlan
from stages.tasks.sources import parse_source
from stages.tasks.text_to_image.config import TextToImageRepair
from stages.tasks.text_to_image.judges import expected_values
from stages.tasks.text_to_image.pictures import PICTURE_LOADERS, to_png
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.studio import PictureOrder
from stages.tasks.training import sampler

NOT_SHOWN = -1  # or unknown
GOOD = 6  # rating from which a drawing is learnt
_NO_ATTRIBUTES = {"id", "text", "image", "split"}  # columns of pictures that are not attributes
_PART = 64  # pictures drawn between two updates of the progress


class PictureWords:
    """Attributes that the words of a grid show: those that the judge reads, and those that pictures have columns for.

    Args:
        space: concepts are slots of prompts, levels are the phrases that fill them.
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


@dataclass(frozen=True)
class Album:
    """Pictures from all sources.

    Args:
        table: columns image (PNG bytes), text, source (see TextToImageRepair), whole (whether the text must be kept).
        shows: (n, attributes) what they show, see PictureWords.
        inside: (regions, n) bool, which pictures the prompts of each of the plan's regions may ask for.
        counts: pictures by source; of the model's own also how many were drawn, accepted and praised.
    """

    table: pd.DataFrame
    shows: np.ndarray
    inside: np.ndarray
    counts: Mapping[str, int]


class Drawn(NamedTuple):
    """A picture drawn by the model: its prompt and cell, PNG bytes, the judge's reading, and whether all was right."""

    prompt: str
    cell: np.ndarray
    image: bytes
    read: Mapping[str, str]
    right: bool


def vocabulary(task: PainterProbes) -> PictureWords:
    """Return the words of an audit's grid, with the attributes that its judge reads or its pictures have as columns."""
    columns = {
        name: sorted({value for value in task.pictures[name] if isinstance(value, str) and value})
        for name in task.pictures.columns
        if name in task.concepts.names and name not in _NO_ATTRIBUTES
    }
    return PictureWords(
        task.concepts, {name: values for name, values in columns.items() if values} | dict(task.judge.attributes)
    )


def build_album(task: PainterProbes, plan: RepairPlan, settings: TextToImageRepair, words: PictureWords) -> Album:
    """Gather the pictures of all sources.

    Raises a UsageError when no source has a picture for some regions; the message names them.
    """
    targets = plan.regions(task.concepts)
    regions = [target.region for target in targets]
    counts: dict[str, int] = {}
    tables, shows, inside = [], [], []
    for source in settings.sources:
        if source == "own":
            table, seen, members = _own(task, plan, settings, words, counts)
        else:
            table = _captioned(task, settings, source)
            seen = words.table([words.said_of(row) for row in table.to_dict("records")])
            members = np.array([words.inside(region, seen, strictly=source == "pictures") for region in regions])
        counts[source] = len(table)
        tables.append(table[["image", "text"]].assign(source=source, whole=source == "own"))
        shows.append(seen)
        inside.append(members)
    album = Album(pd.concat(tables, ignore_index=True), np.concatenate(shows), np.concatenate(inside, axis=1), counts)
    if lacking := [target for n, target in enumerate(targets) if not album.inside[n].any()]:
        modes = ", ".join(f"{target.id} ({target.region.describe(task.concepts)})" for target in lacking)
        raise UsageError(
            f"restructure.settings.sources: no picture of {', '.join(settings.sources)} shows {modes}; expected one at"
            " least. Add pictures with columns named as the slots, or the source own, or draw more of it (samples)"
        )
    return album


def _captioned(task: PainterProbes, settings: TextToImageRepair, source: str) -> pd.DataFrame:
    if source == "pictures":
        return task.pictures[task.pictures["split"] == "repair"]
    loader = parse_source(settings.folder or {}, PICTURE_LOADERS, "restructure.settings.folder")
    return loader.load(task.context.inputs)[0]


def _own(
    task: PainterProbes, plan: RepairPlan, settings: TextToImageRepair, words: PictureWords, counts: dict[str, int]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Draw prompts of the plan's cells, and others to replay; keep what the judge, or a person, finds right."""
    rng = np.random.default_rng([plan.seed, 8])
    regions = [target.region for target in plan.regions(task.concepts)]
    others = round(settings.samples * settings.replay)
    items = task.items.ids("repair")
    rows, aimed = sampler(task, plan, items).draw(settings.samples - others, rng)
    rows = np.concatenate([rows, rng.integers(len(items), size=others)])
    cells = np.concatenate([aimed, _outside(task, regions, others, rng)])
    kept = [drawn for drawn in draw_for(task, settings, rows, cells, rng) if drawn.right]
    counts |= {"own_drawn": len(cells), "own_accepted": len(kept)}
    for example in filter(praised, plan.examples):  # what people saw is drawn again, from the same noise
        seen = np.array([example.cell] * task.config.images, dtype=np.int64)
        kept += _drawn(task, task.orders([example.item], seen[:1])[0], seen, accept=None)
    counts["own_praised"] = len(kept) - counts["own_accepted"]
    table = pd.DataFrame({"image": [d.image for d in kept], "text": [d.prompt for d in kept]})
    of_cells = np.array([drawn.cell for drawn in kept], dtype=np.int64).reshape(len(kept), len(task.concepts))
    members = np.array([region.in_box(task.concepts, of_cells) for region in regions])
    return table, words.table([drawn.read for drawn in kept]), members


def orders_for(
    task: PainterProbes, rows: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> list[PictureOrder]:
    """Return n pictures to draw for the templates of repair items (n,) and cells (n, d), from fresh noise."""
    templates = repair_templates(task)
    seeds = rng.integers(2**31, size=len(cells)).tolist()
    return [task.order(templates[row], cell, seed) for row, cell, seed in zip(rows.tolist(), cells, seeds, strict=True)]


def draw_for(
    task: PainterProbes, settings: TextToImageRepair, rows: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> list[Drawn]:
    """Draw a picture for each of n prompts; faulty ones (black, blanked) are left out.

    Args:
        settings: the alignment that a right picture needs at least.
        rows: (n,) numbers of repair items, for their templates.
        cells: (n, d) cells that fill the templates.
    """
    return _accepted(task, settings, orders_for(task, rows, cells, rng), cells)


def draw_must_pass(task: PainterProbes, plan: RepairPlan, settings: TextToImageRepair) -> list[Drawn]:
    """Draw the pictures of the pairs that must pass as their probes do, and keep those that the judge finds right."""
    if not plan.must_pass:
        return []
    cells = np.array([pair.cell for pair in plan.must_pass], dtype=np.int64)
    asked = task.orders([pair.item for pair in plan.must_pass], cells)
    orders = [order for of_pair in asked for order in of_pair]
    return [one for one in _accepted(task, settings, orders, cells.repeat(task.config.images, axis=0)) if one.right]


def _accepted(
    task: PainterProbes, settings: TextToImageRepair, orders: list[PictureOrder], cells: np.ndarray
) -> list[Drawn]:
    accept = 1 - task.threshold if settings.accept is None else settings.accept
    found: list[Drawn] = []
    with progress("repair, drawing pictures", len(orders)) as tell:
        for start in range(0, len(orders), _PART):
            part = slice(start, start + _PART)
            found += _drawn(task, orders[part], cells[part], accept)
            tell(min(start + _PART, len(orders)), f"{sum(drawn.right for drawn in found)} right")
    return found


def _drawn(task: PainterProbes, orders: list[PictureOrder], cells: np.ndarray, accept: float | None) -> list[Drawn]:
    """Draw and judge n pictures, and leave out the faulty ones; without `accept` all others are right."""
    drawings = task.studio.draw(orders)
    judgements = task.studio.judged(drawings, orders)
    found = []
    for order, cell, drawing, judged in zip(orders, cells, drawings, judgements, strict=True):
        if not judged.fault:
            right = accept is None or (all(judged.right.values()) and judged.alignment >= accept)
            found.append(Drawn(order.prompt, cell, to_png(drawing.pixels), judged.read, right))
    return found


def _outside(task: PainterProbes, regions: Sequence[Region], n: int, rng: np.random.Generator) -> np.ndarray:
    """Sample cells (n, d) outside all regions, or from the whole grid if these are too few."""
    cells = task.concepts.sample(64 * n, rng)
    outside = cells[~np.any([region.in_box(task.concepts, cells) for region in regions], axis=0)]
    return outside[:n] if len(outside) >= n else cells[:n]


def praised(example: RatedExample) -> bool:
    """Whether a person found a drawing good enough to be learnt."""
    return example.rating is not None and example.rating >= GOOD
