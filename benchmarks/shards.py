"""Cost of dividing a search into 1, 2, 4 and 8 shares with the same total budget, against exact truths.

`python -m benchmarks.shards` searches landscapes with known truth, the enumerated MNIST (2,401 cells x 80 items) and
planted ones of 7^8 cells x 80 items, in independent shares and merges them as `discover` does. Failures, coverage and
failing cells are those of the agent's probes; the landscape is estimated from the probes of agent and control, as
`summarize` does. Prints a Markdown table of means over three seeds with their range. Takes a quarter of an hour on one
core.
"""

import sys
import time
from itertools import product

import pandas as pd
import torch

from benchmarks.study.measure import Truth, landscape_quality, search_quality
from benchmarks.study.run import make_landscape
from stages.explorers.model_based import choose_explorer
from stages.explorers.shards import ShareResult, divide, merge_shares, search_share
from stages.params import DiscoverConfig

TRUTHS = {"MNIST": "mnist", "7^8": "planted8"}
SEEDS = (0, 1, 2)
BUDGET = {"MNIST": 1500, "7^8": 2000}
SHARDS = {"MNIST": (1, 2, 4, 8), "7^8": (1, 2, 4)}
EXPLORERS = {
    "MNIST": ("auto", "local_search", "model_based", "ppo", "random"),
    "7^8": ("auto", "ppo", "random"),
}
MEASURED = ("failures", "failing_cells", "coverage", "modes_found", "mae", "rank")
DIGITS = (0, 0, 2, 2, 3, 2)
PLANTED = 200  # first seed of planted landscapes; the study and other benchmarks use lower ones


def score(truth: Truth, explorer: str, budget: int, shards: int, seed: int) -> dict[str, float]:
    """Search in this many shares, merge them, and compare the result with the truth."""
    task, config = truth.task, DiscoverConfig(explorer=explorer, budget=budget, shards=shards)
    start = time.process_time()
    parts, slowest = [], 0.0
    for share in divide(task.items.ids("discover"), task.concepts.n_cells, budget, shards, seed):
        began = time.process_time()
        result = search_share(task, share, config)
        slowest = max(slowest, time.process_time() - began)
        parts.append(ShareResult(share.part, result.probes, result.metrics, result.policy, {}))
    seconds = time.process_time() - start
    found = merge_shares(parts, task.concepts)
    agent = found.probes[found.probes["role"] == "agent"]
    quality = search_quality(truth, agent) | landscape_quality(truth, found.probes, seed)
    kept = {name: float(quality[name]) for name in (*MEASURED, "constant_mae")}
    return kept | {"seconds": seconds, "slowest": slowest}


def main() -> None:
    """Print the table of search quality."""
    torch.set_num_threads(1)
    columns = ("truth", "explorer", "shares", *(name.replace("_", " ") for name in MEASURED), "CPU s (slowest share)")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, budget in BUDGET.items():
        truths = [Truth(make_landscape(TRUTHS[name], PLANTED + seed)) for seed in SEEDS]
        known: dict[tuple[str, int], pd.DataFrame] = {}
        for explorer, shards in product(EXPLORERS[name], SHARDS[name]):
            took = choose_explorer(budget).explorer
            really = took if explorer == "auto" else explorer  # `auto` behaves as the explorer it chooses by default
            if (really, shards) not in known:
                scores = [score(t, really, budget, shards, seed) for t, seed in zip(truths, SEEDS, strict=True)]
                known[really, shards] = pd.DataFrame(scores)
            table = known[really, shards]
            shown = [_cell(table[column], digits) for column, digits in zip(MEASURED, DIGITS, strict=True)]
            times = f"{table['seconds'].mean():.0f} ({table['slowest'].mean():.1f})"
            said = f"auto ({took})" if explorer == "auto" else explorer
            print(f"| {name}, {budget:,} | {said} | {shards} | {' | '.join(shown)} | {times} |", flush=True)
        print(
            f"always saying the mean of {name} errs by {known['random', 1]['constant_mae'].mean():.3f}", file=sys.stderr
        )


def _cell(values: pd.Series, digits: int) -> str:
    if values.isna().all():
        return ""
    low, mean, high = (f"{v:,.{digits}f}" for v in (values.min(), values.mean(), values.max()))
    return f"{mean} ({low} to {high})"


if __name__ == "__main__":
    main()
