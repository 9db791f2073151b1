"""Classification of table rows with scikit-learn, or by a user's own model."""

from pathlib import Path

from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.tabular.models import RowModel
from stages.tasks.tabular.probes import RowProbes


class TabularClassification(RowProbes):
    """A classifier of rows with its rows, which can be refitted."""

    movable = ("risk-weighted", "threshold")

    def repair(self, plan: RepairPlan, out_dir: Path) -> RepairRecord:
        from stages.tasks.tabular.repair import repair

        return repair(self, plan, out_dir)

    def move(self, folder: Path, share: float, out_dir: Path) -> None:
        from stages.tasks.tabular.repair import move

        assert isinstance(self.model, RowModel)  # as for `repair`
        move(self.model, folder, share, out_dir)
