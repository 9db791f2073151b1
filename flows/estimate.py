"""What a run would cost, before anything runs: probes, model calls, time and disk."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

from flows.graph import SHARE, Graph, Stage
from flows.request import GATED, needs_decision, waits_for_person
from flows.results import REFERENCE, TIMINGS, read_timings
from stages.files import probe_seconds
from stages.params import Params
from stages.records import audit_folder
from stages.tasks.base import offers
from stages.tasks.load import task_class, task_context

Source = Literal["here", "probes", "reference"]
SAID: dict[Source, str] = {
    "here": "by the last run here",
    "probes": "by what a probe took in prepare",
    "reference": "as measured on 2 cores",
}


@dataclass(frozen=True)
class StageEstimate:
    """What one stage would cost.

    Args:
        stage: the stage, with the reasons why it is stale (none if it only depends on a stale one).
        probes: unique probes at most; None for a stage that probes nothing.
        calls: batched model calls for them.
        seconds: how long it would take, None if nothing tells.
        source: what tells: what it took when it last ran here, else the probes at what `prepare` measured of one, else
            what it took on the machine of the benchmarks.
        size: bytes of its outputs when it last ran, None if it never did.
        waits: it needs a person's decision first.
    """

    stage: Stage
    probes: int | None
    calls: int | None
    seconds: float | None
    source: Source | None
    size: int | None
    waits: bool


@dataclass(frozen=True)
class Estimate:
    """What a run would cost, and the disk space there is (bytes)."""

    stages: list[StageEstimate]
    free: int

    @property
    def probes(self) -> int:
        """Unique probes of all stages, at most."""
        return sum(e.probes or 0 for e in self.stages)

    @property
    def time(self) -> str:
        """How long it would take, and how that is known."""
        known = [e for e in self.stages if e.seconds is not None]
        count = sum(e.stage.kind == SHARE for e in self.stages)
        shares = f"; the {count} shares may run side by side" if count > 1 else ""
        if not known:
            before = " before prepare ran" if any(e.stage.kind == "prepare" for e in self.stages) else ""
            return f"time unknown{before}, {len(self.stages)} stage(s) never ran here{shares}"
        unknown = len(self.stages) - len(known)
        sources = {e.source for e in known}
        source = ", ".join(said for name, said in SAID.items() if name in sources)
        more = f"; {unknown} stage(s) never ran here" if unknown else ""
        if any(e.stage.kind == "restructure" and e.seconds is None for e in self.stages):
            more += ", including the repair's training, which may take longer than everything else"
        return f"about {duration(sum(e.seconds or 0 for e in known))} ({source}){more}{shares}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def estimate(params: Params, graph: Graph, audits: Collection[str]) -> Estimate:
    """Estimate what running these audits now would cost.

    Raises:
        UsageError: when a search is to be divided among more shares than its items or probes allow.
    """
    timings, reference = read_timings(TIMINGS), read_timings(REFERENCE)
    todo = graph.to_do(audits)
    stale = {stage.name for stage in todo}
    for audit in sorted({stage.audit for stage in todo if stage.kind == SHARE}):
        if f"prepare@{audit}" not in stale:  # else its items may yet be others
            from flows.shard import check_division  # which loads torch

            config = params.audits[audit]
            check_division(audit, config, config.discover.shards)
    stages = []
    for stage in todo:
        probes = probes_of(params, stage)
        calls = ceil(probes / params.audits[stage.audit].compute.batch_size) if probes else None
        # A stale landscape may yet become another one, on which nobody has decided.
        undecided = needs_decision(params, stage.audit) is not None or f"summarize@{stage.audit}" in stale
        waits = stage.kind == GATED and waits_for_person(params, stage.audit) and undecided
        # What prepare measured is of another model if prepare is stale.
        each = None if f"prepare@{stage.audit}" in stale else probe_seconds(stage.audit)
        told: dict[Source, float | None] = {
            "here": timings.get(stage.name),
            "probes": probes * each if probes and each else None,
            # Of a search that was not divided: what puts shares together takes less.
            "reference": None if divided(params, stage) else reference.get(stage.name),
        }
        source = next((name for name, seconds in told.items() if seconds is not None), None)
        seconds = told[source] if source else None
        stages.append(StageEstimate(stage, probes, calls, seconds, source, stage.size, waits))
    return Estimate(stages, shutil.disk_usage(Path()).free)


def backend_line(params: Params, graph: Graph, name: str, *, here: bool) -> str | None:
    """What runs an audit's network, and why; None where `compute.backend: auto` leaves nothing to settle.

    Args:
        params: of the workspace.
        graph: its stages.
        name: of the audit.
        here: whether stages run on this machine.
    """
    audit, prepare = params.audit(name), graph.stages[f"prepare@{name}"]
    task = task_class(name, audit)
    if audit.compute.backend != "auto" or len(task.backends) == 1:
        return None
    if not prepare.stale:
        return f"{name}: backend: {audit_folder(name).prepare.provenance.backend_said}"
    why = task.only_eager(task_context(name, audit)) if here else ""
    return f"{name}: backend: eager (auto: {why})" if why else f"{name}: backend: auto, which prepare settles"


def processes_of(params: Params, graph: Graph, name: str) -> tuple[int, int] | None:
    """How many processes answer at most, and bytes of the model's files, of which each has a copy in memory.

    None where no stage that is to run asks the model, or prepare has yet to write it.
    """
    if graph.stages[f"prepare@{name}"].stale or not any(probes_of(params, stage) for stage in graph.to_do([name])):
        return None
    prepared = audit_folder(name).prepare.path
    files = (path for path in (prepared / "model").rglob("*") if path.is_file())
    return task_context(name, params.audit(name), prepared).compute.processes, sum(f.stat().st_size for f in files)


def divided(params: Params, stage: Stage) -> bool:
    """Whether the stage puts the shares of a search together instead of searching."""
    return stage.kind == "discover" and params.audits[stage.audit].discover.shards > 1


def probes_of(params: Params, stage: Stage) -> int | None:
    """Unique probes a stage may spend, by params.yaml alone; a grid smaller than the budget needs fewer."""
    if stage.audit not in params.audits:
        return None
    audit = params.audits[stage.audit]
    fresh = 2 * audit.discover.kept_back
    search = 2 * audit.discover.budget - fresh  # the explorer and its control
    shards = audit.discover.shards
    if stage.kind == SHARE:
        part = int(stage.name.rpartition("-")[2])  # items are divided as evenly, so this is right but for a few probes
        return 2 * (search // 2 * part // shards - search // 2 * (part - 1) // shards)
    if stage.kind == "discover":
        return (0 if divided(params, stage) else search) + audit.discover.microscopic_budget
    if stage.kind == "summarize":
        return fresh  # those that confirm modes
    if stage.kind == "re_evaluate" and stage.audit in params.repairs:
        repair = params.repairs[stage.audit]
        models = 2 if repair.restructure.control == "none" else 3
        pairs, clean = 2 * repair.re_evaluate.paired_probes, 0
        task = task_class(stage.audit, audit)
        models += offers(task, "again")  # the one before
        if offers(task, "measure"):
            items = audit.prepare.get("items")  # the task's own: it need not be counts by split
            clean = items["test"] if isinstance(items, dict) and isinstance(items.get("test"), int) else 0
        doses = repair.restructure.doses.values()
        trained = 1 + repair.restructure.trainings * sum(map(len, doses)) if doses else 0  # and the model before
        # Before and after are both searched; every model answers the pairs inside and outside the target modes, and
        # every trained model those of three parts.
        return 2 * search + models * (pairs + clean) + 3 * trained * repair.re_evaluate.dose_pairs
    return None
