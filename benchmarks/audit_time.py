"""Wall and CPU time of the default audit by stage, and what the flow adds to a run in which nothing is stale.

    .venv/bin/python benchmarks/audit_time.py [--rounds 5]

Works in a fresh clone of the committed state, in a temporary folder, with this interpreter. Prints JSON, and writes
benchmarks/timings.json, from which `faded plan` estimates the first run of the default audits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from flows.results import REFERENCE, TIMINGS, Took
from stages.core.files import read_state

ROOT = Path(__file__).parents[1]
STAGES = (
    *("prepare", "discover", "summarize", "report"),
    *("collect_feedback", "restructure", "re_evaluate", "compare", "conclude"),
)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="cached runs of each kind, in turns")
    rounds = parser.parse_args().rounds
    dvc, faded = [sys.executable, "-m", "dvc"], [sys.executable, "-m", "flows.cli"]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        whole = cost([*faded, "audit", "mnist"], clone)
        imagenet = cost([*faded, "audit", "imagenet"], clone)
        with contextlib.chdir(clone):
            taken = read_state(TIMINGS, dict[str, Took]) or {}
        (ROOT / REFERENCE).write_text(json.dumps({s: took.model_dump() for s, took in taken.items()}, indent=1))

        cached: dict[str, list[Cost]] = {"faded audit": [], "dvc repro": []}
        targets = [f"{stage}@mnist" for stage in STAGES]
        for _ in range(rounds):
            cached["dvc repro"].append(cost([*dvc, "repro", "-q", *targets], clone))
            cached["faded audit"].append(cost([*faded, "audit", "mnist"], clone))

        stages = {}
        for stage in STAGES:  # one after the other, without run-cache and scratch, so that each really computes
            shutil.rmtree(clone / ".faded" / "scratch", ignore_errors=True)
            stages[stage] = cost([*dvc, "repro", "-q", "-f", "--no-run-cache", "-s", f"{stage}@mnist"], clone)

    medians = {name: statistics.median(c.wall for c in costs) for name, costs in cached.items()}
    result = {
        "make audit, after set-up": whole._asdict(),
        "audit of imagenet": imagenet._asdict(),
        "by stage, with DVC's own time": {name: c._asdict() for name, c in stages.items()},
        "nothing stale, median wall": medians,
        "flow adds": medians["faded audit"] - medians["dvc repro"],
    }
    print(json.dumps(result, indent=1, default=lambda x: round(x, 2)))


if __name__ == "__main__":
    main()
