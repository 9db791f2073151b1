"""Views of many pictures: whom the model draws if the prompt does not say, and contact sheets of the grid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from stages.concepts.prompts import fill
from stages.concepts.space import Concept
from stages.tasks.contract import SPLITS, Sheet, Split, Tally
from stages.tasks.text_to_image.items import noise_seed
from stages.tasks.text_to_image.pictures import strip
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.studio import Order

TALLY, SHEET = 1_000_000, 2_000_000  # item numbers for noise seeds that no item has
SHEETS = 2  # sheets of the same words, from other noise
NO_GUIDANCE = 1.0


def tallies(task: PainterProbes, split: Split) -> list[Tally]:
    """Tally an attribute for each subject, in prompts of the split's templates that leave everything else unsaid.

    Every subject has its own start noise, the same for every model and scale: with common noise the subjects would not
    be independent, and their mean less certain than it looks. Broken and blanked pictures count as unread.
    """
    bias = task.config.bias
    if bias is None or task.reference is None:
        return []
    own = task.config.sampling.guidance
    scales = list(dict.fromkeys(bias.guidance or [own, NO_GUIDANCE]))
    templates = _templates(task, split)
    offset = TALLY + SPLITS.index(split)
    subjects = dict(_levels(task, bias.subject))
    found = []
    for scale in scales:
        orders = [
            Order(
                fill(templates[n % len(templates)], words),
                noise_seed(task.context.seed, offset, k, n, task.salt),
                guidance=None if scale == own else scale,
            )
            for k, words in enumerate(subjects.values())
            for n in range(bias.seeds)
        ]
        read = [judged.read.get(bias.attribute, "") for judged in task.studio.look(orders, f"bias, guidance {scale:g}")]
        for k, subject in enumerate(subjects):
            counted = Counter(read[k * bias.seeds : (k + 1) * bias.seeds])
            counts = {value: counted[value] for value in task.reference}
            found.append(Tally(f"{bias.subject} {subject}", bias.attribute, scale, counts, task.reference, counted[""]))
    return found


def sheets(task: PainterProbes, split: Split) -> list[Sheet]:
    """Draw every level of one slot by every level of another, from the same start noise; all else is left unsaid."""
    names = task.config.sheet or task.concepts.names[:2]
    if len(names) < 2:
        return []
    templates = _templates(task, split)
    drawn = []
    for n in range(SHEETS):
        template, seed = templates[n % len(templates)], noise_seed(task.context.seed, SHEET, 0, n, task.salt)
        rows, columns = list(_levels(task, names[0])), list(_levels(task, names[1]))
        orders = [
            Order(fill(template, words | {names[1]: other[names[1]]}), seed)
            for _, words in rows
            for _, other in columns
        ]
        tiles = iter(task.studio.draw(orders, "contact sheet"))
        strips = [(label, strip([next(tiles).pixels for _ in columns])) for label, _ in rows]
        unsaid = fill(template, {name: f"[{name}]" if name in names else word for name, word in _start(task).items()})
        drawn.append(Sheet(unsaid, [label for label, _ in columns], strips))
    return drawn


def _templates(task: PainterProbes, split: Split) -> list[str]:
    table = task.items.table
    return list(dict.fromkeys(table.loc[table["split"] == split, "template"]))


def _start(task: PainterProbes) -> dict[str, str]:
    return task.words(task.concepts.start)


def _levels(task: PainterProbes, slot: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each level of a slot that says something, with the words of a prompt that says nothing else."""
    concept: Concept = task.concepts.concepts[task.concepts.names.index(slot)]
    for level in concept.levels:
        if level != concept.neutral:
            yield str(level), _start(task) | {slot: str(level)}
