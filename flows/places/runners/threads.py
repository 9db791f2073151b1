"""Stages in threads of the flow's process, on one machine."""

import contextlib
import os
from collections.abc import Iterator

from flows.places.runners import Job, Say, gpus_here
from flows.places.runners.devices import MASK, Slots
from flows.processes import stopping
from flows.run_stage import StageResult, run_stage
from stages.core.errors import InfrastructureError
from stages.params.file import RunnerConfig


def stages_at_once() -> int:
    """How many stages may run at once: each uses two threads by default, and two should fit on any machine."""
    return max(2, (os.cpu_count() or 2) // 2)


class Threads:
    """Runs stages as children of this process."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def run(self, job: Job, say: Say) -> StageResult:
        """Wait for a free slot and the GPUs, and run the stage."""
        with self._slots.hold(job.gpus) as taken:
            if stopping():
                raise InfrastructureError(f"{job.stage} was not started: the run is being stopped")
            # A stage that requests none sees all GPUs of this process: with `compute.device: auto` it uses one.
            return run_stage(job.stage, say, {MASK: ",".join(taken)} if taken else {})


@contextlib.contextmanager
def opened(config: RunnerConfig, gpus: int) -> Iterator[Threads]:
    """See `flows.places.runners.open_runner`."""
    yield Threads(Slots(config.workers or stages_at_once(), gpus_here(config, gpus) if gpus else ()))
