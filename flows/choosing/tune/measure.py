"""Measures the choices of backend, dtype and batch size for an audit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from flows.choosing.tune.bench import Bench
from flows.choosing.tune.choices import DTYPES, FEWEST, GROWTH, MOST, Choice, Settings, Tuning
from stages.errors import UsageError
from stages.params import AuditConfig
from stages.tasks.contract import Compute


def tune(name: str, audit: AuditConfig, settings: Settings, tell: Callable[[str], None]) -> Tuning:
    """Measure an audit's prepared model with every available backend and dtype.

    Raises:
        UsageError: if there is nothing to probe.
    """
    bench = Bench(name, audit, settings)
    now = bench.open(Choice(bench.context.compute))
    bench.close()
    found: list[Choice] = []
    impossible: dict[str, str] = {}
    reference = replace(now.compute, backend="eager", dtype="float32")
    kinds = [k for k in product(bench.backends, DTYPES) if k == ("eager", "float32") or len(bench.backends) > 1]
    # Compiling takes a minute per batch size, so it is tried only at eager's best one.
    for backend, dtype in sorted(kinds, key=lambda kind: kind[0] == "compile"):
        compute = replace(reference, backend=backend, dtype=dtype)
        try:
            bench.refuse(compute)
            tell(f"{backend} {dtype} ...")
            if backend == "compile":
                alone = next(c for c in found if c.name == f"eager {dtype}")
                found.append(bench.open(Choice(replace(compute, batch_size=alone.compute.batch_size))))
            else:
                found.append(_double(bench, compute))
                bench.close()
        except UsageError as error:
            impossible[f"{backend} {dtype}"] = str(error)

    others = [choice for choice in found if choice.compute != now.compute]
    choices = [now, *others]
    for choice in choices:
        choice.passes.clear()
        bench.open(choice)
    tell(f"all of them in turns, {settings.rounds} rounds ...")
    bench.rounds(choices)
    bench.compare(choices, reference)
    for choice in found:
        if choice.compute == now.compute:
            now.tried = choice.tried
    return Tuning(choices, impossible, bench.compared)


def _double(bench: Bench, compute: Compute) -> Choice:
    """Double the batch size until the speed-up is below `GROWTH`, or it would take too much memory."""
    best = bench.open(Choice(replace(compute, batch_size=FEWEST)))
    tried: dict[int, float] = {}
    while True:
        size = 2 * best.compute.batch_size
        more = None
        if size <= MOST and best.memory + 2 * best.grown <= bench.limit:
            more = bench.open(Choice(replace(compute, batch_size=size)))
        bench.rounds([best, more] if more else [best])
        tried[best.compute.batch_size] = best.speed
        if more is None:
            break
        tried[size] = more.speed
        if more.memory > bench.limit or more.speed < GROWTH * best.speed:
            break
        bench.close(best)
        best, more.passes = more, []
    best.tried = tried
    return best
