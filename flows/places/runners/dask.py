"""Stages on a Dask cluster: workers declare GPUs as a resource `GPU`, and assign their own devices."""

import contextlib
import logging
import queue
import signal
import threading
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import dask
import distributed
from distributed import Client, Nanny, Scheduler, SpecCluster, get_worker
from distributed.security import Security

from flows.places.runners import MASK, POLL, Job, Runner, Say, Slots, gpus_here, too_few_gpus, visible_gpus
from flows.places.runners.reaper import reaped_folder
from flows.places.runners.threads import stages_at_once, work
from flows.processes import end_children, stopping
from flows.run_stage import StageResult, child_name
from stages.core.errors import FadedError, InfrastructureError
from stages.params.file import RunnerConfig

GPU = "GPU"  # the resource, as in Dask's own documents
# No dashboard; the server that replaces it (health, metrics) would listen on all interfaces.
_LOOPBACK = {"host": "127.0.0.1", "dashboard": False, "dashboard_address": "127.0.0.1:0"}
_SETTINGS = {
    # One attempt per submission: Prefect decides what is retried, how often and when, and reports it.
    "distributed.scheduler.allowed-failures": 0,
    # A nanny's default is one thread for OpenMP and BLAS, which the stages would inherit.
    "distributed.nanny.pre-spawn-environ": {},
    "distributed.logging": {"distributed": "critical"},
    "distributed.comm.timeouts.connect": "10s",
}


def _run(client: Client, job: Job, say: Say) -> StageResult:
    """Submit the stage, pass on its lines, and wait for its end."""
    name = f"{job.stage}-{uuid.uuid4().hex}"
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    try:
        _check(client, job)
        client.subscribe_topic(name, lambda event: lines.put(event[1]))
        future = _submit(client, job, name)
        future.add_done_callback(lambda _: lines.put(None))
        try:
            for line in _until_done(client, lines, job):
                say(line)
            ended = future.result()
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                future.cancel()
                client.unsubscribe_topic(name)
    except FadedError:
        raise
    except distributed.KilledWorker:
        raise InfrastructureError(f"{job.stage}: the worker that ran it died") from None
    except Exception as error:  # the scheduler died, or the worker has another version of Faded
        raise InfrastructureError(f"{job.stage}: Dask: {type(error).__name__}: {error}") from error
    if isinstance(ended, FadedError):
        raise ended
    return ended


def _submit(client: Client, job: Job, name: str) -> distributed.Future:
    # A stage without GPUs leaves workers with GPUs to other stages if there are workers without.
    workers = {} if job.gpus else _workers(client)
    without = [address for address, worker in workers.items() if not worker["resources"].get(GPU)]
    return client.submit(
        _on_worker,
        job,
        name,
        key=name,
        resources={GPU: job.gpus} if job.gpus else None,
        workers=without or None,
        allow_other_workers=bool(without),
    )


def _until_done(client: Client, lines: queue.SimpleQueue[str | None], job: Job) -> Iterator[str]:
    while True:
        try:
            line = lines.get(timeout=POLL)
        except queue.Empty:
            if stopping():
                raise InfrastructureError(f"{job.stage} was stopped: the run is being stopped") from None
            _check(client, job)
            continue
        if line is None:
            return
        yield line


def _check(client: Client, job: Job) -> None:
    if client.status in ("closed", "closing"):
        raise InfrastructureError(f"{job.stage}: the Dask scheduler is gone")


def _workers(client: Client) -> dict[str, Any]:
    return client.scheduler_info(n_workers=-1)["workers"]


@contextlib.contextmanager
def opened(config: RunnerConfig, gpus: int) -> Iterator[Runner]:
    """See `flows.places.runners.open_runner`."""
    with contextlib.ExitStack() as life:
        life.enter_context(dask.config.set(_SETTINGS))
        where = config.address or life.enter_context(_local(config, gpus))
        try:
            client = life.enter_context(Client(where, set_as_default=False, timeout=10))
        except (OSError, TimeoutError, ValueError) as error:
            raise InfrastructureError(f"no Dask scheduler answers at {where}: {error}") from None
        if config.address is None:
            client.register_plugin(_LeavesSignalsToTheRun())
        found = {address: int(worker["resources"].get(GPU, 0)) for address, worker in _workers(client).items()}
        if not found:
            raise InfrastructureError(f"the Dask scheduler at {where} has no workers")
        if gpus > max(found.values()):
            declared = ", ".join(f"{address}: {n}" for address, n in found.items())
            raise too_few_gpus(
                gpus, f"Dask's workers declare ({declared}); `dask worker --resources GPU=1` declares one"
            )
        yield partial(_run, client)


class _LeavesSignalsToTheRun(distributed.WorkerPlugin):
    """Makes workers ignore Ctrl-C, which also reaches workers on this machine; the run stops them."""

    def setup(self, worker: distributed.Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _local(config: RunnerConfig, most: int) -> Iterator[SpecCluster]:
    """A cluster on this machine: a process for each stage that may run at once, on loopback, with its own keys.

    GPUs are assigned to separate workers, each with as many as the largest stage requests.
    """
    ids = gpus_here(config, most)
    security = Security.temporary()
    common = {"nthreads": 1, "memory_limit": 0, "security": security, **_LOOPBACK}
    common["silence_logs"] = logging.CRITICAL
    shares = [ids[i : i + max(1, most)] for i in range(0, len(ids), max(1, most))]
    with reaped_folder("faded-dask-") as scratch:
        common["local_directory"] = scratch
        workers: dict[str, Any] = {f"cpu-{i}": common for i in range(config.workers or stages_at_once())}
        for i, share in enumerate(shares):
            own = {"nthreads": len(share), "resources": {GPU: len(share)}, "env": {MASK: ",".join(share)}}
            workers[f"gpu-{i}"] = {**common, **own}
        cluster = SpecCluster(
            workers={name: {"cls": Nanny, "options": options} for name, options in workers.items()},
            scheduler={
                "cls": Scheduler,
                "options": {"port": 0, "security": security, **_LOOPBACK},
            },
            security=security,
            silence_logs=False,
        )
        with cluster:
            yield cluster


_slots: Slots | None = None
_making = threading.Lock()


def _own_slots(worker: distributed.Worker) -> Slots:
    """The devices of this worker process, shared by its threads."""
    global _slots  # noqa: PLW0603
    with _making:
        if _slots is None:
            _slots = Slots(worker.state.nthreads, visible_gpus(int(worker.state.total_resources.get(GPU, 0))))
        return _slots


def _on_worker(job: Job, topic: str) -> StageResult | FadedError:
    worker = get_worker()
    slots = _own_slots(worker)
    if job.gpus > len(slots.gpus):
        return InfrastructureError(
            f"{job.stage}: worker {worker.address} declares more GPUs than its {MASK} names ({', '.join(slots.gpus)})"
        )
    with slots.hold(job.gpus) as devices, _ended_when_unwanted(worker, topic, job):
        return work(job, devices, lambda line: worker.log_event(topic, line))


@contextlib.contextmanager
def _ended_when_unwanted(worker: distributed.Worker, key: str, job: Job) -> Iterator[None]:
    """End the stage once nobody waits for it, as the run was stopped or killed: Dask lets its thread continue."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(POLL):
            task = worker.state.tasks.get(key)
            if task is None or task.state in ("cancelled", "released", "forgotten"):
                end_children(child_name(job.stage))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
