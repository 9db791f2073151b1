"""Cost of dividing a search into 1, 2, 4 and 8 shares with the same total budget, against exact truths.

`python -m benchmarks.shards` searches landscapes with known truth, the enumerated MNIST (2,401 cells x 80 items) and
planted ones of 7^8 cells x 80 items, in independent shares and merges them as `discover` does. Failures, coverage and
failing cells are those of the agent's probes; the landscape is estimated from the probes of agent and control, as
`summarize` does. Prints a Markdown table of means over three seeds with their range. Takes a quarter of an hour on one
core.

`python -m benchmarks.shards merge` measures the cost of the merge: time, memory and bytes of a million probes;
`python -m benchmarks.shards landscape` that of estimating the landscape from increasing numbers of them.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.study.landscapes import Enumerated, KnownLandscape, Planted
from benchmarks.study.measure import Truth, landscape_quality, search_quality
from stages.core.ledger import Answer, Key, Ledger
from stages.explorers.merge import ShareResult, ledger_answers, merge_shares
from stages.explorers.model_based import choose_explorer
from stages.explorers.shards import divide, search_share
from stages.landscape.estimate import estimate_landscape
from stages.params import DiscoverConfig

TRUTHS = Path(__file__).parent / "study" / "truths"
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
MILLION = 1_000_000


def landscape_of(truth: str, seed: int) -> KnownLandscape:
    """Return the truth by its name in BUDGET."""
    return Enumerated(TRUTHS / "mnist.safetensors") if truth == "MNIST" else Planted(8, PLANTED + seed)


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
        truths = [Truth(landscape_of(name, seed)) for seed in SEEDS]
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


def measure_merge(shards: Sequence[int] = (1, 10, 100, 1000)) -> None:
    """Print CPU seconds, memory and bytes of merging a million probes."""
    task = Planted(8, PLANTED, searched=20_000)
    ids, space = task.items.ids("discover"), task.concepts
    rng = np.random.default_rng(0)
    for count in shards:
        with tempfile.TemporaryDirectory() as folder:
            tables = []
            for share in divide(ids, space.n_cells, MILLION // 2, count, 0):
                both = [_synthetic(share.item_ids, share.budget, role, task, rng) for role in ("agent", "control")]
                tables.append(pd.concat(both, ignore_index=True))
                tables[-1].to_parquet(Path(folder) / f"{share.part}.parquet", index=False)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
            metrics = {role: {"explorer": role, "budget": MILLION // 2 // count} for role in ("agent", "control")}
            del tables
            start = time.process_time()
            paths = [Path(folder) / f"{n}.parquet" for n in range(1, count + 1)]
            parts = [ShareResult(n, pd.read_parquet(path), metrics, None, {}) for n, path in enumerate(paths, start=1)]
            read = time.process_time() - start
            start = time.process_time()
            result = merge_shares(parts, space)
            merged = time.process_time() - start
            start = time.process_time()
            result.probes.to_parquet(Path(folder) / "merged.parquet", index=False)
            written = time.process_time() - start
            of_one = (Path(folder) / "merged.parquet").stat().st_size
            print(
                f"{count} shares, {len(result.probes):,} probes: read {read:.1f} s, merge {merged:.1f} s, write"
                f" {written:.1f} s; parquet {size / MILLION:.1f} bytes a probe, merged {of_one / MILLION:.1f}; table in"
                f" memory {result.probes.memory_usage(deep=True).sum() / MILLION:.0f} bytes a probe",
                flush=True,
            )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    ledger = Ledger()
    ledger.know(ledger_answers(result.probes, space))
    took = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / MILLION
    print(f"answers of {len(ledger):,} probes for small steps: {took:.1f} s, {grown:.0f} more bytes of memory a probe")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.jsonl"
        rows = result.probes.head(100_000)
        _write_ledger(path, list(ledger_answers(rows, space)))
        start = time.process_time()
        Ledger(path).close()
        read = time.process_time() - start
        print(
            f"ledger: {path.stat().st_size / len(rows):.0f} bytes a probe, read again {10 * read:.0f} s a million;"
            f" resident at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB"
        )


def measure_landscape(probes: Sequence[int] = (2_000, 10_000, 50_000, 250_000), items: int = 1000) -> None:
    """Print CPU seconds and memory of estimating a landscape of 7^8 cells from these numbers of probes."""
    task = Planted(8, PLANTED, searched=items)
    ids, rng = task.items.ids("discover"), np.random.default_rng(0)
    for count in probes:
        table = _synthetic(ids, count, "control", task, rng)
        start = time.process_time()
        found = estimate_landscape(table, ids, task.embed(ids), task.concepts, threshold=task.threshold, seed=0)
        took = time.process_time() - start
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{count:,} probes of {items:,} items: {took:.0f} s, {found.diagnostics['name']}, {most:.1f} GB", flush=True
        )


def _synthetic(
    ids: Sequence[str], count: int, role: str, task: KnownLandscape, rng: np.random.Generator
) -> pd.DataFrame:
    """Return probes of one role in the form of probes.parquet, all different pairs as in a real search."""
    pairs = rng.choice(len(ids) * task.concepts.n_cells, count, replace=False)
    items, cells = np.divmod(pairs, task.concepts.n_cells)
    named = [ids[i] for i in items]
    answer = task.probe(named, task.concepts.cells(cells))
    levels = task.concepts.cells(cells)
    return pd.DataFrame(
        {
            "role": role,
            "explorer": role,
            "order": np.arange(count),
            "item": pd.Series(named, dtype="str"),
            **{name: levels[:, j] for j, name in enumerate(task.concepts.names)},
            "repeat": np.zeros(count, dtype=np.int64),
            "uniform": np.full(count, role == "control"),
            "discrepancy": answer.discrepancy,
            "failed": answer.failed,
            "valid": np.ones(count, dtype=bool),
            "output": pd.Series([f"{x:.0%} seven" for x in np.abs(answer.discrepancy)], dtype="str"),
        }
    )


def _write_ledger(path: Path, rows: Sequence[tuple[Key, Answer]], batch: int = 128) -> None:
    ledger = Ledger(path)
    for start in range(0, len(rows), batch):
        keys, said = zip(*rows[start : start + batch], strict=True)
        columns = zip(*((a.discrepancy, a.failed, a.output) for a in said), strict=True)
        ledger.append(keys, *(list(column) for column in columns))  # type: ignore[arg-type]
    ledger.close()


if __name__ == "__main__":
    {"merge": measure_merge, "landscape": measure_landscape}.get(" ".join(sys.argv[1:]), main)()
