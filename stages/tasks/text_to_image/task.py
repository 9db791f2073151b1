"""The text-to-image task: its probes, views of many pictures, and the repair of a copy."""

from __future__ import annotations

from pathlib import Path

from stages.tasks.contract import RepairPlan, RepairRecord, Sheet, Split, Tally
from stages.tasks.text_to_image.probes import PainterProbes
from stages.tasks.text_to_image.views import sheets, tallies


class TextToImage(PainterProbes):
    """A text-to-image pipeline under test with its prompts, which can be repaired."""

    def tallies(self, split: Split) -> list[Tally]:
        return tallies(self, split)

    def sheets(self, split: Split) -> list[Sheet]:
        return sheets(self, split)

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        """See Task; the methods are those of `stages.tasks.text_to_image.repair`."""
        from stages.tasks.text_to_image.repair import repair

        return repair(self, plan, out_dir)
