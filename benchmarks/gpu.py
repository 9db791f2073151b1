"""Run every default audit on a GPU, in float32 and bfloat16, at the batch size that is fastest there.

    .venv/bin/python -m benchmarks.gpu [AUDIT ...] [--out gpu.md]

Works in a fresh clone of the committed state, in a temporary folder, with this interpreter. For each audit and dtype it
runs prepare, doubles the batch from 8 until memory runs out (or a batch takes a minute, or contains 65,536 probes), and
runs the audit to its end with the fastest size. Prints the table for docs/speed.md, and writes it to the file --out.
Without a GPU it says so and exits with code 2. It was written on a machine without a GPU and has never run on one.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks.audit_time import ROOT, cost
from flows.choosing.tune import DTYPES, FEWEST, Bench, ComputeChoice, Settings
from stages.core.errors import UsageError, run_as_command
from stages.params import load_params
from stages.records import audit_folder

LARGEST = 65_536  # digits are so small that no batch fills a large GPU
LONGEST = 60.0  # seconds per batch
HEAD = ("audit", "dtype", "largest batch that fits", "fastest batch", "probes/s", "memory", "audit", "grid fails")


class Tried(NamedTuple):
    """A batch size: probes per second, and maximum bytes of GPU memory."""

    size: int
    speed: float
    memory: int


def doubled(answer: Callable[[int], Tried], most: int = LARGEST) -> list[Tried]:
    """Double the batch from `FEWEST` until memory is exhausted, or a batch takes longer than `LONGEST`.

    Raises:
        UsageError: if not even the first fits.
    """
    from torch import OutOfMemoryError

    tried = [answer(FEWEST)]
    with contextlib.suppress(UsageError, OutOfMemoryError):
        while 2 * tried[-1].size <= most and tried[-1].size / tried[-1].speed < LONGEST:
            tried.append(answer(2 * tried[-1].size))
    return tried


def sizes(clone: Path, name: str) -> list[Tried]:
    """Measure batch sizes of a prepared audit; call it in a separate process, so that its memory is freed."""
    with contextlib.chdir(clone):
        audit = load_params().audit(name)
        compute = audit.compute.model_copy(update={"batch_size": LARGEST})  # so that there are enough probes
        bench = Bench(name, audit.model_copy(update={"compute": compute}), Settings(memory=1.0, rounds=3))

        def answer(size: int) -> Tried:
            bench.close()
            choice = bench.open(ComputeChoice(replace(bench.context.compute, batch_size=size)))
            bench.rounds([choice])
            return Tried(size, choice.speed, choice.memory)

        return doubled(answer)


def set_compute(clone: Path, name: str, **changes: Any) -> None:
    """Write settings into the `compute:` of an audit; as many texts are generated at once as a batch contains."""
    path = clone / "params.yaml"
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    audit = params["audits"][name]
    audit["compute"] |= changes
    if any(task in audit["task"] for task in ("summarization", "chat")):
        audit["prepare"].setdefault("generation", {})["rows"] = LARGEST
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def row(clone: Path, name: str, dtype: str) -> list[str]:
    """Measure one audit with one dtype."""
    set_compute(clone, name, device="cuda", gpus=1, backend="eager", dtype=dtype, batch_size=FEWEST)
    cost([sys.executable, "-m", "dvc", "repro", "-q", f"prepare@{name}"], clone)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        tried = pool.submit(sizes, clone, name).result()
    fastest = max(tried, key=lambda one: one.speed)
    set_compute(clone, name, batch_size=fastest.size)
    took = cost([sys.executable, "-m", "flows.cli", "audit", name], clone)
    rate = audit_folder(name, clone).summarize.landscape.overall
    return [
        *(name, dtype, f"{tried[-1].size:,}", f"{fastest.size:,}", f"{fastest.speed:,.0f}"),
        *(f"{fastest.memory / 2**30:.1f} GiB", f"{took.wall:,.0f} s", f"{100 * (rate.value or 0):.1f}%"),
    ]


def measure(names: list[str], out: Path | None) -> None:
    """Print the table, row by row.

    Raises:
        UsageError: if this machine has no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise UsageError("this machine has no GPU that torch can use, and this benchmark measures one")
    lines = [f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}:", ""]
    lines += [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    print("\n".join(lines))
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        audits = yaml.safe_load((clone / "params.yaml").read_text(encoding="utf-8"))["audits"]
        for name in names or [name for name in audits if "-" not in name]:  # a preset is named AUDIT-PRESET
            for dtype in DTYPES:
                lines.append(f"| {' | '.join(row(clone, name, dtype))} |")
                print(lines[-1], flush=True)
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("audits", nargs="*", metavar="AUDIT", help="names in params.yaml; all but presets by default")
    parser.add_argument("--out", type=Path, help="a file for the table")
    given = parser.parse_args()
    run_as_command(lambda: measure(given.audits, given.out))


if __name__ == "__main__":
    main()
