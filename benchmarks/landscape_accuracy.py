"""Accuracy of the estimated landscape against exact ground truth: error, rank correlation, coverage of intervals.

`python -m benchmarks.landscape_accuracy` estimates landscapes from uniform probes and from those of a search for
failures, and compares them with the truth: MNIST enumerated (2,401 cells x 80 items) and planted landscapes of 7^5 and
7^8 cells. Prints a Markdown table of means over three seeds. Takes about ten minutes on one core.
"""

import pandas as pd
import torch

from benchmarks.study.landscapes import KnownLandscape
from benchmarks.study.measure import Truth, landscape_quality
from benchmarks.study.run import make_landscape
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober

SEEDS = (0, 1, 2)
PLANTED = 100  # first seed of planted landscapes; the study uses lower ones
EXPLORERS = {"uniform": "random", "adaptive": "local_search"}
TRUTHS = {"MNIST": "mnist_tuning", "7^5": "planted5", "7^8": "planted8"}
BUDGETS = {"MNIST": (500, 1000, 2000, 4000, 8000), "7^5": (2000,), "7^8": (500, 2000)}


def searched(task: KnownLandscape, explorer: str, budget: int, seed: int) -> pd.DataFrame:
    """Return the probes of one search, in the order of queries."""
    prober = Prober(task, task.items.ids("discover"), budget)
    make_explorer(explorer, {}).explore(prober, seed)
    return prober.table()


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(
        "| truth | probes | failing | MAE (constant) | rank | bias | in 95% interval |\n|---|---|---|---|---|---|---|"
    )
    for name, budgets in BUDGETS.items():
        for kind, explorer in EXPLORERS.items():
            truths = [Truth(make_landscape(TRUTHS[name], PLANTED + seed)) for seed in SEEDS]
            runs = [searched(one.task, explorer, max(budgets), seed) for one, seed in zip(truths, SEEDS, strict=True)]
            for budget in budgets:
                probes = [run.head(budget) for run in runs]
                scores = [landscape_quality(*arguments) for arguments in zip(truths, probes, SEEDS, strict=True)]
                mean = pd.DataFrame(scores).mean(numeric_only=True)
                print(
                    f"| {name} | {budget:,} {kind} | {pd.concat(probes)['failed'].mean():.0%} | {mean['mae']:.3f} "
                    f"({mean['constant_mae']:.2f}) | {mean['rank']:.2f} | {mean['bias']:+.3f} | "
                    f"{mean['interval_coverage']:.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
