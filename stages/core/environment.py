"""Set up every process of an audit: its environment, its scratch folder, and its end when its parent ends.

Keep this module to the standard library: every command and every stage pays for its imports at start-up.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

DATA = Path("data")  # one folder per audit
WORK = Path(".faded")  # scratch, logs and records of a workspace

# An audit sends no telemetry and downloads nothing unless HF_HUB_OFFLINE=0 allows a hub. CUDA sums in a fixed order
# only if this is set before it starts.
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "POT_BACKEND_DISABLE_PYTORCH": "1",  # otherwise every import of POT loads torch for nothing
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def set_defaults(**more: str) -> None:
    """Set `DEFAULTS` and more in this process's environment, except for variables the user has set."""
    for name, value in {**DEFAULTS, **more}.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Limit torch to this many threads inside the block.

    Agents are so small that a second thread only waits for the first (10 CPU-seconds instead of 3, measured),
    while the model under test needs all its threads.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to end this process when its parent ends, even by kill -9.

    Linux only; elsewhere the next run ends leftovers, see flows/graph/heal.py.

    Args:
        parent: the parent's process id, if the caller received it; by default the current parent.
    """
    parent = os.getppid() if parent is None else parent
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGKILL)
