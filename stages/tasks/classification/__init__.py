"""The built-in image classification task."""

from pathlib import Path

from stages.tasks.classification.probes import ClassifierProbes
from stages.tasks.contract import RepairPlan, RepairRecord


class ImageClassification(ClassifierProbes):
    """A classifier under test with its images, which can be repaired."""

    movable = ("all-layers", "self-distilled", "last-layer")

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        from stages.tasks.classification.repair import repair

        return repair(self, plan, out_dir)

    def move(self, folder: Path, share: float, out_dir: Path) -> None:
        from stages.tasks.classification.families import stored
        from stages.tasks.training import interpolate

        interpolate(folder, share, out_dir, stored(self.model.net).state_dict())
