"""What every process of an audit has in common: its environment, its scratch folder, and that it leaves no orphan.

Kept free of imports beyond the standard library: it is paid for at every command and every stage.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

DATA = Path("data")  # a folder for each audit
WORK = Path(".faded")  # scratch, logs and records of a workspace

# An audit tells nobody that it runs, fetches nothing unless HF_HUB_OFFLINE=0 allows a hub, and CUDA sums in a fixed
# order, which it does only if told before it starts.
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "POT_BACKEND_DISABLE_PYTORCH": "1",  # it would be loaded with every transport, for nothing
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def set_defaults(**more: str) -> None:
    """Put `DEFAULTS` and more into this process's environment, wherever the user has not set something else."""
    for name, value in {**DEFAULTS, **more}.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Give torch so many threads inside the block.

    Agents are so small that a second thread only waits for the first (10 CPU-seconds instead of 3, measured),
    while the model under test wants all it was given.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to end this process when the one that started it ends, even by kill -9.

    Linux only; elsewhere the next run ends leftovers, see flows/heal.py.

    Args:
        parent: process id of the parent, where the caller was told it; by default whoever is the parent now.
    """
    parent = os.getppid() if parent is None else parent
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGKILL)
