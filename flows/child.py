"""Start of a child of the flow: `python -m flows.child PARENT MODULE ARGS...` runs a module that dies with its parent.

Kept free of imports: it is paid for at every stage. (A `preexec_fn` would do the same, but is unsafe with threads.)
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys


def end_with(parent: int) -> None:
    """Ask the kernel (Linux) to end this process when its parent ends, even by kill -9.

    Elsewhere the next run ends leftovers, see flows/heal.py.
    """
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it ended before the request was made
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the module named on the command line as `python -m` would."""
    parent, module, *arguments = sys.argv[1:]
    end_with(int(parent))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
