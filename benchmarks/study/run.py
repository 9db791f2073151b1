"""Run one explorer of the study on all landscapes and seeds: `python -m benchmarks.study.run EXPLORER`."""

import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from benchmarks.study.landscapes import Enumerated, KnownLandscape, Planted
from benchmarks.study.measure import Clock, Truth, landscape_quality, search_quality, unseen_quality
from stages.command import stage_main
from stages.core.environment import die_with_parent, set_defaults, torch_threads
from stages.core.errors import UsageError
from stages.core.files import content_hash, scratch
from stages.core.progress import progress
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.provenance import versions

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def dependencies() -> list[Path]:
    """Return what the results depend on: the existing files and folders that dvc.yaml names for the stage."""
    stage = yaml.safe_load((HERE / "dvc.yaml").read_text())["stages"]["explorer"]["do"]
    return [(ROOT / path).resolve() for path in stage["deps"] if (ROOT / path).exists()]


def truth_path(name: str) -> Path:
    """Return the path of the truth of a real model."""
    return HERE / "truths" / f"{name}.safetensors"


def make_landscape(name: str, seed: int) -> KnownLandscape:
    """Make a landscape by its name in params.yaml. A planted one is redrawn for every seed, a real one is fixed."""
    if name.startswith("planted"):
        return Planted(int(name.removeprefix("planted")), seed)
    path = truth_path(name)
    if not path.exists():
        raise UsageError(f"{path} is missing: `python -m benchmarks.study.truth {name}` enumerates it")
    return Enumerated(path)


def study_one(
    explorer: str, settings: Mapping[str, Any], landscape: str, plan: Mapping[str, Any], seed: int
) -> list[dict[str, Any]]:
    """Run one explorer on one landscape with one seed; return one row (dict) for every budget."""
    rows = []
    budgets = [b for b in plan["budgets"] if b <= settings.get("up_to", np.inf)]
    short, long = [b for b in budgets if b <= plan["short"]], [b for b in budgets if b > plan["short"]]
    runs = [[budget] for budget in budgets] if settings.get("each_budget") else [short, long]
    for read_off in runs:
        if not read_off:
            continue
        truth = Truth(make_landscape(landscape, seed))
        task = truth.task
        clock = Clock(task)
        prober = Prober(task, task.items.ids("discover"), read_off[-1])
        built = make_explorer(settings.get("explorer", explorer), settings.get("settings", {}))
        with torch_threads(1), clock.running():
            found = built.explore(prober, seed)
        for budget in read_off:
            part = prober.table(budget).assign(role="agent", explorer=explorer)
            row = {"landscape": landscape, "explorer": explorer, "seed": seed, "budget": budget}
            row |= search_quality(truth, part)
            if budget in plan["estimate_at"]:
                row |= landscape_quality(truth, part, seed)
            if budget == read_off[-1]:  # the policy is that at the end of the run
                row |= unseen_quality(task, found.policy, seed)
                row["cpu_ms"] = 1000 * clock.seconds / budget
            rows.append(row)
    return rows


def jobs(study: Mapping[str, Any], explorer: str) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    """Yield all (landscape, its plan, seed), longest first, so that no worker has a long one left at the end."""
    there = (study["explorers"][explorer] or {}).get("landscapes", list(study["landscapes"]))
    for name, plan in sorted(study["landscapes"].items(), key=lambda pair: -max(pair[1]["budgets"])):
        for seed in study["seeds"] if name in there else ():
            yield name, plan, seed


def study_and_keep(path: Path, *job: Any) -> list[dict[str, Any]]:
    """Do one job, or read its result from a killed run."""
    if not path.exists():
        path.with_suffix(".partial").write_text(json.dumps(study_one(*job)))
        path.with_suffix(".partial").replace(path)
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    return rows


def run(explorer: str, study: Mapping[str, Any], workers: int) -> pd.DataFrame:
    """Run all of an explorer's jobs in parallel, skipping those that a killed run has finished."""
    settings = study["explorers"][explorer] or {}
    todo = list(jobs(study, explorer))
    key = content_hash(dependencies(), settings, study["landscapes"], study["seeds"], versions())
    rows: list[dict[str, Any]] = []
    spawn = multiprocessing.get_context("spawn")  # torch does not survive a fork
    with (
        scratch("study", explorer, key) as folder,
        progress(f"study of {explorer}", len(todo)) as tell,
        ProcessPoolExecutor(workers, spawn, die_with_parent, (os.getpid(),)) as pool,
    ):
        futures = [
            pool.submit(study_and_keep, folder / f"{name}-{seed}.json", explorer, settings, name, plan, seed)
            for name, plan, seed in todo
        ]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                rows += future.result()
                tell(done, "")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return pd.DataFrame(rows).sort_values(["landscape", "seed", "budget"], ignore_index=True)


def main(explorer: str) -> None:
    """Run the stage; writes results/EXPLORER.parquet."""
    set_defaults(OMP_NUM_THREADS="1")  # for the workers: one per core, with one thread each
    study = yaml.safe_load((HERE / "params.yaml").read_text())["study"]
    if explorer not in study["explorers"]:
        raise UsageError(f"no explorer {explorer!r} in {HERE / 'params.yaml'}, found: {', '.join(study['explorers'])}")
    table = run(explorer, study, workers=os.cpu_count() or 1)
    path = HERE / "results" / f"{explorer}.parquet"
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path.with_suffix(".partial"), index=False)
    path.with_suffix(".partial").replace(path)


if __name__ == "__main__":
    stage_main(main)
