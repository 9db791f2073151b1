"""What runs a stage on a worker of a cluster, in the workspace that it shares, or shipped to its clone (`Apart`)."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from flows.places.machines.driver import other_packages, pack, take_back, travels
from flows.places.machines.worker import run_there
from flows.places.runners import Job, Runner, Say
from flows.places.runners.devices import MASK
from flows.run_stage import StageResult, run_stage
from stages.core.environment import set_defaults
from stages.core.errors import FadedError, InfrastructureError
from stages.params.file import RunnerConfig

_threads = 0  # threads of this process that run stages
_changed = threading.Condition()


def work(job: Job, devices: Sequence[str], say: Say) -> StageResult | FadedError:
    """Run a stage in its workspace; errors for people are returned, as the libraries would wrap and print raised ones.

    Args:
        devices: ids of its GPUs. Without any it sees none, as a cluster's other GPUs belong to other stages.
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
