"""Memory of an idle `faded serve`, by process: `python -m benchmarks.serve_memory [--seconds 90]`.

Measures PSS, which divides shared memory equally among the processes that share it, so the sum is what all of them
use. Linux only. Run it where no other `faded serve` runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import psutil

_NAMES = ("flows.worker", "flows.server", "serve")  # parts of a command line that identify a process


def memory(pid: int) -> dict[str, float]:
    """Return the PSS of a process and all its descendants, in MB by name."""
    found: dict[str, float] = {}
    process = psutil.Process(pid)
    for one in [process, *process.children(recursive=True)]:
        command = " ".join(one.cmdline())
        name = next((name for name in _NAMES if name in command), command)
        found[name] = found.get(name, 0) + one.memory_full_info().pss / 1e6
    return found


def main() -> None:
    """Serve this workspace, wait, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90, help="after it said that it runs")
    seconds = parser.parse_args().seconds
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        if not any("Ctrl-C stops everything" in line for line in process.stdout):
            raise SystemExit(f"faded serve ended with {process.wait()}")
        time.sleep(seconds)
        found = memory(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
    print("| process | MB |\n|---|---|")
    for name, size in found.items():
        print(f"| {name} | {size:.0f} |")
    print(f"| together | {sum(found.values()):.0f} |")


if __name__ == "__main__":
    main()
