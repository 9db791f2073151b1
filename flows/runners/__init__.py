"""Where stages run: in threads of this process, or on a Dask or Ray cluster, started here or found at an address.

Prefect's tasks wait in threads of the flow's process whatever the runner; what goes to a cluster is one stage once all
before it are done. So a stage that waits holds no GPU, workers need no Prefect server, and a stage whose worker died is
retried as any other. params.yaml says what a stage needs (`gpus: 1`); each runner has its own way to ask.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, get_args

from flows.machines import check_machines
from flows.run_stage import StageResult
from flows.runners.devices import visible_gpus
from flows.shipment import Shipment
from stages.errors import InfrastructureError, UsageError, did_you_mean
from stages.params import Params
from stages.params.file import RunnerConfig

Say = Callable[[str], None]
KINDS: tuple[str, ...] = get_args(RunnerConfig.model_fields["kind"].annotation)
POLL = 0.5  # seconds between two looks at whether the run is being stopped
_REACH_LIMIT = 5.0  # seconds


@dataclass(frozen=True)
class Job:
    """What a worker is told.

    Args:
        stage: name in dvc.yaml.
        gpus: how many it needs.
        workspace: absolute path of the workspace, as the worker sees it.
        shipment: what the stage needs, where that is a clone of the worker's own.
    """

    stage: str
    gpus: int
    workspace: str
    shipment: Shipment | None = None


class Runner(Protocol):
    """A place for stages."""

    def run(self, job: Job, say: Say) -> StageResult:
        """Run a stage to its end; called in a thread of its own for each, as soon as all before it are done.

        Args:
            job: the stage, and what it needs.
            say: called in this same thread with each line the stage prints.

        Raises:
            FadedError: as `flows.run_stage.run_stage`; an InfrastructureError when its worker died.
        """


def chosen(params: Params, told: str | None) -> RunnerConfig:
    """Which runner is meant: told by `--runner` or FADED_RUNNER, else by params.yaml.

    Args:
        params: of the workspace.
        told: NAME or NAME=ADDRESS. What `runner:` says beside it holds if it is of the same kind.

    Raises:
        UsageError: when there is no such runner, its package is missing, or it has no addresses.
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
            # Those describe a cluster that is started here.
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
    """Refuse what a stage would refuse later, by params.yaml and what the chosen runner has.

    Raises:
        UsageError: with one line per error.
    """
    from stages.check import check_audits  # imports what tasks need

    if config.kind == "threads":
        check_audits(params, audits, gpus=lambda: len(visible_gpus(config.gpus)))
    else:
        check_audits(params, audits, elsewhere=True)


@contextlib.contextmanager
def open_runner(config: RunnerConfig, gpus: int = 0) -> Iterator[Runner]:
    """Start or find a place for stages; when the block ends, nothing that was started for it runs any more.

    Args:
        config: which, see `chosen`.
        gpus: the most GPUs a single stage of this run asks for.

    Raises:
        UsageError: when a stage asks for more GPUs than any worker has, or workers with clones of their own have no
            remote to share.
        InfrastructureError: when nobody answers at the address.
    """
    check_machines(config)
    if config.address not in (None, "auto"):
        reach(config.kind, str(config.address))
    opened: Callable[[RunnerConfig, int], contextlib.AbstractContextManager[Runner]]
    opened = import_module(f"flows.runners.{config.kind}").opened  # each imports a library of its own
    with opened(config, gpus) as runner:
        yield runner if config.workspace is None else import_module("flows.runners.apart").Apart(runner, config)


def job(config: RunnerConfig, stage: str, gpus: int) -> Job:
    """What a worker is told of a stage of the current workspace."""
    return Job(stage, gpus, config.workspace or str(Path.cwd()))


def reach(kind: str, address: str) -> None:
    """Fail in seconds where nobody listens: the libraries themselves try for a minute and more.

    Raises:
        UsageError: when it is not an address.
        InfrastructureError: when nobody answers.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"runner {kind}: expected an address HOST:PORT, found {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_LIMIT).close()
    except (OSError, OverflowError) as error:
        raise InfrastructureError(f"runner {kind}: nothing answers at {address} ({error})") from None


def too_few(gpus: int, found: str) -> UsageError:
    """The error when no worker has as many GPUs as a stage asks for."""
    return UsageError(f"a stage requests {gpus} GPU(s) (compute.gpus or repairs.*.gpus), {found}")
