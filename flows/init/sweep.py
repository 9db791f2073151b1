"""The sweep of an audit that was just written: how often the model fails with each concept alone, level by level."""

from __future__ import annotations

import textwrap
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from flows.audit_block import Draft
from flows.estimate import duration
from flows.graph import read_graph
from flows.init.propose import PROBES_OF_SEARCH, all_pairs, pairs, search_budget
from flows.processes import stopping_on_signals
from flows.screen import bring_up_to_date, healed_audit, probing
from stages.files import probe_seconds, record_probe_seconds, stage_dir
from stages.params import Params
from stages.progress import progress
from stages.screening.sweep import Sweep, sweep
from stages.tasks.load import load_alone, task_context

PROBES = (500, 4000)  # as many as take about SECONDS, within these bounds
SECONDS = 60.0
_WARM, _TIMED = 1, 2  # batches
_COMMENT = 110  # largest width of a comment, in columns


@dataclass(frozen=True)
class Swept:
    """The result of a sweep.

    Args:
        sweep: all measurements.
        seconds: duration of a probe.
    """

    sweep: Sweep
    seconds: float


def sweep_concepts(params: Params, draft: Draft, probes: int | None, console: Console) -> Swept:
    """Prepare the model and its items, and sweep the audit's concepts; the caller holds the workspace's lock.

    Args:
        params: params.yaml, including the audit.
        draft: the audit as written.
        probes: largest number of unique probes; None to derive it from the duration of a probe.
        console: where progress is printed.

    Raises:
        FadedError: if the model or the data cannot be prepared.
    """
    name = draft.name
    audit = healed_audit(params, name, console)
    with stopping_on_signals():
        bring_up_to_date(read_graph(), f"prepare@{name}", console)
        seconds = _probe_seconds(params, name)
        most = probes or int(np.clip(SECONDS / seconds, *PROBES))
        console.print(
            f"each concept alone: {most:,} probes at most, about {duration(most * seconds)}, as a probe takes"
            f" {_said(seconds)}",
            highlight=False,
        )
        with probing(name, audit, "sweep", {}) as place, progress(f"sweep@{name}", most) as tell:
            found = sweep(
                place.load,
                audit.concepts,
                most,
                seed=audit.seed,
                ledger=place.ledger,
                compute=place.compute,
                tell=tell,
            )
    return Swept(found, seconds)


def measured(draft: Draft, found: Swept, *, budget: int | None) -> Draft:
    """The audit with what was seen of its concepts, and a budget that fits the model.

    Args:
        draft: the audit as written.
        found: the sweep's result.
        budget: the budget a person asked for; None to derive it from the duration of a probe.
    """
    seconds, seen = found.seconds, found.sweep
    audit = {**draft.audit, "concepts": seen.levels}
    spend = budget or min(search_budget(seconds), all_pairs(audit))
    head = (
        "The unchanged level first, the last one the end of what people accept. Each concept was probed alone,"
        f" {seen.probes:,} probes on {seen.items:,} items; {seen.clean.value:.0%} of unchanged items fail. How often"
        " changes occur in use is assumed: none in 30% of inputs, one in 40%, two in 20%, three in 10%, levels alike."
        " Under `usage:` it can be stated or measured, see docs/usage.md."
    )
    notes = {
        "concepts": "\n".join(textwrap.wrap(head, _COMMENT)),
        "discover": f"about {duration(PROBES_OF_SEARCH * spend * seconds)}, as a probe takes {_said(seconds)}",
    }
    for concept in seen.concepts:
        meaning = draft.notes.get(f"concepts.{concept.name}")
        notes[f"concepts.{concept.name}"] = "; ".join(filter(None, [meaning, concept.said]))
    changed = draft.changed({"concepts": seen.levels, "discover": {**draft.audit["discover"], "budget": spend}}, notes)
    if changed.repair is None:
        return changed
    return changed.repaired({**changed.repair, "re_evaluate": {"paired_probes": pairs(spend)}})


def _said(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def _probe_seconds(params: Params, name: str) -> float:
    """Duration of a probe in whole batches; measured here if `prepare` did not."""
    if (known := probe_seconds(name)) is not None:
        return known
    audit = params.audit(name)
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
