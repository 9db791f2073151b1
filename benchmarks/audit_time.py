"""Wall and CPU time of the default audits mnist and imagenet, from nothing: `python -m benchmarks.audit_time`.

Works in a fresh clone of the committed state, in a temporary folder, with this interpreter. Prints JSON, and writes
flows/results/data/timings.json, from which `faded plan` estimates first runs.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from flows.results import REFERENCE, TIMINGS, Took
from stages.core.errors import Exit
from stages.core.files import read_state

ROOT = Path(__file__).parents[1]


class Cost(NamedTuple):
    """Seconds a command took, with all child processes, and the peak resident memory of the largest, in bytes."""

    wall: float
    cpu: float
    memory: int


def cost(command: list[str], folder: Path, success: tuple[int, ...] = (0, Exit.GATE_FAILED), **env: str) -> Cost:
    """Run a command to its end, with a changed environment. Its output is shown if it ends with another exit code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, "PATH": path, **env}, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall, process.returncode = time.perf_counter() - start, os.waitstatus_to_exitcode(status)
        if process.returncode not in success:
            out.seek(0)
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{out.read()[-6000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        audits = ("mnist", "imagenet")
        took = {name: cost([sys.executable, "-m", "flows.cli", "audit", name], clone)._asdict() for name in audits}
        with contextlib.chdir(clone):
            taken = read_state(TIMINGS, dict[str, Took]) or {}
    REFERENCE.write_text(json.dumps({stage: one.model_dump() for stage, one in taken.items()}, indent=1))
    print(json.dumps(took, indent=1, default=lambda x: round(x, 2)))


if __name__ == "__main__":
    main()
