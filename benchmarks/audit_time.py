"""Wall and CPU time of the default audits mnist and imagenet, from nothing: `python -m benchmarks.audit_time`.

Works in a fresh clone of the committed state, in a temporary folder, with this interpreter. Prints JSON, and writes
benchmarks/timings.json, from which `faded plan` estimates the first run of the default audits.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from flows.results import REFERENCE, TIMINGS, Took
from stages.core.files import read_state

ROOT = Path(__file__).parents[1]


class Cost(NamedTuple):
    """Seconds a command took; CPU time includes all child processes."""

    wall: float
    cpu: float


def cost(command: list[str], folder: Path) -> Cost:
    """Run a command to its end; exit code 1 of an audit (gate failed) counts as success."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1):
        raise SystemExit(
            f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        audits = ("mnist", "imagenet")
        took = {name: cost([sys.executable, "-m", "flows.cli", "audit", name], clone)._asdict() for name in audits}
        with contextlib.chdir(clone):
            taken = read_state(TIMINGS, dict[str, Took]) or {}
    (ROOT / REFERENCE).write_text(json.dumps({stage: one.model_dump() for stage, one in taken.items()}, indent=1))
    print(json.dumps(took, indent=1, default=lambda x: round(x, 2)))


if __name__ == "__main__":
    main()
