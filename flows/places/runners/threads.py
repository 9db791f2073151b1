"""Stages in threads of the flow's process, or on a worker that shares its workspace or has a clone (`run_apart`)."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flows.places.machines.driver import other_packages, pack, take_back, travels
from flows.places.machines.worker import run_there
from flows.places.runners import MASK, Job, Runner, Say, Slots, gpus_here
from flows.processes import stopping
from flows.run_stage import StageResult, run_stage
from stages.core.environment import set_defaults
from stages.core.errors import FadedError, InfrastructureError
from stages.params.file import RunnerConfig


def stages_at_once() -> int:
    """How many stages may run at once: each uses two threads by default, and two should fit on any machine."""
    return max(2, (os.cpu_count() or 2) // 2)


@contextlib.contextmanager
def opened(config: RunnerConfig, gpus: int) -> Iterator[Runner]:
    """See `flows.places.runners.open_runner`; stages are children of this process."""
    slots = Slots(config.workers or stages_at_once(), gpus_here(config, gpus) if gpus else ())

    def run(job: Job, say: Say) -> StageResult:
        with slots.hold(job.gpus) as taken:
            if stopping():
                raise InfrastructureError(f"{job.stage} was not started: the run is being stopped")
            # A stage that requests none sees all GPUs of this process: with `compute.device: auto` it uses one.
            return run_stage(job.stage, say, {MASK: ",".join(taken)} if taken else {})

    yield run


_threads = 0  # threads of this process that run stages
_changed = threading.Condition()


def work(job: Job, devices: Sequence[str], say: Say) -> StageResult | FadedError:
    """Run a stage in its workspace; errors for people are returned, as the libraries would wrap and print raised ones.

    Without ids of GPUs it sees none, as a cluster's other GPUs belong to other stages.
    """
    set_defaults()
    try:
        if job.shipment is not None:
            return run_there(job.shipment, say, {MASK: ",".join(devices)})
        with _inside(job.workspace):
            return run_stage(job.stage, say, {MASK: ",".join(devices)})
    except FadedError as error:
        return error
    except Exception as error:  # a full disk, an unwritable folder: reported and retried
        return InfrastructureError(f"{job.stage}: {type(error).__name__}: {error}")


@contextlib.contextmanager
def _inside(workspace: str) -> Iterator[None]:
    """Enter the workspace. The current folder belongs to the process, so threads for other workspaces wait."""
    global _threads  # noqa: PLW0603
    if not Path(workspace, "dvc.yaml").is_file():
        raise InfrastructureError(
            f"worker on {os.uname().nodename} sees no workspace {workspace}: `runner: {{workspace: ...}}` in "
            "params.yaml says where its own is, if it does not share this machine's files"
        )
    with _changed:
        _changed.wait_for(lambda: _threads == 0 or str(Path.cwd()) == workspace)
        os.chdir(workspace)
        _threads += 1
    try:
        yield
    finally:
        with _changed:
            _threads -= 1
            _changed.notify_all()


def run_apart(runner: Runner, config: RunnerConfig, job: Job, say: Say) -> StageResult:
    """Run a stage in a worker's clone, and bring its outputs here; run it here if it may not travel or needs no run."""
    shipment = pack(job.stage, config) if travels(job.stage) else None
    if shipment is None:
        return run_stage(job.stage, say)
    result = runner(replace(job, shipment=shipment), say)
    if result.made is None:
        raise InfrastructureError(f"{job.stage}: the worker did not say what it made")
    take_back(shipment, result.made)
    say(f"from {result.made.host}")
    if result.outcome == "ran" and (told := other_packages(result.made)):
        say(told)
    return result
