"""`faded tune`: which backend, dtype and batch size are fastest here, measured on the audit's own model and items."""

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
from typing import Any

import numpy as np
import psutil
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.edit_params import with_compute
from flows.graph import read_graph
from flows.heal import heal
from flows.processes import stopping_on_signals
from flows.screen import PARAMS, bring_up_to_date, write_shown
from flows.views import size
from flows.workspace import exclusive
from stages.check import check_audits
from stages.environment import torch_threads
from stages.errors import UsageError
from stages.files import stage_dir
from stages.params import AuditConfig, Params, load_params, task_class, task_context
from stages.ratings import rated
from stages.tasks.contract import Compute, Task, TaskContext

FEWEST, MOST = 8, 1024  # batch sizes that are tried
GROWTH = 1.05  # doubling the batch, or another backend, has to give so much more to be worth it
ROUNDS = 5  # in each, one pass of every choice: cores are noisy, and alike for all within a round
PASS_SECONDS = 0.5  # a pass takes at least that long
COMPARED = 128  # probes whose answers are compared
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What is asked of a tuning.

    Args:
        memory: share of the machine's memory, or the GPU's, that may be used.
        allow_bfloat16: whether bfloat16, which changes answers, may be recommended.
        rounds: passes of each choice.
        seconds: each takes at least.
    """

    memory: float = 0.5
    allow_bfloat16: bool = False
    rounds: int = ROUNDS
    seconds: float = PASS_SECONDS


@dataclass
class Choice:
    """One backend with one dtype at one batch size, and what was measured of it.

    Args:
        compute: with the three.
        passes: (probes, seconds, CPU-seconds) of each pass.
        memory: bytes that the process, or its GPU, held at most while it answered.
        grown: how much of that came by answering.
        far: largest difference of its logits (or discrepancies) from those of eager float32.
        changed: of `COMPARED` probes, how many fail where they passed, or the other way round.
        tried: probes a second at each batch size that was tried.
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
        """Probes a second, the median over the passes."""
        return median(n / seconds for n, seconds, _ in self.passes)

    @property
    def cpu(self) -> float:
        """Probes a CPU-second, the median over the passes."""
        return median(n / max(used, 1e-9) for n, _, used in self.passes)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.compute.backend} {self.compute.dtype}"


@dataclass(frozen=True)
class Tuning:
    """What was measured, the present choice first, and why some could not be."""

    choices: list[Choice]
    impossible: dict[str, str]
    compared: int

    def best(self, allow_bfloat16: bool) -> Choice:
        """The fastest that may be taken; the present one, unless another is clearly faster."""
        now = self.choices[0]
        dtypes = DTYPES if allow_bfloat16 else ("float32", now.compute.dtype)
        fastest = max((c for c in self.choices if c.compute.dtype in dtypes), key=lambda c: c.speed)
        return fastest if fastest.speed > GROWTH * now.speed else now


def tune_audit(params: Params, name: str, settings: Settings, write: bool, console: Console) -> None:
    """Measure, show and on request write what is fastest for the model of an audit.

    Raises:
        UsageError: when params.yaml is wrong, or cannot be edited.
        FadedError: when the model under test cannot be prepared.
    """
    audit = params.audit(name)
    with exclusive():
        for line in heal():
            console.print(f"healed: {line}", highlight=False)
        check_audits(params, [name])
        with stopping_on_signals():
            bring_up_to_date(read_graph(), f"prepare@{name}", console)
            tuning = tune(name, audit, settings, lambda line: console.print(line, highlight=False, markup=False))
        show_tuning(console, name, tuning, settings)
        best = tuning.best(settings.allow_bfloat16)
        if write:
            _write(name, audit, best.compute, console)


def tune(name: str, audit: AuditConfig, settings: Settings, tell: Callable[[str], None]) -> Tuning:
    """Measure what `prepare` left of an audit with every backend and dtype there is.

    Raises:
        UsageError: when there is nothing to ask.
    """
    bench = _Bench(name, audit, settings)
    now = bench.open(Choice(bench.context.compute))
    bench.close()
    found: list[Choice] = []
    impossible: dict[str, str] = {}
    reference = replace(now.compute, backend="eager", dtype="float32")
    kinds = [k for k in product(bench.backends, DTYPES) if k == ("eager", "float32") or len(bench.backends) > 1]
    # What is compiled is made for one size, and that takes a minute: it is tried at that of eager alone.
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


def _double(bench: _Bench, compute: Compute) -> Choice:
    """Double the batch until that gives less than `GROWTH`, or would take too much memory."""
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


class _Bench:
    """The prepared model of an audit, as often as choices are open, and probes to put to it."""

    def __init__(self, name: str, audit: AuditConfig, settings: Settings) -> None:
        self.name, self.audit, self.settings = name, audit, settings
        self.context: TaskContext = task_context(name, audit)
        self.cls = task_class(name, audit)
        self.backends: Sequence[str] = getattr(self.cls, "backends", ("eager",))
        self.limit = settings.memory * _memory(self.context.compute.device)
        self._errors = set(self.cls.check(self.context))
        self._open: dict[int, tuple[Task, Task]] = {}  # id of a choice -> the task, and as people's ratings judge it
        self._probes: tuple[list[str], np.ndarray] | None = None

    def refuse(self, compute: Compute) -> None:
        """Raise the task's own words where it does not take such a choice."""
        errors = [e for e in self.cls.check(replace(self.context, compute=compute)) if e not in self._errors]
        if errors:
            raise UsageError("; ".join(errors))

    def open(self, choice: Choice) -> Choice:
        """Load the model for a choice and have it answer once, which tells its memory; nothing of that is timed."""
        if id(choice) in self._open:
            return choice
        own = self.cls.load(replace(self.context, compute=choice.compute), stage_dir(self.name, "prepare"))
        self._open[id(choice)] = own, rated(own, self.name, self.audit)
        with _watched(choice.compute.device) as held:
            self._ask(choice, 1)
        if not choice.memory:  # opened again, it has others beside it
            choice.memory, choice.grown = held["most"], held["most"] - held["before"]
        return choice

    def close(self, choice: Choice | None = None) -> None:
        """Let go of a choice's model, or of all."""
        if choice is None:
            self._open.clear()
        else:
            del self._open[id(choice)]
        gc.collect()

    def rounds(self, choices: Sequence[Choice]) -> None:
        """Time passes of all of them in turns."""
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

    def compare(self, choices: Sequence[Choice], reference: Compute) -> None:
        """Say how far the answers of each are from those of torch in float32."""
        base = next((c for c in choices if (c.compute.backend, c.compute.dtype) == ("eager", "float32")), None)
        if base is None:
            base = self.open(Choice(reference))
        values, failed = self._answers(base)
        for choice in choices:
            own, own_failed = self._answers(choice)
            choice.far, choice.changed = float(np.abs(own - values).max()), int((own_failed != failed).sum())

    @property
    def compared(self) -> int:
        """How many probes are compared."""
        return min(COMPARED, len(self.probes[0]))

    @property
    def probes(self) -> tuple[list[str], np.ndarray]:
        """Items of discover and cells, drawn uniformly."""
        if self._probes is None:
            task, _ = next(iter(self._open.values()))
            if not (ids := task.items.ids("discover")):
                raise UsageError(f"audit {self.name!r} has no items of the split discover to ask with")
            rng = np.random.default_rng([self.audit.seed, 11])
            n = max(MOST, self.context.compute.batch_size)
            self._probes = rng.choice(ids, n).tolist(), task.concepts.sample(n, rng)
        return self._probes

    def _ask(self, choice: Choice, batches: int) -> int:
        """Put whole batches as discover does, from the first probe on; return how many probes those were."""
        items, cells = self.probes
        task, n = self._open[id(choice)][1], choice.compute.batch_size
        with torch_threads(choice.compute.threads):
            for batch in range(batches):
                start = batch * n % (len(items) - n + 1)
                task.probe(items[start : start + n], cells[start : start + n])
        return batches * n

    def _answers(self, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
        """Logits, or the discrepancies of a task without, and which probes fail."""
        own, judged = self._open[id(choice)]
        items, cells = self.probes[0][: self.compared], self.probes[1][: self.compared]
        size = choice.compute.batch_size
        parts = [slice(start, start + size) for start in range(0, len(items), size)]
        with torch_threads(choice.compute.threads):
            answers = [judged.probe(items[part], cells[part]) for part in parts]
            logits: Any = getattr(own, "logits", None)
            values = logits(items, cells).numpy() if logits else np.concatenate([a.discrepancy for a in answers])
        return values, np.concatenate([a.failed for a in answers])


@contextmanager
def _watched(device: str) -> Iterator[dict[str, int]]:
    """Memory of this process, or of its GPU, before the block and at most within it: bytes."""
    if device != "cpu":
        import torch

        held = {"before": torch.cuda.memory_allocated(device)}
        torch.cuda.reset_peak_memory_stats(device)
        try:
            yield held
        except torch.cuda.OutOfMemoryError:
            raise UsageError(f"{device} has not the memory for that") from None
        finally:
            held["most"] = torch.cuda.max_memory_allocated(device)
        return
    process, done = psutil.Process(), threading.Event()
    held = {"before": process.memory_info().rss}
    held["most"] = held["before"]

    def watch() -> None:
        while not done.wait(0.005):
            held["most"] = max(held["most"], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield held
    finally:
        done.set()
        watcher.join()
        held["most"] = max(held["most"], process.memory_info().rss)


def _memory(device: str) -> int:
    if device == "cpu":
        return int(psutil.virtual_memory().total)
    import torch

    return int(torch.cuda.get_device_properties(device).total_memory)


def show_tuning(console: Console, name: str, tuning: Tuning, settings: Settings) -> None:
    """The table, and what it comes to."""
    now = tuning.choices[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "backend, dtype",
        "batch size",
        "probes/s",
        "ratio",
        "probes/CPU-s",
        "ratio",
        "memory",
        "off by",
        "changed",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for choice in tuning.choices:
        table.add_row(
            escape(choice.name) + (" (now)" if choice is now else ""),
            str(choice.compute.batch_size),
            f"{choice.speed:.1f}",
            f"{choice.speed / now.speed:.2f}",
            f"{choice.cpu:.1f}",
            f"{choice.cpu / now.cpu:.2f}",
            size(choice.memory),
            f"{choice.far:.1g}",
            f"{choice.changed} of {tuning.compared}",
        )
    console.print(table)
    for kind, why in tuning.impossible.items():
        console.print(f"not measured: {kind}: {why}", highlight=False, markup=False, soft_wrap=True)
    for choice in tuning.choices:
        if choice.tried:
            sizes = ", ".join(f"{n}: {speed:.1f}" for n, speed in choice.tried.items())
            console.print(
                f"probes/s of {choice.name} by batch size: {sizes}", highlight=False, markup=False, soft_wrap=True
            )
    best = tuning.best(settings.allow_bfloat16)
    if best is now:
        said = "stays as it is: nothing that may be taken is more than 5% faster"
    else:
        said = f"{_words(best.compute)} is {best.speed / now.speed:.1f} times as fast"
    console.print(f"{name}: {said}", highlight=False, markup=False, soft_wrap=True)
    if best.compute.backend == "openvino" and now.compute.backend != "openvino":
        console.print("who runs the audit needs it too: pip install 'faded[openvino]'", highlight=False, markup=False)
    faster = tuning.best(True)
    if faster.compute.dtype == "bfloat16" and faster is not best:
        console.print(
            f"{faster.name} is {faster.speed / best.speed:.1f} times as fast as that, but changes answers:"
            f" {faster.changed} of {tuning.compared} probes fail or pass otherwise; --allow-bfloat16 takes it",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def _words(compute: Compute) -> str:
    return f"{{backend: {compute.backend}, dtype: {compute.dtype}, batch_size: {compute.batch_size}}}"


def _write(name: str, audit: AuditConfig, best: Compute, console: Console) -> None:
    keys = ("backend", "dtype", "batch_size")
    changed = {key: getattr(best, key) for key in keys if getattr(best, key) != getattr(audit.compute, key)}
    if not changed:
        console.print("nothing to write: it is in force already", highlight=False)
        return
    if load_params(PARAMS).audit(name) != audit:
        raise UsageError(
            f"nothing written: audits.{name} was changed in {PARAMS} meanwhile; run the same command again"
        )
    write_shown(PARAMS, lambda text: with_compute(text, name, changed), console)
    console.print(f"written to {PARAMS}; see what that makes stale with `faded plan {name}`", highlight=False)
