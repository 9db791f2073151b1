"""`faded screen`: screen the concepts of an audit, record the result, and on request write levels to params.yaml."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from rich.console import Console

import stages.screening
from flows.edit_params import with_levels
from flows.estimate import SAID, duration
from flows.graph import SHARE, Graph, read_graph
from flows.heal import heal
from flows.processes import stopping_on_signals
from flows.results import REFERENCE, TIMINGS, read_timings, record_timings
from flows.run_stage import run_stage
from flows.views import show_screening
from flows.workspace import exclusive
from flows.yaml_edit import edit_file
from stages.check import check_audits, check_keys
from stages.code import code_of
from stages.concepts import Level
from stages.environment import WORK
from stages.errors import UsageError
from stages.files import content_hash, probe_seconds, read_json, read_state, scratch, stage_dir, write_state
from stages.ledger import Ledger
from stages.params import AuditConfig, Params, load_params, validation_lines
from stages.progress import progress
from stages.provenance import prepared_files, run_key
from stages.ratings import rated
from stages.records import audit_folder
from stages.screening import Screening, ScreenSettings
from stages.tasks.base import LoadedTask
from stages.tasks.contract import Compute
from stages.tasks.load import task_class, task_context

RECORDS = WORK / "screen"
PARAMS = Path("params.yaml")
_CODE = Path(stages.screening.__file__).parent


class Record(BaseModel):
    """A screening as stored under .faded/screen.

    Args:
        screened: key of the model, items and concepts that were screened.
        proposed: key of the same model and items with the proposed concepts.
        when: seconds since 1970.
        screening: the result.
    """

    screened: str
    proposed: str
    when: float
    screening: Screening


def screen_audit(params: Params, name: str, probes: int | None, write: bool, console: Console) -> None:
    """Screen the concepts of an audit, print and record the result, and on request write the proposed levels.

    Raises:
        UsageError: if a setting is wrong, or the proposal cannot be written.
        FadedError: if the model under test cannot be prepared.
    """
    with exclusive():
        screening = measure_concepts(params, name, probes, console)
        show_screening(console, name, screening)
        if write:
            _write_levels(name, params.audit(name), screening, console)


def measure_concepts(params: Params, name: str, probes: int | None, console: Console) -> Screening:
    """Screen the concepts of an audit and record the result; the caller has to hold the workspace lock.

    Args:
        params: params.yaml.
        name: name of the audit.
        probes: maximum number of unique probes; None for the default.
        console: where to print progress.

    Raises:
        UsageError: if a setting is wrong.
        FadedError: if the model under test cannot be prepared.
    """
    settings = screen_settings(probes)
    audit = healed_audit(params, name, console)
    with stopping_on_signals():
        bring_up_to_date(read_graph(), f"prepare@{name}", console)
        screening = _screen(name, audit, settings, console, at_least=probes is None)
    concepts = {concept.name: concept.levels for concept in screening.concepts}
    screened, proposed = _key(name, audit, concepts), _key(name, audit, screening.grid)
    record = Record(screened=screened, proposed=proposed, when=time.time(), screening=screening)
    write_state(RECORDS / f"{name}.json", record)
    return screening


def read_screening(params: Params, graph: Graph, name: str) -> tuple[Record, bool] | None:
    """Read the last screening of an audit, if it matches the current model, items and concepts.

    Returns:
        The record, and whether the current concepts are those it proposed; None if there is none, or it is stale.
    """
    stage = graph.stages.get(f"prepare@{name}")
    if stage is None or stage.stale or (record := read_state(RECORDS / f"{name}.json", Record)) is None:
        return None
    try:
        key = _key(name, params.audit(name), params.audit(name).concepts)
    except UsageError:  # nothing is prepared
        return None
    return (record, key == record.proposed) if key in (record.screened, record.proposed) else None


def screen_settings(probes: int | None) -> ScreenSettings:
    """Return the settings with this number of probes; None for the default.

    Raises:
        UsageError: if these are too few.
    """
    try:
        return ScreenSettings() if probes is None else ScreenSettings(probes=probes)
    except ValidationError as error:
        raise UsageError("; ".join(f"--{line}" for line in validation_lines(error, ScreenSettings))) from None


def healed_audit(params: Params, name: str, console: Console) -> AuditConfig:
    """Heal the workspace, print what was healed, and return a valid audit; the caller has to hold the workspace lock.

    Raises:
        UsageError: if params.yaml has errors that a stage would find later.
    """
    for line in heal():
        console.print(f"healed: {line}", highlight=False)
    check_audits(params, [name])
    check_keys(params, [name])
    return params.audit(name)


def bring_up_to_date(graph: Graph, name: str, console: Console) -> None:
    """Run a stage and its upstream stages if they are stale."""
    if name not in graph.stages:
        raise UsageError(f"dvc.yaml has no stage {name}")
    wanted = graph.upstream([name])
    for stage in wanted.downstream(stage.name for stage in wanted if stage.stale):
        console.print(f"{stage.name} is not up to date, so it runs first", highlight=False)
        record_timings([run_stage(stage.name, lambda line: console.print(line, markup=False, highlight=False))])


def _screen(name: str, audit: AuditConfig, settings: ScreenSettings, console: Console, *, at_least: bool) -> Screening:
    from stages.screening.first_pass import fewest_probes, screen

    if (clean := clean_accuracy(name)) is not None:
        settings = settings.beyond(1 - clean)
    with probing(name, audit, "screen", settings.model_dump()) as place:
        own = place.load(audit.concepts)
        if at_least:
            fewest = fewest_probes(own.concepts.concepts)
            settings = settings.model_copy(update={"probes": max(settings.probes, fewest)})
        calls = ceil(settings.probes / place.compute.batch_size)
        console.print(
            f"screening {name}: {settings.probes:,} unique probes at most ({calls:,} model calls); "
            f"{probes_time(name, audit, settings.probes)}",
            highlight=False,
        )
        with progress(f"screen@{name}", settings.probes) as tell:
            return screen(
                lambda levels: own if levels is audit.concepts else place.load(levels),
                audit.concepts,
                settings,
                seed=audit.seed,
                ledger=place.ledger,
                compute=place.compute,
                tell=tell,
                droppable=not task_class(name, audit).needs_all_concepts,
            )


@dataclass(frozen=True)
class Place:
    """Where concepts are probed that are not yet those of the audit.

    Args:
        load: loads the prepared task with other levels.
        ledger: opens the ledger of these levels, from which a run with the same settings resumes.
        compute: threads and batch size.
    """

    load: Callable[[Mapping[str, Sequence[Level]]], LoadedTask]
    ledger: Callable[[Mapping[str, Sequence[Level]]], Ledger]
    compute: Compute


@contextmanager
def probing(name: str, audit: AuditConfig, purpose: str, settings: Mapping[str, Any]) -> Iterator[Place]:
    """Open a place to probe the prepared model of an audit with any levels.

    Raises:
        UsageError: by `load`, if the task refuses levels.
    """
    prepared, cls = stage_dir(name, "prepare"), task_class(name, audit)
    context = task_context(name, audit, prepared)

    def load(levels: Mapping[str, Sequence[Level]]) -> LoadedTask:
        other = replace(context, concepts={concept: list(values) for concept, values in levels.items()})
        if errors := cls.check(other):
            raise UsageError("the task refuses levels it was to be tried at:\n" + "\n".join(errors))
        return rated(cls.load(other, prepared), name, audit)

    key = run_key(audit, [*prepared_files(prepared), _CODE], code_of(audit, "discover"), settings)
    with ExitStack() as stack:
        folder = stack.enter_context(scratch(name, purpose, key))

        def ledger(levels: Mapping[str, Sequence[Level]]) -> Ledger:
            opened = Ledger(folder / f"{content_hash([], levels)}.jsonl")
            stack.callback(opened.close)
            return opened

        yield Place(load, ledger, context.compute)


def probes_time(name: str, audit: AuditConfig, probes: int) -> str:
    """Estimate how long these probes take, from the last search, the measurement of prepare or reference timings."""
    searched = 2 * (audit.discover.budget - audit.discover.kept_back) + audit.discover.microscopic_budget
    if (seconds := _search_seconds(TIMINGS, name, audit)) is not None:
        return f"about {duration(seconds * probes / searched)} from the last search here"
    if (each := probe_seconds(name)) is not None:
        return f"about {duration(each * probes)} {SAID['probes']}"
    if (seconds := _search_seconds(REFERENCE, name, audit)) is not None:
        return f"about {duration(seconds * probes / searched)} {SAID['reference']}"
    return "time unknown, nothing was searched here yet"


def clean_accuracy(name: str) -> float | None:
    """Return the model's accuracy on unchanged discover items, if `prepare` measured it."""
    measured = read_json(stage_dir(name, "prepare") / "metrics.json").get("clean_accuracy")
    return measured.get("discover") if isinstance(measured, Mapping) else None


def _search_seconds(path: Path, name: str, audit: AuditConfig) -> float | None:
    """Return the duration of a search including all its shares; None if one of them is not known."""
    timings, shards = read_timings(path), audit.discover.shards
    shares = [f"{SHARE}@{name}-{part}" for part in range(1, shards + 1)] if shards > 1 else []
    taken = [timings.get(stage) for stage in (f"discover@{name}", *shares)]
    known = [seconds for seconds in taken if seconds is not None]
    return sum(known) if len(known) == len(taken) else None


def _key(name: str, audit: AuditConfig, concepts: Mapping[str, Sequence[Level]]) -> str:
    """Hash the subject of a screening. Model and items may be large, so the hashes written by prepare are used."""
    prepared = audit_folder(name).prepare
    about = (prepared.provenance.model, prepared.provenance.data, audit.seed, audit.task, audit.discrepancy)
    return content_hash(
        [prepared.path / "fingerprint.json"], *about, [(c, list(levels)) for c, levels in concepts.items()]
    )


def _write_levels(name: str, audit: AuditConfig, screening: Screening, console: Console) -> None:
    if not screening.changes:
        console.print("nothing to write: the levels are already suitable")
        return
    if not screening.reached:
        raise UsageError(
            f"nothing written: the proposed levels do not reach the target range of failure rates; choose levels of "
            f"audits.{name}.concepts yourself, or screen with more --probes"
        )
    if load_params(PARAMS).audit(name) != audit:
        raise UsageError(
            f"nothing written: audits.{name} was changed in {PARAMS} meanwhile; run the same command again"
        )
    edit_file(PARAMS, lambda text: with_levels(text, name, screening.grid), console)
    console.print(f"written to {PARAMS}; see what is now stale with `faded plan {name}`", highlight=False)
