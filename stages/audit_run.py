"""What stages that query a model have in common: the audit, its model, and a scratch folder from which they resume."""

from collections.abc import Collection, Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from stages.code import code_of
from stages.core.files import scratch, stage_dir
from stages.core.ledger import Ledger, open_ledger
from stages.params import load_params
from stages.provenance import provenance, run_key
from stages.ratings import rated
from stages.records import audit_folder
from stages.tasks.base import LoadedTask
from stages.tasks.load import load_task, task_context


class AuditRun(ExitStack):
    """One run of a stage of an audit that queries a model; a `with` block closes what it opened."""

    def __init__(self, name: str, stage: str) -> None:
        super().__init__()
        self.name, self.stage = name, stage
        self.params, self.here, self.prepared = load_params(), audit_folder(name), stage_dir(name, "prepare")
        self.audit = self.params.audit(name)
        self.compute = task_context(name, self.audit, self.prepared).compute

    def judged_task(self, model: Path | None = None, learnt: Collection[str] = ()) -> LoadedTask:
        """Load the task with the model under test or another one, judged by people's ratings if they are in force.

        Args:
            learnt: test items that the repair learnt from.
        """
        return rated(load_task(self.name, self.audit, self.prepared, model, learnt), self.name, self.audit)

    def scratch(self, *settings: Any, more: Iterable[Path] = ()) -> Path:
        """Open the scratch folder of a run with this code, these inputs and these settings outside the audit's block.

        A run that was killed resumes from it; one of anything else does not see it.
        """
        inputs = [*self.here.stages[self.stage].inputs, *more]
        key = run_key(self.audit, inputs, code_of(self.audit, self.stage), *settings)
        return self.enter_context(scratch(self.name, self.stage, key))

    def ledger(self, folder: Path) -> Ledger:
        return self.enter_context(closing(open_ledger(folder)))

    def provenance(self, **own: Any) -> dict[str, Any]:
        """Return the origin of a result that this run makes with the model, and the stage's own additions."""
        return provenance(self.name, self.audit, self.prepared) | own
