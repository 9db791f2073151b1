"""Probes per second of each backend and dtype, and of the network alone, in one run.

    .venv/bin/python -m benchmarks.backends [imagenet] [--batch-size 32] [--threads 1] [--rounds 5]

Prepares the audit's model and items in a temporary folder. *network* is the network alone on a batch in memory;
*probes* is `task.probe`: transforms, network and judging. All are measured in turn, in a different order each round,
and CPU time is shown too, because cores may be shared. *off by* is the largest difference of the logits from those of
eager float32, relative to the largest of these. The results are in docs/speed.md.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from stages.core.errors import UsageError
from stages.params import load_params
from stages.tasks.contract import Compute
from stages.tasks.load import task_class, task_context

KINDS = [(backend, dtype) for backend in ("eager", "compile", "openvino") for dtype in ("float32", "bfloat16")]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Measure the seconds and CPU-seconds of all threads of a call."""
    start, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - used


def in_turns(works: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[tuple[float, float]]]:
    """Time all calls in each round, in varying order, because a call may leave the processor slower for the next."""
    taken: dict[Any, list[tuple[float, float]]] = {name: [] for name in works}
    turns = list(works)
    for turn in range(rounds + 1):
        random.Random(turn).shuffle(turns)
        for name in turns:
            one = timed(works[name])
            if turn:  # the first round warms up
                taken[name].append(one)
    return taken


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audit", nargs="?", default="imagenet")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=1, help="in each pass")
    args = parser.parse_args()

    audit = load_params().audit(args.audit)
    cls = task_class(args.audit, audit)
    plain = replace(task_context(args.audit, audit), compute=Compute("cpu", args.threads, args.batch_size))
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        cls.prepare(plain, Path(folder))
        tasks, opening, impossible = {}, {}, {}
        for backend, dtype in KINDS:
            compute = replace(plain.compute, backend=backend, dtype=dtype)
            try:
                if errors := cls.check(replace(plain, compute=compute)):
                    raise UsageError("; ".join(errors))
                task = cls.load(replace(plain, compute=compute), Path(folder))
                opening[backend, dtype], _ = timed(lambda: task.backend)  # noqa: B023
            except UsageError as error:
                impossible[f"{backend} {dtype}"] = str(error)
                continue
            tasks[backend, dtype] = task

        first = tasks["eager", "float32"]
        rng = np.random.default_rng(0)
        items = rng.choice(first.items.ids("discover"), args.batch_size).tolist()
        cells = first.concepts.sample(args.batch_size, rng)
        pixels, wanted = first.inputs(items, cells), first.logits(items, cells)

        def network(task) -> None:
            with torch.inference_mode(), task.backend.threads():
                for _ in range(args.batches):
                    task.backend(pixels)

        def probes(task) -> None:
            for _ in range(args.batches):
                task.probe(items, cells)

        works = {
            (kind, work.__name__): partial(work, task) for kind, task in tasks.items() for work in (network, probes)
        }
        taken = in_turns(works, args.rounds)
        far = {k: float((t.logits(items, cells) - wanted).abs().max() / wanted.abs().max()) for k, t in tasks.items()}

    n = args.batch_size * args.batches
    rows = {}
    for kind in tasks:
        row = {"opened_in_seconds": round(opening[kind], 1), "off_by": float(f"{far[kind]:.1e}")}
        for what in ("network", "probes"):
            for j, unit in enumerate(("second", "cpu_second")):
                rate = n / median(one[j] for one in taken[kind, what])
                base = n / median(one[j] for one in taken[("eager", "float32"), what])
                row[f"{what}_per_{unit}"] = round(rate, 1)
                row[f"{what}_per_{unit}_ratio"] = round(rate / base, 2)
        rows[" ".join(kind)] = row
    told = {"audit": args.audit, "threads": args.threads, "batch_size": args.batch_size, "rounds": args.rounds}
    print(json.dumps({**told, "torch": torch.__version__, "rows": rows, "impossible": impossible}, indent=1))


if __name__ == "__main__":
    main()
