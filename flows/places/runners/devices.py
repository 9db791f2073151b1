"""The GPUs for stages of one process: which there are, and that each is given to one stage at a time."""

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence

MASK = "CUDA_VISIBLE_DEVICES"


class Slots:
    """Resources shared by stages that run in threads of one process.

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
    """Ids of the GPUs that stages of this process may use, in the format of CUDA_VISIBLE_DEVICES.

    If this process was started with a mask, its stages get ids from that mask (numbers or UUIDs).

    Args:
        declared: the number of GPUs as configured; by default as many as are found.
    """
    mask = os.environ.get(MASK)
    if mask is not None:
        ids = [gpu for part in mask.split(",") if (gpu := part.strip()) not in ("", "-1")]
        return ids if declared is None else ids[:declared]
    if declared is None:
        import torch

        declared = torch.cuda.device_count()
    return [str(i) for i in range(declared)]
