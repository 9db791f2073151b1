"""One process with several threads against several processes with one: probes per second on an idle and a busy machine.

    .venv/bin/python -m benchmarks.processes [imagenet] [--probes 128] [--busy 1] [--rounds 3]

Needs a prepared audit (`faded audit AUDIT` makes one). All variants are measured in turn, with new uniformly drawn
probes each round. `--busy` is the number of programs that compute beside them. The results are in docs/speed.md.
"""

import argparse
import multiprocessing
import time
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from stages.core.environment import torch_threads
from stages.core.files import stage_dir
from stages.core.processes import Crew, cores
from stages.params import load_params
from stages.tasks.load import task_class, task_context


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", nargs="?", default="imagenet")
    parser.add_argument("--probes", type=int, default=128)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    name, audit, count = args.audit, load_params().audit(args.audit), cores()
    prepared, cls = stage_dir(name, "prepare"), task_class(name, audit)
    context = task_context(name, audit, prepared)
    ways: dict[str, tuple[int, Any]] = {}
    for label, threads, processes in (
        ("one thread", 1, 1),
        (f"{count} threads", count, 1),
        (f"{count} processes", 1, count),
    ):
        asked = replace(context, compute=replace(context.compute, threads=threads, processes=processes))
        load = partial(cls.load, asked, prepared)
        task = load()
        task.crew = Crew(processes, load) if processes > 1 else None
        ways[label] = (threads, task)
    busy = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(args.busy)]
    for process in busy:
        process.start()
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {label: [] for label in ways}
    for turn in range(args.rounds + 1):
        for label, (threads, task) in ways.items():
            ids = rng.choice(task.items.ids("discover"), args.probes).tolist()
            cells = task.concepts.sample(args.probes, rng)
            with torch_threads(threads):
                start = time.perf_counter()
                task.probe(ids, cells)
            if turn:  # the first round warms up
                seconds[label].append(time.perf_counter() - start)
    for process in busy:
        process.terminate()
    base = median(seconds["one thread"])
    print(f"\n{name}, {args.probes} probes, {args.busy} busy programs beside, {count} cores, medians of {args.rounds}")
    print("| | probes/s | ratio to one thread |\n|---|---|---|")
    for label, taken in seconds.items():
        print(f"| {label} | {args.probes / median(taken):.1f} | {base / median(taken):.2f} |")


def _compute() -> None:
    while True:
        np.ones((200, 200)) @ np.ones((200, 200))


if __name__ == "__main__":
    main()
