"""What stages that query a model have in common: the audit, its model, and a scratch folder from which they resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.code import code_of
from stages.core.files import scratch, stage_dir
from stages.params import load_params
from stages.provenance import provenance, run_key
from stages.ratings import rated
from stages.tasks.base import LoadedTask
from stages.tasks.load import load_task, task_context


class AuditRun:
    """One run of a stage of an audit that queries a model."""

    def __init__(self, name: str, stage: str) -> None:
        self.name, self.stage = name, stage
        self.params, self.prepared = load_params(), stage_dir(name, "prepare")
        self.audit = self.params.audit(name)
        self.context = task_context(name, self.audit, self.prepared)

    def judged_task(self, model: Path | None = None) -> LoadedTask:
        """Load the task with the model under test or another one, judged by people's ratings if they are in force."""
        return rated(load_task(self.name, self.audit, self.prepared, model), self.name, self.audit)

    @contextmanager
    def resumed_scratch(self, inputs: Iterable[Path], *settings: Any) -> Iterator[Path]:
        """Yield the scratch folder of a run with this code, these files and these settings outside the audit's block.

        A run that was killed resumes from it; one of anything else does not see it.
        """
        key = run_key(self.audit, inputs, code_of(self.audit, self.stage), *settings)
        with scratch(self.name, self.stage, key) as folder:
            yield folder

    def model_provenance(self) -> dict[str, Any]:
        """Return the origin of a result that this run makes with the model."""
        return provenance(self.name, self.audit, self.prepared)
