"""Estimates of what a run would cost: probes, model calls, time and disk."""

import ast
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median
from typing import Literal

from rich.filesize import decimal

from flows.graph import SHARE, Graph, Stage
from flows.request import GATED, needs_decision, waits_for_person
from flows.results import Took, read_reference, read_took, record_timings
from flows.results.abilities import abilities_of
from flows.run_stage import StageResult
from stages.code import is_own_workspace, model_function
from stages.core.files import probe_seconds, stage_dir
from stages.core.git import git
from stages.core.intervals import wilson
from stages.params import AuditConfig, Params
from stages.records import audit_folder
from stages.tasks.account import Expected, money
from stages.tasks.load import task_class, task_context

Source = Literal["here", "probes", "reference"]
SAID: dict[Source, str] = {
    "here": "from the last run here",
    "probes": "the model's answers as timed by prepare, the rest as measured on 2 cores",
    "reference": "as measured on 2 cores",
}
FEWEST = 30  # items of a split or probes, for claims about others; with 10, an interval is about 50 points wide
_ALIKE = "mnist"  # the audit of the benchmarks whose model answers at once, so that its stages show what the rest takes
_START = "collect_feedback"  # its time is that of starting a stage, as it does little else


@dataclass(frozen=True)
class StageEstimate:
    """Estimated cost of one stage; None where nothing is known."""

    stage: Stage  # with the reasons why it is stale (none if it only depends on a stale one)
    probes: int | None  # upper bound of its unique probes; None for a stage without probes
    calls: int | None
    seconds: float | None
    source: Source | None  # where `seconds` is from, the first of SAID that is known
    size: int | None  # bytes of its outputs when it last ran
    waits: bool  # whether it needs a person's decision first


@dataclass(frozen=True)
class Note:
    """A sentence on an audit that is going to run, and whether it is a warning."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run, the free disk space in bytes, and what else there is to say before it."""

    stages: list[StageEstimate]
    free: int
    notes: tuple[Note, ...] = ()

    @property
    def probes(self) -> int:
        """Upper bound of the unique probes of all stages."""
        return sum(e.probes or 0 for e in self.stages)

    @property
    def time(self) -> str:
        """How long it would take, and how this was estimated."""
        known = [e for e in self.stages if e.seconds is not None]
        count = sum(e.stage.kind == SHARE for e in self.stages)
        shares = f"; the {count} shares may run side by side" if count > 1 else ""
        if not self.stages:
            return "nothing to run"
        kinds = {e.stage.kind for e in self.stages}
        if not known:
            return f"time unknown{' until prepare has run' * ('prepare' in kinds)}{shares}"
        unknown = len(self.stages) - len(known)
        sources = {e.source for e in known}
        source = ", ".join(said for name, said in SAID.items() if name in sources)
        more = f"; unknown for {unknown} more stage(s)" if unknown else ""
        if any(e.stage.kind == "restructure" and e.seconds is None for e in self.stages):
            more += ", including the repair's training, which may take longer than everything else"
        return f"about {duration(sum(e.seconds or 0 for e in known))} ({source}){more}{shares}"


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{seconds:.0f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def estimate_cost(params: Params, graph: Graph, audits: Collection[str]) -> Estimate:
    """Estimate the cost of running these audits now.

    Raises a UsageError if a search is to be divided into more shares than its items or probes allow.
    """
    timings, reference = read_took(), read_reference()
    # How many times longer stages take here than on the benchmarks' machine. Only runs with equal work count, as a
    # larger budget does not make a machine slow.
    both = [(took, reference[name]) for name, took in timings.items() if name in reference]
    paces = [here.seconds / there.seconds for here, there in both if there.seconds and here.work == there.work]
    pace = median(paces) if paces else 1.0
    own = is_own_workspace()  # whose audits are none of the reference, even if they have the same name
    paced = {name: pace * took.seconds for name, took in reference.items()}
    todo = graph.to_do(audits)
    stale = {stage.name for stage in todo}
    for audit in sorted({stage.audit for stage in todo if stage.kind == SHARE}):
        if f"prepare@{audit}" not in stale:  # otherwise its items may still change
            from flows.places.shard import check_division  # loads torch

            config = params.audits[audit]
            check_division(audit, config, config.discover.shards)
    stages = []
    for stage in todo:
        probes = probes_of(params, stage)
        calls = ceil(probes / params.audits[stage.audit].compute.batch_size) if probes else None
        # A stale landscape may change, and nobody has decided on the new one.
        undecided = needs_decision(params, stage.audit) is not None or f"summarize@{stage.audit}" in stale
        waits = stage.kind == GATED and waits_for_person(params, stage.audit) and undecided
        # If prepare is stale, its measurement is of another model.
        each = None if f"prepare@{stage.audit}" in stale else probe_seconds(stage.audit)
        # The reference search was not divided, joining shares takes less; a training depends on the model.
        unlike = stage.kind == "restructure" or divided(params, stage)
        beside = 0.0 if unlike else paced.get(f"{stage.kind}@{_ALIKE}", 0.0)
        told: dict[Source, float | None] = {
            "here": _scaled(params, stage, timings),
            "probes": (each * (probes or 0) + beside or None) if each else None,
            "reference": None if divided(params, stage) or own else paced.get(stage.name),
        }
        source = next((name for name, seconds in told.items() if seconds is not None), None)
        seconds = told[source] if source else None
        stages.append(StageEstimate(stage, probes, calls, seconds, source, stage.size, waits))
    return Estimate(stages, shutil.disk_usage(Path()).free)


def _scaled(params: Params, stage: Stage, timings: Mapping[str, Took]) -> float | None:
    """A stage's duration by its last run here, scaled to how much it has to do now."""
    if (last := timings.get(stage.name)) is None:
        return None
    work = work_of(params, stage)
    if not work or not last.work:
        return last.seconds
    starts = [took.seconds for name, took in timings.items() if name.startswith(f"{_START}@")]
    start = min([last.seconds, *starts]) if starts else 0.0
    return start + (last.seconds - start) * work / last.work


def warnings_of(name: str, audit: AuditConfig) -> list[str]:
    """What is doubtful about an audit, by its parameters and the code that they name."""
    few = supports_no_claim(audit.prepare, audit.discover.budget)
    told = _unwatched_files(name, audit), few, _ignored_by_git(stage_dir(name, "decisions"))
    return [f"{name}: {line}" for line in told if line is not None]


def _ignored_by_git(decisions: Path) -> str | None:
    if git("check-ignore", "--quiet", "--no-index", str(decisions)) is None:
        return None
    return f"git ignores {decisions}, so no decision would be committed; `git check-ignore -v {decisions}` says why"


def _unwatched_files(name: str, audit: AuditConfig) -> str | None:
    """Say which files the module of a user's function or task mentions although changes to them make nothing stale."""
    module = Path(*(model_function(audit) or audit.task).partition(":")[0].split(".")).with_suffix(".py")
    try:
        nodes = list(ast.walk(ast.parse(module.read_bytes())))
    except (OSError, SyntaxError, ValueError):  # none of a user's, or whatever imports it reports the error
        return None
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    files = sorted(text for text in texts if os.path.isfile(module.parent / text))  # noqa: PTH113 a text may be too long
    watched = stage_dir(name, "inputs")
    found = [file for file in files if not Path(module.parent, file).absolute().is_relative_to(watched.absolute())]
    said = f"{module} mentions files outside {watched} ({', '.join(found)}): changes to them make no result stale"
    return f"{said}, so move there what the model reads" if found else None


def supports_no_claim(prepare: Mapping[str, object], budget: int | None = None) -> str | None:
    """Say that an audit's items, or the probes of its budget, are too few for claims about others; None if enough."""
    items = prepare.get("items")
    counts = items if isinstance(items, Mapping) else {}
    asked = {f"{split} item": counts.get(split) for split in ("discover", "test")} | {"probe": budget}
    few = {what: n for what, n in asked.items() if isinstance(n, int) and 0 < n < FEWEST}
    if not few:
        return None
    n = min(few.values())
    example = wilson(max(1, n // 5), n)
    told = " and ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in few.items())
    return (
        f"{told} support no claim about others: {example.value:.0%} of {n} has a 95% interval from {example.low:.0%} to"
        f" {example.high:.0%}; {FEWEST} or more are expected"
    )


def record_run(params: Params, todo: Sequence[Stage], results: Sequence[StageResult]) -> None:
    """Store how long the stages of a run took, and how much they had to do."""
    record_timings(results, {stage.name: work for stage in todo if (work := work_of(params, stage))})


def work_of(params: Params, stage: Stage) -> float | None:
    """How much a stage has to do: its unique probes, or the examples that a repair is trained on.

    None if this is unknown or does not depend on params.yaml alone.
    """
    if stage.kind != "restructure" or stage.audit not in params.repairs:
        return probes_of(params, stage)
    repair = params.repairs[stage.audit].restructure
    items = params.audits[stage.audit].prepare.get("items")
    count = items.get("repair") if isinstance(items, dict) else None
    epochs = repair.settings.get("epochs", 1) * count if isinstance(count, int) else None
    size = repair.settings.get("steps") or epochs
    copies = 1 if repair.control == "none" else 2
    return size * repair.trainings * copies if isinstance(size, int | float) else None


def backend_line(params: Params, graph: Graph, name: str, *, here: bool) -> str | None:
    """The backend of an audit's network, and why; None if `compute.backend: auto` does not have to choose."""
    audit = params.audit(name)
    if audit.compute.backend != "auto":
        return None
    if not graph.stages[f"prepare@{name}"].stale:
        prepared = audit_folder(name).prepare.provenance
        return f"{name}: backend: {prepared.backend_said}" if prepared.backend_auto else None
    task = task_class(name, audit)
    if len(task.backends) == 1:
        return None
    why = task.only_eager(task_context(name, audit)) if here else ""
    return f"{name}: backend: eager (auto: {why})" if why else f"{name}: backend: auto, which prepare settles"


def requests_line(params: Params, graph: Graph, name: str) -> str | None:
    """Expected cost of requests to services that count tokens, and their cost so far; None without such services."""
    audit = params.audit(name)
    task, context = task_class(name, audit), task_context(name, audit)
    services = {name: task.expected_requests(context), f"{name}, judge": task.expected_judgements(context)}
    told = [_requests(params, graph, name, who, each) for who, each in services.items() if each is not None]
    return "\n".join(told) or None


def _requests(params: Params, graph: Graph, name: str, who: str, expected: Expected) -> str:
    """The same for one service, which the line calls `who`."""
    todo = graph.to_do([name])
    can, probes = abilities_of(params, name), dict[str, int]()
    for stage in todo:
        probes[stage.kind] = probes.get(stage.kind, 0) + (probes_of(params, stage) or 0)
    preparing = expected.preparing if "prepare" in probes else 0
    usual = preparing + expected.by_probe * sum((probes | {"restructure": can.usual_repair_probes or 0}).values())
    if who == name:
        probes |= {kind: can.requests_after * probes.get(kind, 0) for kind in ("restructure", "re_evaluate")}
    requests = preparing + expected.by_probe * sum(probes.values())
    prompt, completion, price = requests * expected.prompt, requests * expected.completion, expected.price
    told = f"{who}: at most {requests:,} requests"
    if can.usual_repair_probes and "restructure" in probes:
        told += f" (about {usual:,} if one change of the prompt helps and breaks little)"
    told += f", {prompt:,.0f} prompt and {completion:,.0f} completion tokens"
    told += f" (by {expected.measured:,} so far" if expected.measured else " (a guess from the length of the texts"
    told += "; what was already answered is not requested again)" if expected.bill.requests else ")"
    if price is not None:
        told += f", cost about {money(price.of(prompt, completion))}"
    if expected.bill.requests:
        told += f". So far: {expected.bill}"
    if price is not None and expected.max_cost is not None:
        spent = expected.bill.cost
        told += f". {money(spent)} of max_cost {expected.max_cost:g} is spent"
        told += ", and this may reach it" if spent + price.of(prompt, completion) >= expected.max_cost else ""
    return told


def processes_line(params: Params, graph: Graph, name: str) -> str | None:
    """How many processes may answer probes, each with a copy of the model; None if only one may, or none will."""
    if graph.stages[f"prepare@{name}"].stale or not any(probes_of(params, stage) for stage in graph.to_do([name])):
        return None
    prepared = audit_folder(name).prepare.path
    processes = task_context(name, params.audit(name), prepared).compute.processes
    size = sum(path.stat().st_size for path in (prepared / "model").rglob("*") if path.is_file())
    each = f"each with a copy of the model ({decimal(size)} on disk)"
    return f"{name}: up to {processes} processes answer probes at once, {each}" if processes > 1 else None


def plan_run(params: Params, graph: Graph, audits: Sequence[str], *, here: bool) -> Estimate:
    """The cost of running audits now, with notes: backends, paid requests, processes, and what items can show."""
    from flows.results.power import what_can_be_shown, what_gates_leave_open

    notes: list[Note] = []
    for name in audits:
        lines = [backend_line(params, graph, name, here=here), requests_line(params, graph, name)]
        lines += [processes_line(params, graph, name)] if here else []
        notes += [Note(line) for line in lines if line is not None]
        notes += [Note(line, warning=True) for line in warnings_of(name, params.audits[name])]
        if graph.to_do([name]):
            notes += map(Note, what_can_be_shown(params, name))
        notes += map(Note, what_gates_leave_open(params, name))
    return replace(estimate_cost(params, graph, audits), notes=tuple(notes))


def divided(params: Params, stage: Stage) -> bool:
    """Whether the stage joins the shares of a search instead of searching."""
    return stage.kind == "discover" and params.audits[stage.audit].discover.shards > 1


def probes_of(params: Params, stage: Stage) -> int | None:
    """Unique probes that a stage may spend, by params.yaml alone; a grid smaller than the budget needs fewer."""
    if (audit := params.audits.get(stage.audit)) is None:
        return None
    fresh = 2 * audit.discover.kept_back
    search = 2 * audit.discover.budget - fresh  # the explorer and its control
    shards = audit.discover.shards
    if stage.kind == SHARE:
        part = int(stage.name.rpartition("-")[2])  # items are divided as evenly, so this is off by a few probes only
        return 2 * (search // 2 * part // shards - search // 2 * (part - 1) // shards)
    if stage.kind == "discover":
        return (0 if divided(params, stage) else search) + audit.discover.microscopic_budget
    if stage.kind == "summarize":
        return fresh  # to confirm modes
    if stage.kind == "restructure" and stage.audit in params.repairs:
        return abilities_of(params, stage.audit).repair_probes
    return _probes_to_judge(params, stage.audit, search) if stage.kind == "re_evaluate" else None


def _probes_to_judge(params: Params, audit: str, search: int) -> int | None:
    """Unique probes of re_evaluate, which searches before and after the repair; None without a repair."""
    if (repair := params.repairs.get(audit)) is None:
        return None
    models = 2 if repair.restructure.control == "none" else 3
    pairs, clean = 2 * repair.re_evaluate.paired_probes, 0
    can = abilities_of(params, audit)
    models += can.again  # the model before
    items = params.audits[audit].prepare.get("items")  # defined by the task, so not necessarily counts by split
    if can.measure and isinstance(items, dict) and isinstance(items.get("test"), int):
        clean = items["test"]
    # Every model answers the pairs inside and outside the target modes, and all trainings fewer of both, the whole way
    # and half-way.
    trained = repair.restructure.judged_models
    return 2 * search + models * (pairs + clean) + 2 * trained * repair.re_evaluate.dose_pairs
