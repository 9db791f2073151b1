"""Stages in threads of the flow's process: what one machine needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from flows.processes import stopping
from flows.run_stage import StageResult, run_stage
from flows.runners import Job, Say, too_few
from flows.runners.devices import MASK, Slots, visible_gpus
from stages.errors import InfrastructureError
from stages.params.file import RunnerConfig


def stages_at_once() -> int:
    """How many stages this machine takes: they use two threads each by default, and two should go on side by side."""
    return max(2, (os.cpu_count() or 2) // 2)


class Threads:
    """Runs stages as children of this process."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def run(self, job: Job, say: Say) -> StageResult:
        """Wait for a place and the GPUs, and run the stage."""
        with self._slots.hold(job.gpus) as taken:
            if stopping():
                raise InfrastructureError(f"{job.stage} was not started: the run is being stopped")
            # One that asks for none sees what this process sees: with `compute.device: auto` it takes a GPU as before.
            return run_stage(job.stage, say, {MASK: ",".join(taken)} if taken else {})


@contextlib.contextmanager
def opened(config: RunnerConfig, gpus: int) -> Iterator[Threads]:
    """See `flows.runners.open_runner`."""
    slots = Slots(config.workers or stages_at_once(), visible_gpus(config.gpus) if gpus else ())
    if gpus > len(slots.gpus):
        raise too_few(gpus, f"this machine has {len(slots.gpus)}")
    yield Threads(slots)
