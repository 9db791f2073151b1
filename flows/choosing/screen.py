"""`faded screen`, and the sweep of `faded init`: probe each concept of an audit alone, and show what was found."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape

import stages.screening
from flows.choosing import healed_audit, run_prepare
from flows.results.estimate import duration
from flows.terminal import new_table, print_plain
from stages.code import code_of
from stages.concepts import Level
from stages.core.environment import WORK
from stages.core.errors import UsageError, escape_controls
from stages.core.files import content_hash, probe_seconds, record_probe_seconds, replace_file, scratch, stage_dir
from stages.core.progress import progress
from stages.params import AuditConfig, Params
from stages.provenance import prepared_files, run_key
from stages.ratings import rated
from stages.screening.sweep import ConceptSweep, Sweep, Verdict, sweep
from stages.tasks.base import LoadedTask
from stages.tasks.load import load_alone, task_class, task_context

PROBES = (500, 4000)  # as many as take about SECONDS, within these bounds
SECONDS = 60.0
_BARS = "▁▂▃▄▅▆▇█"
_WARM, _TIMED = 1, 2  # batches
_CODE = Path(stages.screening.__file__).parent
_VERDICT_STYLE: dict[Verdict, str] = {"effect": "green", "no larger effect": "yellow", "not known": "dim"}


def screen_audit(params: Params, name: str, probes: int | None, console: Console) -> None:
    """Probe each concept of an audit alone, and print the failures and effects; also write them as a page.

    Raises a UsageError if there are too few probes for the concepts, and a FadedError if the model under test cannot be
    prepared.
    """
    found, _ = sweep_concepts(params, name, probes, console)
    show_sweep(console, name, found, WORK / "screen" / f"{name}.html")
    console.print(f"{found.probes:,} unique probes spent")


def sweep_concepts(params: Params, name: str, probes: int | None, console: Console) -> tuple[Sweep, float]:
    """Prepare the model and its items, and sweep the audit's concepts; also return the seconds that a probe takes.

    Raises a UsageError if there are too few probes for the concepts, and a FadedError if the model or the data cannot
    be prepared.

    Args:
        probes: largest number of unique probes; None to derive it from the duration of a probe.
    """
    with healed_audit(params, name, console) as audit:
        run_prepare(name, console)
        seconds = _seconds_of_probe(name, audit)
        most = probes or int(np.clip(SECONDS / seconds, *PROBES))
        console.print(
            f"each concept alone: {most:,} probes at most, about {duration(most * seconds)}, as a probe takes"
            f" {said_of_probe(seconds)}"
        )
        return _sweep(name, audit, most), seconds


def _sweep(name: str, audit: AuditConfig, most: int) -> Sweep:
    """Sweep the prepared model of an audit; a run with the same settings resumes."""
    prepared, cls = stage_dir(name, "prepare"), task_class(name, audit)
    context = task_context(name, audit, prepared)

    def load(levels: Mapping[str, Sequence[Level]]) -> LoadedTask:
        other = replace(context, concepts={concept: list(values) for concept, values in levels.items()})
        if errors := cls.check(other):
            raise UsageError("the task refuses levels it was to be tried at:\n" + "\n".join(errors))
        return rated(cls.load(other, prepared), name, audit)

    key = run_key(audit, [*prepared_files(prepared), _CODE], code_of(audit, "discover"), {})
    with scratch(name, "sweep", key) as folder, progress(f"sweep@{name}", most) as tell:
        return sweep(
            load,
            audit.concepts,
            most,
            seed=audit.seed,
            ledger=lambda levels: folder / f"{content_hash([], levels)}.jsonl",
            compute=context.compute,
            tell=tell,
        )


def _seconds_of_probe(name: str, audit: AuditConfig) -> float:
    """Return the duration of a probe in whole batches; measured here if `prepare` did not."""
    if (known := probe_seconds(name)) is not None:
        return known
    prepared = stage_dir(name, "prepare")
    task = load_alone(name, audit, prepared)
    ids, rng = task.items.ids("discover"), np.random.default_rng(audit.seed)
    size = task_context(name, audit, prepared).compute.batch_size
    began = time.perf_counter()
    for batch in range(_WARM + _TIMED):
        if batch == _WARM:
            began = time.perf_counter()
        chosen = [ids[i] for i in rng.integers(len(ids), size=size)]
        task.probe(chosen, task.concepts.sample(size, rng))
    seconds = (time.perf_counter() - began) / (_TIMED * size)
    record_probe_seconds(name, seconds)
    return seconds


def said_of_probe(seconds: float) -> str:
    """Return the duration of a probe in words."""
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def show_sweep(console: Console, name: str, found: Sweep, page: Path) -> None:
    """Print the failures with each concept alone, and write the table as a page."""
    title = f"Failures of {name} with one concept changed, on {found.said}"
    shown = new_table("concept", "level: failures", "change of the discrepancy", "fails clearly more", title=title)
    for concept in found.concepts:
        levels = [(escape(concept.labels[i]), concept.rates[i]) for i in concept.others]
        curve = "  ".join(
            f"{label}:{rate.value:.0%}{_BARS[min(7, int(8 * rate.value))]}" if rate.n else f"{label}:not probed"
            for label, rate in levels
        )
        worst = ""
        if (one := concept.worst) is not None:
            worst = f"{one.attribute} {one.value} at {one.level}: {one.rate.value:.0%} of {one.rate.n}"
            worst += f", others {one.others.value:.0%}"
        shown.add_row(escape(concept.name), curve, _effect(concept), escape(escape_controls(worst)))
    console.print(shown)
    for concept in found.concepts:
        if concept.finer:
            told = f"{concept.name}: finer levels, because its weakest one broke nearly everything"
            print_plain(console, told, style="yellow")
    wide = Console(record=True, width=180, file=io.StringIO())
    wide.print(shown)
    replace_file(page, wide.export_html().encode())
    print_plain(console, f"the same as a page: {page}", style="dim")


def _effect(concept: ConceptSweep) -> str:
    """The verdict on a concept, with its largest change of the discrepancy if that is certain."""
    style = _VERDICT_STYLE[concept.verdict]
    if concept.verdict != "effect":
        return f"[{style}]{concept.verdict}[/]"
    certain = [i for i in concept.others if concept.changes[i].low > 0 or concept.changes[i].high < 0]
    at = max(certain, key=lambda i: abs(concept.changes[i].value))
    change = concept.changes[at]
    text = f"{change.value:+.2g} ({change.low:+.2g} to {change.high:+.2g}) at {concept.labels[at]}"
    return f"[{style}]{escape(text)}[/]"
