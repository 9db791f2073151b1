"""Stages on a Ray cluster: Ray assigns GPUs by `num_gpus`, and reports which."""

import contextlib
import logging
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from flows.places.runners import POLL, Job, Runner, Say, gpus_here, reach, too_few_gpus
from flows.places.runners.reaper import reaped_folder
from flows.places.runners.threads import stages_at_once, work
from flows.processes import stopping
from flows.run_stage import StageResult
from stages.core.errors import FadedError, InfrastructureError, UsageError, one_line
from stages.params.file import RunnerConfig

_STORE = 100_000_000  # bytes of shared memory: only lines travel through it
_LOOK, _FAILURES = 2.0, 3  # seconds between attempts to reach the head; failures in a row that count as gone
_SETTINGS = {  # read by Ray when it is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # no telemetry
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # `work` sets what a stage without GPUs sees
    # Without its head, Ray ends this process after a minute with exit code 1. `_check_head` reports it before.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "3600",
}


def _check_head(address: str, job: Job) -> None:
    """Raise an InfrastructureError if the cluster's head did not respond several times: else, calls would just wait."""
    for _ in range(_FAILURES):
        with contextlib.suppress(InfrastructureError):
            reach("ray", address)
            return
        time.sleep(_LOOK)
    raise InfrastructureError(f"{job.stage}: the head of the Ray cluster at {address} is gone")


def _run(head: str, job: Job, say: Say) -> StageResult:
    """Submit the stage, pass on its lines, and wait for its end."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    _check_head(head, job)
    # Prefect retries and reports it; Ray would retry silently.
    on_worker = ray.remote(num_returns="streaming", max_retries=0)(_on_worker)
    stream: Any = on_worker.options(
        name=job.stage,
        num_gpus=job.gpus,
        # A stage with GPUs takes no slot of those without, so that both can run at the same time.
        num_cpus=0 if job.gpus else 1,
    ).remote(job)
    try:
        for item in _items(head, stream, job):
            if isinstance(item, str):
                say(item)
            elif isinstance(item, FadedError):
                raise item
            else:
                return item
    except RayTaskError as error:
        raise InfrastructureError(f"{job.stage}: Ray: {error.cause}") from error
    except RayError as error:
        raise InfrastructureError(f"{job.stage}: the worker that ran it died ({one_line(error)})") from None
    raise InfrastructureError(f"{job.stage}: its worker did not report how it ended")


def _items(head: str, stream: Any, job: Job) -> Iterator[Any]:
    import ray

    while True:
        ready, _ = ray.wait([stream], timeout=POLL)
        if ready:
            try:
                reference = next(stream)
            except StopIteration:
                return
            yield ray.get(reference)
        elif stopping():
            ray.cancel(stream, force=True)  # ends the worker, and with it the stage
            raise InfrastructureError(f"{job.stage} was stopped: the run is being stopped")
        else:
            _check_head(head, job)


def _on_worker(job: Job) -> Iterator[Any]:
    """Yield the lines of the stage, then its result or error."""
    import ray

    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    devices = [str(gpu) for gpu in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
    # The stage's parent is this thread, not the main one, as it keeps running while the generator is paused.
    thread = threading.Thread(target=lambda: items.put(work(job, devices, items.put)), daemon=True)
    thread.start()
    while isinstance(item := items.get(), str):
        yield item
    yield item


@contextlib.contextmanager
def opened(config: RunnerConfig, gpus: int) -> Iterator[Runner]:
    """See `flows.places.runners.open_runner`."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if config.address is None:
        # Anybody who can connect to a cluster can run code as this user, so require a token.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    with contextlib.ExitStack() as life:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        try:
            with _own_signals():
                if config.address is None:
                    _init_local(config, gpus, quiet, life)
                elif config.address.startswith("ray://"):
                    raise UsageError(
                        f"runner ray: expected HOST:PORT of a cluster's head (often port 6379), run on one of its"
                        f" nodes; found {config.address!r}, the address of Ray Client, which cannot pass on the output"
                        " of stages"
                    )
                else:
                    ray.init(address=config.address, **quiet)
        except FadedError:
            raise
        except Exception as error:  # of any type if a busy machine takes over 30 seconds to start its node
            raise InfrastructureError(f"Ray did not start: {error}") from error
        life.callback(ray.shutdown)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        found = {node["NodeManagerAddress"]: int(node["Resources"].get("GPU", 0)) for node in nodes}
        if gpus > max(found.values()):
            raise too_few_gpus(gpus, "Ray's nodes have " + ", ".join(f"{node}: {n}" for node, n in found.items()))
        yield partial(_run, ray.get_runtime_context().gcs_address)


def _init_local(config: RunnerConfig, most: int, quiet: dict[str, Any], life: contextlib.ExitStack) -> None:
    ids = gpus_here(config, most)
    scratch = life.enter_context(reaped_folder("faded-ray-"))
    import ray

    ray.init(
        address="local",
        num_cpus=config.workers or stages_at_once(),
        num_gpus=len(ids),
        object_store_memory=_STORE,
        include_dashboard=False,
        _temp_dir=scratch,
        **quiet,
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep Ray from replacing the handler of SIGTERM: its own would end the process before its stages."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
