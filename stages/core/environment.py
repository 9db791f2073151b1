"""Set up every process of an audit: its environment, its scratch folder, and its end when its parent ends.

Keep this module to the standard library: every command and every stage pays for its imports at start-up.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

DATA = Path("data")  # one folder per audit
WORK = Path(".faded")  # scratch, logs and records of a workspace

# Libraries choose their code by the CPU, and round differently in each choice. These make them choose what every x86-64
# CPU with AVX2 has, so that results are equal to the byte there; `stages.core.arithmetic` does the rest. Optimisers are
# fused, as MKL takes torch's square roots by the CPU.
_OF_TORCH = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",  # AVX2 would be faster, and is equal on Intel's own CPUs only; large products avoid it
}
_ALIKE = {
    **_OF_TORCH,
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",  # with two, sums of a product of 900 x 900 matrices differ
    # By the names of numpy 2.4 and of those before it. It passes over names it does not know.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
}


def _has_avx2() -> bool:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="ascii", errors="ignore") as told:
        return " avx2 " in told.read(8192)  # of the first core
    return False


ALIKE = _ALIKE if _has_avx2() else {}

# An audit sends no telemetry and downloads nothing unless HF_HUB_OFFLINE=0 allows a hub. CUDA sums in a fixed order
# only if this is set before it starts.
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "POT_BACKEND_DISABLE_PYTORCH": "1",  # otherwise every import of POT loads torch for nothing
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "SB3_LOGDIR": ".",  # otherwise each agent leaves an empty folder in /tmp, though nothing is logged
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NUMPY_MADVISE_HUGEPAGE": "0",  # clearing huge pages took a fifth of compare: most large arrays are short-lived
    **ALIKE,
}


def set_defaults(**more: str) -> None:
    """Set `DEFAULTS` and more in this process's environment, except for variables the user has set."""
    for name, value in {**DEFAULTS, **more}.items():
        os.environ.setdefault(name, value)


def start_alike() -> None:
    """Start this process again if numpy, which reads `ALIKE` when it is imported, came before them (`dvc repro`)."""
    late = "numpy" in sys.modules and not ALIKE.keys() <= os.environ.keys()
    set_defaults()
    if late:
        os.execv(sys.executable, sys.orig_argv)


def let_torch_choose() -> None:
    """Let torch take the code that is fastest on this CPU; it has to be told before it first computes something."""
    for name in _OF_TORCH:
        os.environ.pop(name, None)


def is_alike() -> bool:
    """Whether what this process computes on its CPU is what any x86-64 CPU with AVX2 computes."""
    return bool(ALIKE) and all(os.environ.get(name) == value for name, value in ALIKE.items())


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

    Linux only; elsewhere the next run ends leftovers, see flows/graph/intact.py.

    Args:
        parent: the parent's process id, if the caller received it; by default the current parent.
    """
    parent = os.getppid() if parent is None else parent
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGKILL)
