"""The summarization task: its probes, and the repair of a copy."""

from pathlib import Path

from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.summarization.probes import SummarizerProbes


class Summarization(SummarizerProbes):
    """A summarizer under test with its articles, which can be repaired."""

    movable = ("lora", "dpo", "full")

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        from stages.tasks.summarization.repair import repair

        return repair(self, plan, out_dir)

    def move(self, folder: Path, share: float, out_dir: Path) -> None:
        """See Task; normalisations that a model was trained with stay."""
        from stages.tasks.summarization.repair import move

        move(self, folder, share, out_dir)
