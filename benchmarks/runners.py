"""The overhead of each task runner: audits of trivial stages on threads, Dask and Ray on this machine.

    .venv/bin/python -m benchmarks.runners [--rounds 5]

Runs `faded audit --all --runner KIND` on one audit and on eight, with four toy stages each (those of the tests), always
in a fresh copy of the workspace and all kinds in turn. Prints medians of wall time: of a run, and of what each further
stage adds. The results are in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.workspace import Workspace, audit_params, make_workspace

KINDS = ("threads", "dask", "ray")
FEW, MANY = 1, 8  # audits
STAGES = 4  # per audit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    seconds: dict[tuple[str, int], list[float]] = {(kind, n): [] for kind in KINDS for n in (FEW, MANY)}
    with tempfile.TemporaryDirectory() as folder:
        fresh = {
            n: make_workspace(Path(folder) / f"{n}", {f"audit{i}": audit_params() for i in range(n)}, {}, toys=True)
            for n in (FEW, MANY)
        }
        for turn in range(rounds):
            order = list(seconds)
            random.Random(turn).shuffle(order)
            for kind, n in order:
                seconds[kind, n].append(timed(fresh[n].copy(Path(folder) / f"{kind}-{n}-{turn}"), kind, n))
    print(f"| runner | {STAGES * FEW} stages | {STAGES * MANY} stages | ratio to threads | each stage more |")
    print("|---|---|---|---|---|")
    for kind in KINDS:
        few, many = (median(seconds[kind, n]) for n in (FEW, MANY))
        each = (many - few) / (STAGES * (MANY - FEW))
        ratio = median(a / b for a, b in zip(seconds[kind, MANY], seconds["threads", MANY], strict=True))
        print(f"| {kind} | {few:.1f} s | {many:.1f} s | {ratio:.2f} | {each:.2f} s |")


def timed(workspace: Workspace, kind: str, audits: int) -> float:
    """Measure the seconds that all audits of a workspace take.

    Raises:
        RuntimeError: with the output, if they fail or not all stages ran.
    """
    start = time.perf_counter()
    done = workspace.faded("audit", "--all", "--runner", kind)
    seconds = time.perf_counter() - start
    if done.returncode or len(workspace.executed()) != STAGES * audits:
        raise RuntimeError(f"{kind}: exit code {done.returncode}\n{done.stdout}")
    return seconds


if __name__ == "__main__":
    main()
