"""Loads an audit's prepared model with each choice, and times and compares them."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import ceil

import numpy as np
import psutil

from flows.choosing.tune.choices import COMPARED, MOST, Choice, Settings
from stages.environment import torch_threads
from stages.errors import UsageError
from stages.files import stage_dir
from stages.params import AuditConfig
from stages.ratings import rated
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute, TaskContext
from stages.tasks.load import task_class, task_context


class Bench:
    """The prepared model of an audit, once for each open choice, and probes for it."""

    def __init__(self, name: str, audit: AuditConfig, settings: Settings) -> None:
        self.name, self.audit, self.settings = name, audit, settings
        self.context: TaskContext = task_context(name, audit, stage_dir(name, "prepare"))
        self.cls = task_class(name, audit)
        self.backends: Sequence[str] = self.cls.backends
        self.limit = settings.memory * _memory(self.context.compute.device)
        self._errors = set(self.cls.check(self.context))
        # By id of a choice: the task, and the same task with people's ratings applied.
        self._open: dict[int, tuple[LoadedTask, LoadedTask]] = {}
        self._probes: tuple[list[str], np.ndarray] | None = None

    def refuse(self, compute: Compute) -> None:
        """Raise the task's own errors if it does not accept a choice."""
        errors = [e for e in self.cls.check(replace(self.context, compute=compute)) if e not in self._errors]
        if errors:
            raise UsageError("; ".join(errors))

    def open(self, choice: Choice) -> Choice:
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

    def close(self, choice: Choice | None = None) -> None:
        """Release a choice's model, or all."""
        if choice is None:
            self._open.clear()
        else:
            del self._open[id(choice)]
        gc.collect()

    def rounds(self, choices: Sequence[Choice]) -> None:
        """Time passes of all choices in turns."""
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
        """Measure each choice's largest deviation from torch in float32, and how many verdicts change from the first's.

        Args:
            choices: the open choices; the first is the current one.
            reference: torch in float32.
        """
        base = next((c for c in choices if (c.compute.backend, c.compute.dtype) == ("eager", "float32")), None)
        if base is None:
            base = self.open(Choice(reference))
        values, _ = self._answers(base)
        answers = [self._answers(choice) for choice in choices]
        _, now = answers[0]
        for choice, (own, failed) in zip(choices, answers, strict=True):
            choice.far, choice.changed = float(np.abs(own - values).max()), int((failed != now).sum())

    @property
    def compared(self) -> int:
        """Number of probes that are compared."""
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

    def _ask(self, choice: Choice, batches: int) -> int:
        """Run whole batches like discover, from the first probe on; return the number of probes."""
        items, cells = self.probes
        task, n = self._open[id(choice)][1], choice.compute.batch_size
        with torch_threads(choice.compute.threads):
            for batch in range(batches):
                start = batch * n % (len(items) - n + 1)
                task.probe(items[start : start + n], cells[start : start + n])
        return batches * n

    def _answers(self, choice: Choice) -> tuple[np.ndarray, np.ndarray]:
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
