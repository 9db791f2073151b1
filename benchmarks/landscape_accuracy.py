"""Accuracy of the estimated landscape against exact ground truth: error, rank correlation, coverage, and run time.

`python -m benchmarks.landscape_accuracy` estimates landscapes from uniform probes and from those of a search for
failures, and compares them with the truth: MNIST enumerated (2,401 cells x 80 items) and planted landscapes of 7^5 and
7^8 cells. Prints a Markdown table of means over three seeds. Takes about ten minutes on one core.
"""

import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats

from benchmarks.study.landscapes import KnownLandscape
from benchmarks.study.run import make_landscape
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.landscape.estimate import estimate_landscape

SEEDS = (0, 1, 2)
PLANTED = 100  # first seed of planted landscapes; the study uses lower ones
JUDGED = 2401  # number of cells compared; a sample if there are more
EXPLORERS = {"uniform": "random", "adaptive": "local_search"}
TRUTHS = {"MNIST": "mnist_tuning", "7^5": "planted5", "7^8": "planted8"}
BUDGETS = {"MNIST": (500, 1000, 2000, 4000, 8000), "7^5": (2000,), "7^8": (500, 2000)}


class Score(NamedTuple):
    """Quality of one estimate: means over cells, except for the last two."""

    mae: float
    constant: float  # error of always predicting the true mean
    rank: float
    bias: float
    coverage: float
    width: float
    seconds: float
    name: str


def searched(task: KnownLandscape, explorer: str, budget: int, seed: int) -> pd.DataFrame:
    """Return the probes of one search, in the order of queries."""
    prober = Prober(task, task.items.ids("discover"), budget)
    make_explorer(explorer, {}).explore(prober, seed)
    return prober.table()


def score(task: KnownLandscape, probes: pd.DataFrame, seed: int) -> Score:
    """Estimate the landscape from the probes and compare it with the truth."""
    ids = task.items.ids("discover")
    start = time.process_time()
    landscape = estimate_landscape(probes, ids, task.embed(ids), task.concepts, threshold=task.threshold, seed=seed)
    seconds = time.process_time() - start
    n = len(landscape.table)
    rows = np.random.default_rng(seed).choice(n, min(n, JUDGED), replace=False)
    true = task.true_rates(ids, landscape.cells(task.concepts)[rows])
    rate, low, high = landscape.table.iloc[rows][["rate", "low", "high"]].to_numpy().T
    return Score(
        mae=float(np.abs(rate - true).mean()),
        constant=float(np.abs(true - true.mean()).mean()),
        rank=float(stats.spearmanr(rate, true).statistic),
        bias=float((rate - true).mean()),
        coverage=float(((low <= true) & (true <= high)).mean()),
        width=float((high - low).mean()),
        seconds=seconds,
        name=str(landscape.diagnostics["name"]),
    )


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print("| truth | probes | failing | MAE (constant) | rank | bias | in 95% interval | width | CPU s | chosen |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for truth, budgets in BUDGETS.items():
        for kind, explorer in EXPLORERS.items():
            tasks = [make_landscape(TRUTHS[truth], PLANTED + seed) for seed in SEEDS]
            runs = [searched(task, explorer, max(budgets), seed) for task, seed in zip(tasks, SEEDS, strict=True)]
            for budget in budgets:
                probes = [run.head(budget) for run in runs]
                scores = [score(*arguments) for arguments in zip(tasks, probes, SEEDS, strict=True)]
                mean = Score._make([*np.mean([s[:-1] for s in scores], axis=0), ""])
                failing = np.mean([p["failed"].mean() for p in probes])
                names = ", ".join(f"{name} {k}x" for name, k in Counter(s.name for s in scores).items())
                print(
                    f"| {truth} | {budget:,} {kind} | {failing:.0%} | {mean.mae:.3f} ({mean.constant:.2f}) | "
                    f"{mean.rank:.2f} | {mean.bias:+.3f} | {mean.coverage:.0%} | {mean.width:.2f} | "
                    f"{mean.seconds:.1f} | {names} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
