"""The pictures a repair learns from.

They are captioned pictures of the audit or of a person, and the model's own: those of its drawings for prompts of the
target modes that the judge finds right (rejection sampling).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.concepts import Region
from stages.errors import UsageError
from stages.progress import progress
from stages.tasks.cells import sampler
from stages.tasks.contract import RatedExample, RepairPlan
from stages.tasks.sources import parse_source
from stages.tasks.text_to_image.picture_sources import PICTURE_LOADERS
from stages.tasks.text_to_image.pictures import to_png
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.repair_config import RepairSettings
from stages.tasks.text_to_image.studio import Order
from stages.tasks.text_to_image.vocabulary import Vocabulary, repair_templates

GOOD = 6  # rating from which a drawing is learnt

_NO_ATTRIBUTES = {"id", "text", "image", "split"}  # columns of pictures that are not attributes
_PART = 64  # pictures drawn between two updates of the progress


@dataclass(frozen=True)
class Album:
    """Pictures from all sources.

    Args:
        table: columns image (PNG bytes), text, source (see RepairSettings), whole (whether the text must be kept).
        shows: (n, attributes) what they show, see Vocabulary.
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


def vocabulary(task: PainterProbes) -> Vocabulary:
    """Return the words of an audit's grid, with the attributes that its judge reads or its pictures have as columns."""
    columns = {
        name: sorted({value for value in task.pictures[name] if isinstance(value, str) and value})
        for name in task.pictures.columns
        if name in task.concepts.names and name not in _NO_ATTRIBUTES
    }
    return Vocabulary(
        task.concepts, {name: values for name, values in columns.items() if values} | dict(task.judge.attributes)
    )


def build_album(task: PainterProbes, plan: RepairPlan, settings: RepairSettings, words: Vocabulary) -> Album:
    """Gather the pictures of all sources.

    Raises:
        UsageError: when no source has a picture for some regions; the message names them.
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


def _captioned(task: PainterProbes, settings: RepairSettings, source: str) -> pd.DataFrame:
    if source == "pictures":
        return task.pictures[task.pictures["split"] == "repair"]
    loader = parse_source(settings.folder or {}, PICTURE_LOADERS, "restructure.settings.folder")
    return loader.load(task.context.inputs)[0]


def _own(
    task: PainterProbes, plan: RepairPlan, settings: RepairSettings, words: Vocabulary, counts: dict[str, int]
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
    kept += [drawn for example in plan.examples if praised(example) for drawn in _again(task, example)]
    counts["own_praised"] = len(kept) - counts["own_accepted"]
    table = pd.DataFrame({"image": [d.image for d in kept], "text": [d.prompt for d in kept]})
    of_cells = np.array([drawn.cell for drawn in kept], dtype=np.int64).reshape(len(kept), len(task.concepts))
    members = np.array([region.in_box(task.concepts, of_cells) for region in regions])
    return table, words.table([drawn.read for drawn in kept]), members


def draw_for(
    task: PainterProbes, settings: RepairSettings, rows: np.ndarray, cells: np.ndarray, rng: np.random.Generator
) -> list[Drawn]:
    """Draw a picture for each of n prompts; faulty ones (black, blanked) are left out.

    Args:
        task: the model, and its judge.
        settings: the alignment that a right picture needs at least.
        rows: (n,) numbers of repair items, for their templates.
        cells: (n, d) cells that fill the templates.
        rng: random generator of the noise.
    """
    templates = repair_templates(task)
    seeds = rng.integers(2**31, size=len(cells)).tolist()
    orders = [
        Order(task.prompt(templates[row], cell), seed, tuple(task.expected(cell).items()))
        for row, cell, seed in zip(rows.tolist(), cells, seeds, strict=True)
    ]
    at_least = 1 - task.threshold if settings.accept is None else settings.accept
    found: list[Drawn] = []
    with progress("repair, drawing pictures", len(orders)) as tell:
        for start in range(0, len(orders), _PART):
            part = slice(start, start + _PART)
            drawings = task.studio.draw(orders[part])
            answers = zip(orders[part], cells[part], drawings, task.studio.judged(drawings, orders[part]), strict=True)
            for order, cell, drawing, judged in answers:
                if not judged.fault:
                    right = all(judged.right.values()) and judged.alignment >= at_least
                    found.append(Drawn(order.prompt, cell, to_png(drawing.pixels), judged.read, right))
            tell(min(start + _PART, len(orders)), f"{sum(drawn.right for drawn in found)} right")
    return found


def _outside(task: PainterProbes, regions: Sequence[Region], n: int, rng: np.random.Generator) -> np.ndarray:
    """Sample cells (n, d) outside all regions, or from the whole grid if these are too few."""
    cells = task.concepts.sample(64 * n, rng)
    outside = cells[~np.any([region.in_box(task.concepts, cells) for region in regions], axis=0)]
    return outside[:n] if len(outside) >= n else cells[:n]


def praised(example: RatedExample) -> bool:
    """Whether a person found a drawing good enough to be learnt."""
    return example.rating is not None and example.rating >= GOOD


def _again(task: PainterProbes, example: RatedExample) -> list[Drawn]:
    """Draw what people saw of an example again, from the same noise."""
    cell = np.array(example.cell, dtype=np.int64)
    orders = task.orders([example.item], cell[None])[0]
    drawings = task.studio.draw(orders)
    answers = zip(orders, drawings, task.studio.judged(drawings, orders), strict=True)
    return [Drawn(o.prompt, cell, to_png(d.pixels), judged.read, True) for o, d, judged in answers if not judged.fault]
