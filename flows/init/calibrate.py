"""The short calibration of an audit that was just written: how often the model fails, and with which levels."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from flows.audit_block import Draft
from flows.estimate import duration
from flows.init.propose import PROBES_OF_SEARCH, all_pairs, pairs, search_budget
from flows.screen import clean_accuracy, measure_concepts
from stages.concepts import Level
from stages.files import probe_seconds, record_probe_seconds, stage_dir
from stages.intervals import Rate
from stages.params import Params
from stages.screening import Screening
from stages.tasks.load import task_class, task_context

PROBES = 500
_WARM, _TIMED = 1, 2  # batches
_COMMENT = 110  # largest width of a comment, in columns


@dataclass(frozen=True)
class Calibration:
    """Result of the calibration.

    Args:
        screening: all measurements.
        levels: for each concept that is kept, the levels that come closest to the target range.
        rate: failure rate with these levels.
        seconds: duration of a probe.
        clean: share of unchanged items on which the model is right, as measured by `prepare`; None if it was not.
    """

    screening: Screening
    levels: Mapping[str, Sequence[Level]]
    rate: Rate
    seconds: float
    clean: float | None = None

    @property
    def statement(self) -> str:
        """Whether the target range was reached, in words."""
        s, rate = self.screening.settings, self.rate
        band = f"{s.lowest_rate:.0%} to {s.highest_rate:.0%}"
        measured = f"{rate.value:.0%} of {rate.n} probes fail with these levels ({rate.low:.0%} to {rate.high:.0%})"
        if s.holds(rate.value):
            return f"{measured}; the target is {band}"
        wrong = self.screening.clean.value if self.clean is None else 1 - self.clean
        if wrong > s.highest_rate:
            return (
                f"{measured}, more than the target of {band}: it fails on {wrong:.0%} of unchanged items already, which"
                " no levels can fix; are the labels, the order of the classes, the size and the normalisation right?"
            )
        far = "more" if rate.value > s.highest_rate else "fewer"
        near = ", perhaps by chance" if rate.low <= s.highest_rate and rate.high >= s.lowest_rate else ""
        return f"{measured}, {far} than the target of {band}{near}: the nearest levels found are kept"


def calibrate(params: Params, draft: Draft, probes: int | None, console: Console) -> Calibration:
    """Prepare the model and its items, and screen the audit's concepts; the caller holds the workspace's lock.

    Args:
        params: params.yaml, including the audit.
        draft: the audit as written.
        probes: largest number of unique probes; None for `PROBES`, or as many as its levels need.
        console: where progress is printed.

    Raises:
        FadedError: if the model or the data cannot be prepared.
    """
    seconds = 0.0

    def prepared() -> None:
        nonlocal seconds
        seconds = _probe_seconds(params, draft.name)
        console.print(
            f"a probe takes {_said(seconds)}, so {most:,} of the calibration about {duration(most * seconds)}",
            highlight=False,
        )

    most = PROBES if probes is None else probes
    screening = measure_concepts(params, draft.name, most, console, prepared, at_least=probes is None, widen=True)
    return Calibration(screening, *nearest(screening), seconds, clean_accuracy(draft.name))


def nearest(screening: Screening) -> tuple[dict[str, list[Level]], Rate]:
    """The levels with the failure rate closest to the target range, either proposed or current; and that rate."""
    settings = screening.settings

    def miss(rate: Rate) -> float:
        return max(settings.lowest_rate - rate.value, rate.value - settings.highest_rate, 0.0)

    if miss(screening.rate) <= miss(screening.now):
        return screening.grid, screening.rate
    return {concept.name: concept.levels for concept in screening.concepts}, screening.now


def calibrated(draft: Draft, found: Calibration, *, budget: int | None) -> Draft:
    """The audit with the levels that were found, and a budget that fits the model.

    Args:
        draft: the audit as written.
        found: the calibration's result.
        budget: the budget a person asked for; None to derive it from the duration of a probe.
    """
    seconds = found.seconds
    concepts = {name: list(levels) for name, levels in found.levels.items()}
    spend = budget or min(search_budget(seconds), all_pairs({**draft.audit, "concepts": concepts}))
    takes = f"about {duration(PROBES_OF_SEARCH * spend * seconds)}, as a probe takes {_said(seconds)}"
    audit = {
        "concepts": concepts,
        "discover": {**draft.audit["discover"], "budget": spend},
    }
    notes = {
        "concepts": _head(found),
        "discover": takes,
    }
    changed = draft.changed(audit, notes)
    if changed.repair is None:
        return changed
    return changed.repaired({**changed.repair, "re_evaluate": {"paired_probes": pairs(spend)}})


def _head(found: Calibration) -> str:
    asked = f"{found.screening.probes:,} probes on {found.screening.items:,} items"
    dropped = [concept.name for concept in found.screening.concepts if concept.name not in found.levels]
    gone = f"\nLeft out, because no effect was seen: {', '.join(dropped)}." if dropped else ""
    end = "" if found.statement.endswith("?") else "."
    told = textwrap.wrap(f"Weakest level first. Calibrated by {asked}: {found.statement}{end}", _COMMENT)
    return "\n".join(told) + gone


def _said(seconds: float) -> str:
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"


def _probe_seconds(params: Params, name: str) -> float:
    """Duration of a probe in whole batches; measured here if `prepare` did not."""
    if (known := probe_seconds(name)) is not None:
        return known
    audit = params.audit(name)
    prepared = stage_dir(name, "prepare")
    context = task_context(name, audit, prepared)
    task = task_class(name, audit).load(context, prepared)
    ids, rng = task.items.ids("discover"), np.random.default_rng(audit.seed)
    size = context.compute.batch_size
    began = time.perf_counter()
    for batch in range(_WARM + _TIMED):
        if batch == _WARM:
            began = time.perf_counter()
        chosen = [ids[i] for i in rng.integers(len(ids), size=size)]
        task.probe(chosen, task.concepts.sample(size, rng))
    seconds = (time.perf_counter() - began) / (_TIMED * size)
    record_probe_seconds(name, seconds)
    return seconds
