"""`faded tune`: find the fastest backend, dtype and batch size here, on the audit's own model and items."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from math import ceil
from statistics import median

import numpy as np
import psutil
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from flows.choosing import healed_audit, run_prepare, write_params
from flows.terminal import new_table, print_plain
from flows.workspace.edit_params import with_compute
from stages.core.environment import torch_threads
from stages.core.errors import UsageError
from stages.core.files import stage_dir
from stages.params import AuditConfig, Params
from stages.params.network import is_served
from stages.ratings import rated
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute, TaskContext
from stages.tasks.load import task_class, task_context

FEWEST, MOST = 8, 1024  # batch sizes that are tried
GROWTH = 1.05  # smallest speed-up for which a larger batch or another backend is worth it
ROUNDS = 5  # of one pass per choice: noise of the machine is alike within a round
PASS_SECONDS = 0.5  # smallest duration of a pass
COMPARED = 128  # probes whose answers are compared
DTYPES = ("float32", "bfloat16")


def tune_audit(params: Params, name: str, settings: Settings, write: bool, console: Console) -> None:
    """Measure, show and on request write the fastest settings for the model of an audit.

    Raises a UsageError if params.yaml is invalid or cannot be edited, or the model is behind HTTP; a FadedError if the
    model under test cannot be prepared.
    """
    audit = params.audit(name)
    if is_served(audit.prepare.get("model")):  # perhaps paid for, and nothing about this machine
        raise UsageError(
            f"audits.{name} has a model behind HTTP, to which tune would send thousands of requests: set"
            " prepare.model.batch_size, concurrency and rate instead"
        )
    with healed_audit(params, name, console):
        run_prepare(name, console)
        tuning = measure_choices(name, audit, settings, lambda line: print_plain(console, line))
        show_tuning(console, name, tuning, settings)
        if write:
            _write(name, audit, tuning.best(settings.allow_bfloat16).compute, console)


def _write(name: str, audit: AuditConfig, best: Compute, console: Console) -> None:
    keys = ("backend", "dtype", "batch_size")
    now = task_context(name, audit, stage_dir(name, "prepare")).compute
    if changed := {key: getattr(best, key) for key in keys if getattr(best, key) != getattr(now, key)}:
        write_params(name, audit, lambda text: with_compute(text, name, changed), console)
    else:
        console.print("nothing to write: it is already set")


def show_tuning(console: Console, name: str, tuning: Tuning, settings: Settings) -> None:
    """Print the table, and the conclusion."""
    now = tuning.choices[0]
    numbers = ("batch size", "probes/s", "ratio", "probes/CPU-s", "ratio", "memory", "off by", "changed")
    table = new_table("backend, dtype", *numbers, right=numbers)
    for choice in tuning.choices:
        table.add_row(
            escape(choice.name) + (" (now)" if choice is now else ""),
            str(choice.compute.batch_size),
            f"{choice.speed:.1f}",
            f"{choice.speed / now.speed:.2f}",
            f"{choice.cpu:.1f}",
            f"{choice.cpu / now.cpu:.2f}",
            decimal(choice.memory),
            f"{choice.far:.1g}",
            f"{choice.changed} of {tuning.compared}",
        )
    console.print(table)
    for kind, why in tuning.impossible.items():
        print_plain(console, f"not measured: {kind}: {why}")
    for choice in tuning.choices:
        if choice.tried:
            sizes = ", ".join(f"{n}: {speed:.1f}" for n, speed in choice.tried.items())
            print_plain(console, f"probes/s of {choice.name} by batch size: {sizes}")
    best = tuning.best(settings.allow_bfloat16)
    said = "stays as it is: nothing allowed is more than 5% faster"
    if best is not now:
        to = f"{{backend: {best.compute.backend}, dtype: {best.compute.dtype}, batch_size: {best.compute.batch_size}}}"
        said = f"{to} is {best.speed / now.speed:.1f} times as fast"
    print_plain(console, f"{name}: {said}")
    if best.compute.dtype != now.compute.dtype:
        change = f"{best.changed} of {tuning.compared} probes change between pass and fail"
        print_plain(console, f"its dtype changes answers: {change}")
    if best.compute.backend == "openvino" and now.compute.backend != "openvino":
        print_plain(console, "others who run the audit need it too: pip install 'faded[openvino]'")
    faster = tuning.best(True)
    if faster.compute.dtype == "bfloat16" and faster is not best:
        print_plain(
            console,
            f"{faster.name} is {faster.speed / best.speed:.1f} times as fast as that, but changes answers:"
            f" {faster.changed} of {tuning.compared} probes change between pass and fail; see --allow-bfloat16",
        )


@dataclass(frozen=True)
class Settings:
    """Settings of a tuning.

    Args:
        memory: share of the machine's memory, or the GPU's, that may be used.
        allow_bfloat16: whether bfloat16, which changes answers, may be recommended.
        seconds: smallest duration of a pass.
    """

    memory: float = 0.5
    allow_bfloat16: bool = False
    rounds: int = ROUNDS
    seconds: float = PASS_SECONDS


@dataclass
class ComputeChoice:
    """One backend with one dtype at one batch size, and its measurements.

    Args:
        passes: (probes, seconds, CPU-seconds) of each pass.
        memory: peak memory of the process, or its GPU, while it answered, in bytes.
        grown: the part of this that was added by answering.
        far: largest difference of its logits (or discrepancies) from those of eager float32.
        changed: number of the `COMPARED` probes whose pass or fail differs from the current choice.
        tried: probes per second at each batch size that was tried.
    """

    compute: Compute
    passes: list[tuple[int, float, float]] = field(default_factory=list)
    memory: int = 0
    grown: int = 0
    far: float | None = None
    changed: int | None = None
    tried: dict[int, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Probes per second, the median over the passes."""
        return median(n / seconds for n, seconds, _ in self.passes)

    @property
    def cpu(self) -> float:
        """Probes per CPU-second, the median over the passes."""
        return median(n / max(used, 1e-9) for n, _, used in self.passes)

    @property
    def name(self) -> str:
        return f"{self.compute.backend} {self.compute.dtype}"


@dataclass(frozen=True)
class Tuning:
    """The measured choices, the current one first, and why others could not be measured."""

    choices: list[ComputeChoice]
    impossible: dict[str, str]
    compared: int

    def best(self, allow_bfloat16: bool) -> ComputeChoice:
        """The fastest allowed choice if it is clearly faster than the current one, otherwise the current one.

        Unless bfloat16 is allowed, it is in float32, or as now: backends differ in their answers in bfloat16.
        """
        now = self.choices[0]
        may = [c for c in self.choices if allow_bfloat16 or c.compute.dtype == "float32" or c.name == now.name]
        fastest = max(may, key=lambda c: c.speed)
        return fastest if fastest.speed > GROWTH * now.speed else now


def measure_choices(name: str, audit: AuditConfig, settings: Settings, tell: Callable[[str], None]) -> Tuning:
    """Measure an audit's prepared model with every available backend and dtype.

    Raises a UsageError if there is nothing to probe.
    """
    bench = Bench(name, audit, settings)
    now = bench.open(ComputeChoice(bench.context.compute))
    bench.close()
    found: list[ComputeChoice] = []
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
                found.append(bench.open(ComputeChoice(replace(compute, batch_size=alone.compute.batch_size))))
            else:
                found.append(_double(bench, compute))
                bench.close()
        except UsageError as error:
            impossible[f"{backend} {dtype}"] = str(error)

    choices = [now, *(choice for choice in found if choice.compute != now.compute)]
    now.tried = next((choice.tried for choice in found if choice.compute == now.compute), {})
    for choice in choices:
        choice.passes.clear()
        bench.open(choice)
    tell(f"all of them in turns, {settings.rounds} rounds ...")
    bench.rounds(choices)
    bench.compare(choices, reference)
    return Tuning(choices, impossible, bench.compared)


def _double(bench: Bench, compute: Compute) -> ComputeChoice:
    """Double the batch size until the speed-up is below `GROWTH`, or it would take too much memory."""
    size, tried = FEWEST, dict[int, float]()
    best = bench.open(ComputeChoice(replace(compute, batch_size=size)))
    while (size := 2 * size) <= MOST and best.memory + 2 * best.grown <= bench.limit:
        more = bench.open(ComputeChoice(replace(compute, batch_size=size)))
        bench.rounds([best, more])
        tried |= {size // 2: best.speed, size: more.speed}
        if more.memory > bench.limit or more.speed < GROWTH * best.speed:
            break
        bench.close(best)
        best, more.passes = more, []
    else:
        bench.rounds([best])
        tried[best.compute.batch_size] = best.speed
    best.tried = tried
    return best


class Bench:
    """The prepared model of an audit, once for each open choice, and probes for it."""

    def __init__(self, name: str, audit: AuditConfig, settings: Settings) -> None:
        self.name, self.audit, self.settings = name, audit, settings
        self.context: TaskContext = task_context(name, audit, stage_dir(name, "prepare"))
        self.cls = task_class(name, audit)
        self.backends: Sequence[str] = self.cls.backends
        self.limit: float = settings.memory * psutil.virtual_memory().total
        if (device := self.context.compute.device) != "cpu":
            import torch

            self.limit = settings.memory * torch.cuda.get_device_properties(device).total_memory
        self._errors = set(self.cls.check(self.context))
        # By id of a choice: the task, and the same task with people's ratings applied.
        self._open: dict[int, tuple[LoadedTask, LoadedTask]] = {}
        self._probes: tuple[list[str], np.ndarray] | None = None

    def refuse(self, compute: Compute) -> None:
        """Raise the task's own errors if it does not accept a choice."""
        errors = [e for e in self.cls.check(replace(self.context, compute=compute)) if e not in self._errors]
        if errors:
            raise UsageError("; ".join(errors))

    def open(self, choice: ComputeChoice) -> ComputeChoice:
        """Load the model for a choice and run one untimed batch, which shows its memory."""
        if id(choice) in self._open:
            return choice
        own = self.cls.load(replace(self.context, compute=choice.compute), stage_dir(self.name, "prepare"))
        self._open[id(choice)] = own, rated(own, self.name, self.audit)
        with _watched(choice.compute.device) as held:
            self._ask(choice, 1)
        if not choice.memory:  # the first time only, before other choices are open as well
            choice.memory, choice.grown = held["most"], held["most"] - held["before"]
        return choice

    def close(self, choice: ComputeChoice | None = None) -> None:
        """Release a choice's model, or all."""
        for one in [*self._open] if choice is None else [id(choice)]:
            del self._open[one]
        gc.collect()

    def rounds(self, choices: Sequence[ComputeChoice]) -> None:
        batches = {}
        for choice in choices:
            start = time.perf_counter()
            self._ask(choice, 1)
            batches[id(choice)] = max(1, ceil(self.settings.seconds / max(time.perf_counter() - start, 1e-6)))
        for _ in range(self.settings.rounds):
            for choice in choices:
                start, used = time.perf_counter(), time.process_time()
                n = self._ask(choice, batches[id(choice)])
                choice.passes.append((n, time.perf_counter() - start, time.process_time() - used))

    def compare(self, choices: Sequence[ComputeChoice], reference: Compute) -> None:
        """Measure how far each choice deviates from torch in float32, and how many verdicts change from the first's."""
        base = next((c for c in choices if (c.compute.backend, c.compute.dtype) == ("eager", "float32")), None)
        if base is None:
            base = self.open(ComputeChoice(reference))
        values, _ = self._answers(base)
        answers = [self._answers(choice) for choice in choices]
        _, now = answers[0]
        for choice, (own, failed) in zip(choices, answers, strict=True):
            choice.far, choice.changed = float(np.abs(own - values).max()), int((failed != now).sum())

    @property
    def compared(self) -> int:
        return min(COMPARED, len(self.probes[0]))

    @property
    def probes(self) -> tuple[list[str], np.ndarray]:
        """Items of discover and cells, drawn uniformly."""
        if self._probes is None:
            task, _ = next(iter(self._open.values()))
            if not (ids := task.items.ids("discover")):
                raise UsageError(f"audit {self.name!r} has no items of the split discover to measure with")
            rng = np.random.default_rng([self.audit.seed, 11])
            n = max(MOST, self.context.compute.batch_size)
            self._probes = rng.choice(ids, n).tolist(), task.concepts.sample(n, rng)
        return self._probes

    def _ask(self, choice: ComputeChoice, batches: int) -> int:
        """Run whole batches like discover, from the first probe on; return the number of probes."""
        items, cells = self.probes
        task, n = self._open[id(choice)][1], choice.compute.batch_size
        with torch_threads(choice.compute.threads):
            for batch in range(batches):
                start = batch * n % (len(items) - n + 1)
                task.probe(items[start : start + n], cells[start : start + n])
        return batches * n

    def _answers(self, choice: ComputeChoice) -> tuple[np.ndarray, np.ndarray]:
        """Logits, or the discrepancies of a task without logits, and which probes fail."""
        own, judged = self._open[id(choice)]
        items, cells = self.probes[0][: self.compared], self.probes[1][: self.compared]
        size = choice.compute.batch_size
        parts = [slice(start, start + size) for start in range(0, len(items), size)]
        with torch_threads(choice.compute.threads):
            answers = [judged.probe(items[part], cells[part]) for part in parts]
            logits = own.logits(items, cells)
            values = logits.numpy() if logits is not None else np.concatenate([a.discrepancy for a in answers])
        return values, np.concatenate([a.failed for a in answers])


@contextmanager
def _watched(device: str) -> Iterator[dict[str, int]]:
    """Memory of this process, or of its GPU, in bytes: before the block, and the maximum within it."""
    if device != "cpu":
        import torch

        held = {"before": torch.cuda.memory_allocated(device)}
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield held
        except torch.cuda.OutOfMemoryError:
            raise UsageError(f"{device} does not have enough memory for that") from None
        finally:
            held["most"] = torch.cuda.max_memory_allocated(device)
        return
    process, done = psutil.Process(), threading.Event()
    held = dict.fromkeys(("before", "most"), process.memory_info().rss)

    def watch() -> None:
        ended = False
        while not ended:
            ended = done.wait(0.005)
            held["most"] = max(held["most"], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield held
    finally:
        done.set()
        watcher.join()
