"""Memory, time and file sizes by items, cells and budget, up to a million probes and a hundred thousand items.

`python -m benchmarks.growth` runs the real stages prepare, discover, summarize and report on a synthetic model of
negligible cost (benchmarks/_growth_task.py), increasing one of the three at a time and then all at once. Prints a
Markdown table: CPU-seconds and peak memory of discover and summarize, sizes of files, and the quality of the landscape:
the mean error of the rates of some cells, compared with all answers of the model there for some items, and the share of
their intervals that contain the truth. `--quick` skips the largest case. Takes half an hour.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import yaml

from benchmarks._growth_task import Synthetic, space_of
from benchmarks.audit_time import ROOT, Cost, cost

NAME = "grown"
MIB = 2**20
CELLS, ITEMS = 600, 2000  # numbers of cells and items whose truth is computed


class Case(NamedTuple):
    """One audit: items, concepts of seven levels, probes of agent and control together, and the agent."""

    items: int
    concepts: int
    probes: int
    explorer: str = "random"


CASES = (
    Case(1_000, 4, 10_000),
    Case(10_000, 4, 10_000),
    Case(100_000, 4, 10_000),
    Case(1_000, 8, 10_000),
    Case(1_000, 20, 10_000),
    Case(1_000, 4, 100_000),
    Case(1_000, 4, 1_000_000),
    Case(1_000, 4, 10_000, "auto"),
    Case(100_000, 4, 10_000, "auto"),
    Case(1_000, 8, 10_000, "auto"),
    Case(1_000, 8, 100_000, "auto"),
    Case(100_000, 8, 1_000_000),
)
QUICK = 200_000  # maximum number of probes of a case with --quick


def main() -> None:
    """Print the table."""
    print("| items | cells | probes | explorer | discover: CPU-s, GiB | summarize: CPU-s, GiB |"
          " ledger | probes.parquet | report | rates off by, held |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if "--quick" in sys.argv and case.probes > QUICK:
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(row(case, Path(folder)), flush=True)


def row(case: Case, folder: Path) -> str:
    """Run one audit and return its costs as a row."""
    write_workspace(case, folder)
    for stage in ("code", "prepare"):
        run(stage, folder)
    costs = [run(stage, folder) for stage in ("discover", "summarize")]
    run("report", folder)
    ledger = sum(path.stat().st_size for path in (folder / ".faded").rglob("ledger.jsonl"))
    sizes = [folder / "data" / NAME / path for path in ("discover/probes.parquet", "report/report.html")]
    cells = f"7^{case.concepts}"
    told = [f"{case.items:,}", cells, f"{case.probes:,}", f"`{case.explorer}`"]
    told += [f"{one.cpu:,.0f}, {one.memory / 2**30:.2f}" for one in costs]
    told += [f"{size / MIB:.1f} MiB" for size in (ledger, *(path.stat().st_size for path in sizes))]
    off, held = quality(case, folder)
    return f"| {' | '.join([*told, f'{off:.3f}, {held:.1%}'])} |"


def quality(case: Case, folder: Path) -> tuple[float, float]:
    """Return the mean error of the rates of some cells, and the share of their intervals that contain the truth."""
    home = folder / "data" / NAME
    space = space_of(concepts(case))
    task = Synthetic(pd.read_parquet(home / "prepare" / "items.parquet"), space, seed=1)
    rng, ids = np.random.default_rng(0), task.items.ids("discover")
    some = [ids[i] for i in rng.choice(len(ids), min(ITEMS, len(ids)), replace=False)]
    table = pd.read_parquet(home / "summarize" / "landscape.parquet")
    table = table.iloc[rng.choice(len(table), min(CELLS, len(table)), replace=False)]
    cells = table[space.names].to_numpy(dtype=np.int64)
    truth = np.array([task.probe(some, np.tile(cell, (len(some), 1))).failed.mean() for cell in cells])
    held = (table["low"] <= truth) & (truth <= table["high"])
    return float((table["rate"] - truth).abs().mean()), float(held.mean())


def concepts(case: Case) -> dict[str, list[int]]:
    """Return the concepts as in params.yaml."""
    return {f"concept_{j}": list(range(7)) for j in range(case.concepts)}


def write_workspace(case: Case, folder: Path) -> None:
    """Write params.yaml and the folders that stages expect."""
    audit: dict[str, Any] = {
        "seed": 1,
        "task": "benchmarks._growth_task:Synthetic",
        "compute": {"device": "cpu", "threads": 1, "batch_size": 1024, "gpus": 0},
        "prepare": {"items": case.items},
        "concepts": concepts(case),
        "discrepancy": {},
        "discover": {"explorer": case.explorer, "budget": case.probes // 2, "microscopic": {"method": "none"}},
        "summarize": {},
    }
    (folder / "data" / NAME / "inputs").mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump({"audits": {NAME: audit}, "repairs": {}}))


def run(stage: str, folder: Path) -> Cost:
    """Run a stage as DVC would, and measure its cost."""
    command = [sys.executable, "-m", f"stages.{stage}", NAME]
    return cost(command, folder, success=(0,), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")


if __name__ == "__main__":
    main()
