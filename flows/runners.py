"""Where stages run: Prefect's task runners by name, and what a stage may use at the same time as others.

A stage says what it needs (`meta: {gpus: 1}` in dvc.yaml); each runner has its own way to ask for it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prefect import Task
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from stages.errors import UsageError


class Slots:
    """What this machine has for stages that run in threads of one flow.

    Args:
        stages: how many may run at once.
        gpus: ids of the GPUs, each given to one stage at a time.
    """

    def __init__(self, stages: int, gpus: Sequence[str] = ()) -> None:
        self.gpus = tuple(gpus)
        self._free_stages, self._free_gpus = stages, list(gpus)
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, gpus: int) -> Iterator[list[str]]:
        """Wait for a place and so many GPUs; yields the ids of those."""
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


# Of the process whose threads run stages. Dask's and Ray's workers have none: there the scheduler gives out resources.
_slots: Slots | None = None


@contextlib.contextmanager
def local_resources(gpus: int) -> Iterator[dict[str, str]]:
    """Hold what a stage needs while it runs; yields what to add to its environment."""
    if _slots is None:
        yield {}
        return
    with _slots.hold(gpus) as taken:
        yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)} if taken else {}


def _threads(gpus: int) -> TaskRunner[Any]:
    global _slots  # noqa: PLW0603
    # Stages use two threads each by default, and at least two audits should go on side by side.
    _slots = Slots(max(2, (os.cpu_count() or 2) // 2), _local_gpus() if gpus else ())
    if gpus > len(_slots.gpus):
        raise UsageError(
            f"a stage asks for {gpus} GPU(s) (compute.gpus or repairs.*.gpus), this machine has {len(_slots.gpus)}"
        )
    # No limit on threads: a task that waits for its upstream holds one, and `Slots` limits what really runs.
    return ThreadPoolTaskRunner()


def _local_gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


RUNNERS: dict[str, Callable[[int], TaskRunner[Any]]] = {"threads": _threads}


def check_runner(name: str) -> None:
    """Refuse an unknown runner.

    Raises:
        UsageError: naming the known ones.
    """
    if name not in RUNNERS:
        raise UsageError(f"no runner {name!r}, found: {', '.join(RUNNERS)}")


def make_runner(name: str, gpus: int = 0) -> TaskRunner[Any]:
    """Build a task runner.

    Args:
        name: a key of `RUNNERS`.
        gpus: the most GPUs a single stage of this run asks for.

    Raises:
        UsageError: for an unknown name, or more GPUs than there are.
    """
    check_runner(name)
    return RUNNERS[name](gpus)


def submit_with_resources(
    runner: TaskRunner[Any],
    task: Task[..., Any],
    *,
    gpus: int,
    parameters: dict[str, Any],
    wait_for: Iterable[PrefectFuture[Any]],
) -> PrefectFuture[Any]:
    """Submit a task and ask the runner for its GPUs in the runner's own way.

    Threads: the task itself holds `local_resources(gpus)` while it runs. A runner with a scheduler of its own
    (Dask: `annotate(resources=...)`, Ray: `remote_options(num_gpus=...)`) is asked here.
    """
    future: PrefectFuture[Any] = runner.submit(task, {**parameters, "gpus": gpus}, list(wait_for))
    return future
