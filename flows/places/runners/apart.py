"""A runner for workers without access to this workspace: stages are shipped to them through another runner."""

from __future__ import annotations

from dataclasses import replace

from flows.places.machines.driver import other_packages, pack, take_back, travels
from flows.places.runners import Job, Runner, Say
from flows.run_stage import StageResult, run_stage
from stages.core.errors import InfrastructureError
from stages.params.file import RunnerConfig


class Apart:
    """Runs stages in workers' clones, and brings their outputs here."""

    def __init__(self, runner: Runner, config: RunnerConfig) -> None:
        self._runner, self._config = runner, config

    def run(self, job: Job, say: Say) -> StageResult:
        """Run a stage in a worker's clone; here if it needs a person's decision, or its outputs are already here."""
        shipment = pack(job.stage, self._config) if travels(job.stage) else None
        if shipment is None:
            return run_stage(job.stage, say)
        result = self._runner.run(replace(job, shipment=shipment), say)
        if result.made is None:
            raise InfrastructureError(f"{job.stage}: the worker did not say what it made")
        take_back(shipment, result.made)
        say(f"from {result.made.host}")
        if result.outcome == "ran" and (told := other_packages(result.made)):
            say(told)
        return result
