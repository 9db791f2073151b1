"""The text-to-image task: its probes, views of many pictures, and the repair of a copy."""

from collections import Counter
from pathlib import Path

from stages.concepts.prompts import fill
from stages.tasks.contract import SPLITS, RepairPlan, RepairRecord, Sheet, Split, Tally
from stages.tasks.text_to_image.items import noise_seed
from stages.tasks.text_to_image.pictures import strip
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.studio import PictureOrder

TALLY, SHEET = 1_000_000, 2_000_000  # item numbers for noise seeds that no item has
SHEETS = 2  # sheets of the same words, from other noise
NO_GUIDANCE = 1.0


class TextToImage(PainterProbes):
    """A text-to-image pipeline under test with its prompts, which can be repaired."""

    movable = ("lora", "dpo")

    def tallies(self, split: Split) -> list[Tally]:
        """Tally an attribute for each subject, in prompts of the split's templates that leave everything else unsaid.

        Every subject has its own start noise, the same for every model and scale: with common noise the subjects would
        not be independent, and their mean less certain than it looks. Broken and blanked pictures count as unread.
        """
        bias = self.config.bias
        if bias is None or self.reference is None:
            return []
        own = self.config.sampling.guidance
        templates = self._split_templates(split)
        offset = TALLY + SPLITS.index(split)
        subjects = self._levels(bias.subject)
        found = []
        for scale in dict.fromkeys(bias.guidance or [own, NO_GUIDANCE]):
            orders = [
                PictureOrder(
                    fill(templates[n % len(templates)], words),
                    noise_seed(self.context.seed, offset, k, n, self.salt),
                    guidance=None if scale == own else scale,
                )
                for k, words in enumerate(subjects.values())
                for n in range(bias.seeds)
            ]
            judged = self.studio.look(orders, f"bias, guidance {scale:g}")
            read = [picture.read.get(bias.attribute, "") for picture in judged]
            for k, subject in enumerate(subjects):
                counted = Counter(read[k * bias.seeds : (k + 1) * bias.seeds])
                counts = {value: counted[value] for value in self.reference}
                name = f"{bias.subject} {subject}"
                found.append(Tally(name, bias.attribute, scale, counts, self.reference, counted[""]))
        return found

    def sheets(self, split: Split) -> list[Sheet]:
        """Draw every level of one slot by every level of another, from the same start noise; all else is unsaid."""
        names = self.config.sheet or self.concepts.names[:2]
        if len(names) < 2:
            return []
        templates, start = self._split_templates(split), self.words(self.concepts.start)
        rows, columns = self._levels(names[0]), self._levels(names[1])
        drawn = []
        for n in range(SHEETS):
            template, seed = templates[n % len(templates)], noise_seed(self.context.seed, SHEET, 0, n, self.salt)
            orders = [
                PictureOrder(fill(template, words | {names[1]: other[names[1]]}), seed)
                for words in rows.values()
                for other in columns.values()
            ]
            tiles = iter(self.studio.draw(orders, "contact sheet"))
            strips = [(label, strip([next(tiles).pixels for _ in columns])) for label in rows]
            unsaid = fill(template, {name: f"[{name}]" if name in names else word for name, word in start.items()})
            drawn.append(Sheet(unsaid, list(columns), strips))
        return drawn

    def _split_templates(self, split: Split) -> list[str]:
        table = self.items.table
        return list(dict.fromkeys(table.loc[table["split"] == split, "template"]))

    def _levels(self, slot: str) -> dict[str, dict[str, str]]:
        """Return each level of a slot that says something, with the words of a prompt that says nothing else."""
        concept = self.concepts.concepts[self.concepts.names.index(slot)]
        start = self.words(self.concepts.start)
        return {str(level): start | {slot: str(level)} for level in concept.levels if level != concept.neutral}

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        from stages.tasks.text_to_image.repair import repair

        return repair(self, plan, out_dir)

    def move(self, folder: Path, share: float, out_dir: Path) -> None:
        from stages.tasks.training import scale_adapter

        scale_adapter(folder, share, out_dir)
