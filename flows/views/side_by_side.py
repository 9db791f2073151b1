"""Results of several audits or revisions side by side: what their searches found, rates, and differences.

Runs that are not comparable are shown too, with their differences: failures against probes describe a search on its own
grid. Runs with the same grid and common probes are paired on these.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from flows.results import WORKSPACE
from flows.results.compare import (
    ALIKE,
    PACKAGES,
    TOLD,
    PairedFailures,
    Run,
    check_alike,
    differences,
    effect_rates,
    made_with,
    measured_as,
    paired_difference,
    read_run,
)
from flows.terminal import TEXT_ONLY
from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.git import git
from stages.core.intervals import NO_RATE, Rate
from stages.landscape.head_to_head import HeadToHead, head_to_head
from stages.pages.page import render
from stages.pages.sections import searches_of
from stages.records.search import Search

PAGE = WORK / "compare.html"
LIMITS = (
    "An agent looks for failures: how many it finds says how good the search is, not how often the model fails.",
    "Failure rates are those in use, as each audit states or assumes it: the control's probes, weighted.",
    "Intervals are 95% intervals of each result by itself. Overlapping intervals do not show that results are alike: "
    "models that share a grid are paired on their common probes instead, where there are any.",
    "The rate of a level is averaged over all other concepts of its own grid, as they occur in use.",
)
Value = int | str | None  # None if a result has none


class Row(NamedTuple):
    """What results have in common, and the value of each."""

    what: str
    values: list[Value]


class RateRow(NamedTuple):
    """The same of rates, all NaN where there is none."""

    what: str
    rates: list[Rate]


@dataclass(frozen=True)
class SideBySide:
    """Several results; each row has a value for each of their names."""

    runs: dict[str, Run] = field(metadata=TEXT_ONLY)
    found: list[Row]  # what their searches found
    rates: list[RateRow]
    differs: list[Row]  # settings in which the results differ
    paired: HeadToHead | None  # the models on their common probes; None if grids differ or there are no common probes
    notes: list[str]
    revisions_of: str | None = None  # the audit, if these are two revisions of one; then `difference` pairs them
    difference: PairedFailures | None = None  # the second minus the first on common probes of the control
    page: Path | None = None  # the page with the curves of all searches

    @property
    def names(self) -> list[str]:
        """What the results are called, in the order of all values."""
        return list(self.runs)


def chosen_results(words: Sequence[str], audits: Collection[str], default: str) -> list[tuple[str, str]]:
    """The requested results as (revision, audit): every named audit in every named revision.

    Raises a UsageError if a word is neither, or only one result is requested.
    """
    revisions = [word for word in words if word not in audits]
    for word in revisions:
        if word != WORKSPACE and git("rev-parse", "--verify", "--quiet", f"{word}^{{commit}}") is None:
            known = f"a git revision, {WORKSPACE!r} or an audit in params.yaml ({', '.join(audits)})"
            raise UsageError(f"cannot compare {word!r}: expected {known}")
    named = [word for word in words if word in audits] or [default]
    pairs = list(dict.fromkeys((revision, audit) for audit in named for revision in revisions or [WORKSPACE]))
    if len(pairs) == 1:
        [(revision, audit)] = pairs
        raise UsageError(
            f"found one result, of {audit} in {revision}, expected two at least: name another revision or audit"
        )
    return pairs


def put_side_by_side(results: Sequence[tuple[str, str]]) -> SideBySide:
    """Read results, given as (revision, audit), and put them side by side.

    Raises a UsageError if one of them is missing, or this version cannot read it; or if two revisions of one audit
    differ in more than the model.
    """
    revisions, audits = ({pair[k] for pair in results} for k in (0, 1))

    def name(revision: str, audit: str) -> str:
        return revision if len(audits) == 1 else audit if len(revisions) == 1 else f"{audit} in {revision}"

    runs = {name(*pair): read_run(*pair) for pair in results}
    paired = _paired(runs)
    shown = SideBySide(runs, _found(runs), _rates(runs), _differs(runs), paired, _notes(runs, paired))
    if len(runs) != 2 or len(audits) > 1:
        return shown
    a, b = runs.values()
    check_alike(a, b)
    difference = paired_difference(a.probes, b.probes, a.landscape.space)
    return replace(shown, notes=differences(a, b), revisions_of=audits.pop(), difference=difference)


def write_comparison_page(out: Path, shown: SideBySide) -> None:
    """Write the comparison as one self-contained page, with the curves of all searches."""
    render(
        "side_by_side.html.j2",
        out,
        names=list(shown.runs),
        search=searches_of({name: (run.probes, run.landscape.search) for name, run in shown.runs.items()}),
        shown=shown,
        skipped=[],
        provenance=[],
        limits=LIMITS,
    )


def _paired(runs: dict[str, Run]) -> HeadToHead | None:
    """The models on the common probes of all controls; agents' probes are left out, as they search for failures."""
    if _unlike(runs):
        return None
    controls = {name: run.probes[run.probes["role"] == "control"] for name, run in runs.items()}
    modes = {name: run.landscape.modes for name, run in runs.items()}
    space = next(iter(runs.values())).landscape.space
    return head_to_head(controls, space, modes, {name: run.attributes for name, run in runs.items()})


def _unlike(runs: dict[str, Run]) -> list[str]:
    """Why models cannot be paired: differences in what a probe is and when it fails."""
    found = [{**measured_as(run), "seed": run.provenance.seed} for run in runs.values()]
    return [name for name in found[0] if len({json.dumps(one[name]) for one in found}) > 1]


def _found(runs: dict[str, Run]) -> list[Row]:
    """The probes and failures of each search; if budgets differ, also within the number of probes that all have."""
    rows: list[Row] = []
    common = min(search.probes for search in _searches(runs))
    for role in ("agent", "control"):
        searches = [run.landscape.search.roles.get(role) for run in runs.values()]

        def each(value: Callable[[Search], int | str], searches: Sequence[Search | None] = searches) -> list[Value]:
            return [None if search is None else value(search) for search in searches]

        rows.append(Row(role, each(lambda search: search.explorer)))
        rows.append(Row(f"unique probes of the {role}", each(lambda search: search.probes)))
        rows.append(Row(f"failures found by the {role}", each(lambda search: search.failures)))
        if len(_budgets(runs)) > 1:
            orders = [run.probes[run.probes["role"] == role].sort_values("order")["failed"] for run in runs.values()]
            within: list[Value] = [int(failed.iloc[:common].sum()) if len(failed) else None for failed in orders]
            rows.append(Row(f"in its first {common:,} probes", within))
    return [*rows, Row("failure modes", [len(run.landscape.modes) for run in runs.values()])]


def _searches(runs: dict[str, Run]) -> list[Search]:
    return [search for run in runs.values() for search in run.landscape.search.roles.values()]


def _budgets(runs: dict[str, Run]) -> set[int]:
    return {search.budget for search in _searches(runs)}


def _rates(runs: dict[str, Run]) -> list[RateRow]:
    """The rates overall, of the worst failure mode, and of the levels that all have in common."""
    landscapes = [run.landscape for run in runs.values()]
    worst = [max(one.modes, key=lambda mode: mode.rate, default=None) for one in landscapes]
    first, *others = (effect_rates(one) for one in landscapes)
    return [
        RateRow("overall", [one.overall.rate for one in landscapes]),
        RateRow("worst failure mode", [NO_RATE if mode is None else mode.measured.rate for mode in worst]),
        *(
            RateRow(level, [rate, *(rates[level] for rates in others)])
            for level, rate in first.items()
            if all(level in rates for rates in others)
        ),
    ]


def _differs(runs: dict[str, Run]) -> list[Row]:
    """The settings in which any two results differ, row by row."""

    def of(run: Run) -> dict[str, Value]:
        by, landscape = run.provenance, run.landscape
        return {
            **{f"concept {c.name}": ", ".join(map(c.label, range(len(c)))) for c in landscape.space.concepts},
            "threshold": f"{landscape.threshold:g}",
            "ratings": landscape.ratings.sha256 if landscape.ratings else None,
            "items": landscape.items,
            "budget": " and ".join(f"{budget:,}" for budget in sorted(_budgets({"": run}))),
            **{name: str(value) for name in (*ALIKE, "model", *TOLD) if (value := made_with(by, name)) is not None},
            **{name: by.versions.get(name) for name in PACKAGES},
        }

    settings = [of(run) for run in runs.values()]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [Row(name, [one.get(name) for one in settings]) for name in names]
    return [row for row in rows if len(set(row.values)) > 1]


def _notes(runs: dict[str, Run], paired: HeadToHead | None) -> list[str]:
    """Hints for reading the table and the curves."""
    budgets = _budgets(runs)
    notes = [
        f"all searches had the same budget of {max(budgets):,} unique probes"
        if len(budgets) == 1
        else f"budgets differ, from {min(budgets):,} to {max(budgets):,} unique probes: compare failures at the same"
        " number of probes"
    ]
    if "concepts" in (unlike := _unlike(runs)):
        notes.append(
            "grids differ: failures and rates belong to the grid of each, so they compare the searches, not the models"
        )
    elif unlike:
        notes.append(f"{' and '.join(unlike)} differ, so that probes are not the same: models are not paired")
    elif paired is None:
        notes.append("the controls have no probes in common, because items differ: models are not paired")
    elif len({made_with(run.provenance, "data") for run in runs.values()}) > 1:
        notes.append("items are paired by their ids: the files of items differ, and so may what the ids stand for")
    if alone := [name for name, run in runs.items() if run.landscape.search.agent is None]:
        notes.append(f"no agent in {', '.join(alone)}: the budget covers every pair of item and cell")
    return notes
