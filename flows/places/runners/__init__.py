"""Where stages run: in threads of this process, or on a Dask or Ray cluster, started here or found at an address.

With every runner, Prefect's tasks wait in threads of the flow's process. A stage is sent to the cluster once all stages
before it are done. So a waiting stage holds no GPU, workers need no Prefect server, and a stage whose worker died is
retried like any other. params.yaml sets what a stage needs (`gpus: 1`); each runner requests it in its own way.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import get_args

from flows.places.machines.driver import check_machines
from flows.run_stage import Shipment, StageResult
from stages.core.errors import InfrastructureError, UsageError, did_you_mean
from stages.params import Params
from stages.params.file import RunnerConfig

MASK = "CUDA_VISIBLE_DEVICES"


class Slots:
    """Resources shared by stages that run in threads of one process: how many may run at once, and ids of GPUs."""

    def __init__(self, stages: int, gpus: Sequence[str] = ()) -> None:
        self.gpus = tuple(gpus)
        self._free_stages, self._free_gpus = stages, list(gpus)
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, gpus: int) -> Iterator[list[str]]:
        """Wait for a free slot and this many GPUs; yield the ids of the GPUs."""
        with self._changed:
            self._changed.wait_for(lambda: self._free_stages > 0 and len(self._free_gpus) >= gpus)
            self._free_stages -= 1
            taken = [self._free_gpus.pop(0) for _ in range(gpus)]
        try:
            yield taken
        finally:
            with self._changed:
                self._free_stages += 1
                self._free_gpus += taken
                self._changed.notify_all()


def visible_gpus(declared: int | None = None) -> list[str]:
    """Ids of the GPUs that stages of this process may use, as many as are declared, otherwise all.

    If this process was started with CUDA_VISIBLE_DEVICES, its stages get ids from that (numbers or UUIDs).
    """
    mask = os.environ.get(MASK)
    if mask is not None:
        ids = [gpu for part in mask.split(",") if (gpu := part.strip()) not in ("", "-1")]
        return ids if declared is None else ids[:declared]
    if declared is None:
        import torch

        declared = torch.cuda.device_count()
    return [str(i) for i in range(declared)]


Say = Callable[[str], None]
KINDS: tuple[str, ...] = get_args(RunnerConfig.model_fields["kind"].annotation)
POLL = 0.5  # seconds between checks whether the run is being stopped
_REACH_LIMIT = 5.0  # seconds


@dataclass(frozen=True)
class Job:
    """What is sent to a worker: a stage, with what it needs if the workspace there is the worker's own clone."""

    stage: str
    gpus: int
    workspace: str
    shipment: Shipment | None = None


# A place where stages run. It runs a stage to its end; called in a separate thread per stage, once all stages before it
# are done. `Say` is called in the same thread with each line the stage prints. Raises a FadedError as in
# `flows.run_stage.run_stage`; an InfrastructureError if the stage's worker died.
Runner = Callable[[Job, Say], StageResult]


def chosen_runner(params: Params, told: str | None) -> RunnerConfig:
    """The chosen runner: NAME or NAME=ADDRESS from `--runner` or FADED_RUNNER, otherwise from params.yaml.

    Settings under `runner:` apply if they are for the same kind. Raises a UsageError if there is no such runner, its
    package is missing, or it takes no address.
    """
    told = told or os.environ.get("FADED_RUNNER")
    config = params.runner
    if told:
        kind, equals, address = told.partition("=")
        if kind not in KINDS:
            raise UsageError(f"no runner {kind!r}, found: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
        if equals and not address:
            raise UsageError(f"--runner {told}: expected an address behind =, or {kind} alone for this machine")
        same = config.model_dump() if kind == config.kind else {}
        if address:
            # These describe a cluster that is started here.
            same = {**same, "address": address, "workers": None, "gpus": None}
        try:
            config = RunnerConfig.model_validate({**same, "kind": kind})
        except ValueError as error:
            raise UsageError(f"--runner {told}: {error}") from None
    package = {"dask": "distributed", "ray": "ray"}.get(config.kind)
    if package is not None and find_spec(package) is None:
        raise UsageError(f"runner {config.kind!r} needs a package: pip install 'faded[{config.kind}]'")
    return config


def check_stages(params: Params, audits: Iterable[str], config: RunnerConfig) -> None:
    """Refuse what a stage would refuse later, by params.yaml and the GPUs of the chosen runner.

    Raises a UsageError with one line per error.
    """
    from stages.check import check_audits  # imports the tasks' libraries

    if config.kind == "threads":
        check_audits(params, audits, gpus=lambda: len(visible_gpus(config.gpus)))
    else:
        check_audits(params, audits, elsewhere=True)


@contextlib.contextmanager
def open_runner(config: RunnerConfig, gpus: int = 0) -> Iterator[Runner]:
    """Start or find a place for stages; when the block ends, everything that was started for it is stopped.

    Raises a UsageError if a stage requests more GPUs (`gpus`) than any worker has, or workers with their own clones
    have no remote to share; an InfrastructureError if nothing responds at the address.
    """
    check_machines(config)
    if config.address not in (None, "auto"):
        reach(config.kind, str(config.address))
    opened: Callable[[RunnerConfig, int], contextlib.AbstractContextManager[Runner]]
    opened = import_module(f"flows.places.runners.{config.kind}").opened  # each imports its own library
    with opened(config, gpus) as runner:
        apart = import_module("flows.places.runners.threads").run_apart
        yield runner if config.workspace is None else partial(apart, runner, config)


def reach(kind: str, address: str) -> None:
    """Fail within seconds if nothing listens at an address: the libraries themselves try for a minute or more.

    Raises a UsageError if it is not an address, and an InfrastructureError if nothing responds.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"runner {kind}: expected an address HOST:PORT, found {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_LIMIT).close()
    except (OSError, OverflowError) as error:
        raise InfrastructureError(f"runner {kind}: nothing answers at {address} ({error})") from None


def gpus_here(config: RunnerConfig, most: int) -> list[str]:
    """Ids of this machine's GPUs for a cluster that is started here.

    Raises a UsageError if they are fewer than a stage requests.
    """
    ids = visible_gpus(config.gpus) if most or config.gpus else []
    if most > len(ids):
        raise too_few_gpus(most, f"this machine has {len(ids)}")
    return ids


def too_few_gpus(gpus: int, found: str) -> UsageError:
    """The error if no worker has as many GPUs as a stage requests."""
    return UsageError(f"a stage requests {gpus} GPU(s) (compute.gpus or repairs.*.gpus), {found}")
